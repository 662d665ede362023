//! Names of the mesh for unmodified clients. The kernel hands a workload's
//! questions to the agent; those about the mesh are answered ([`zone`]), all
//! others go on to the nameserver that was asked ([`DnsServer`]).

pub mod message;
mod pktinfo;
mod server;
mod tcp;
#[cfg(test)]
mod tests;
pub mod zone;

pub use server::{DnsServer, MAX_QUERIES_IN_FLIGHT, Nameservers, QUERY_TIMEOUT};
