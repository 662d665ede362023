//! Chooses endpoints, and remembers what a choice depends on: load, failures,
//! and what is open. Functions of the configuration, of what is reported, of
//! the time that the caller names, and of chance; no I/O, no clock.

mod breaker;
mod choose;
mod cluster;
mod clusters;
mod ejection;
mod guard;
mod host;
mod limits;
mod locality;
pub mod outlier;
mod route;
mod session;
mod set;
mod state;
mod table;
mod view;
mod window;

pub use choose::Choice;
pub use cluster::{Cluster, ClusterKey, Destination, EndpointPool, Version, full_name};
pub use clusters::Clusters;
pub use guard::{Active, Overflow, Pending, Retrying, Slot};
pub use host::{EndpointAddress, Host, Member};
pub use limits::{Gauge, Gauges};
pub use outlier::Report;
pub use route::{InRoute, RouteGauges};
pub use table::hash_of;

#[cfg(test)]
mod tests;
