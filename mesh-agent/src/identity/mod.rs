//! Who a workload is, and how it proves it: SPIFFE identities, the
//! certificate authority, and the TLS configurations made from them.

mod spiffe;

pub use spiffe::{Identity, ParseIdentityError};
