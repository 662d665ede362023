//! Connections in user space, in the order in which they travel: outbound
//! (from an application), http or tcp, upstream, hbone, inbound (to an
//! application).

pub mod copy;
pub mod hbone;
pub mod http;
pub mod sniff;
