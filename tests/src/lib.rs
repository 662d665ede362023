//! The laboratory of the end-to-end tests and of `cargo xtask demo`: two nodes
//! in one kernel, workloads in network namespaces, real agents and unmodified
//! programs.
//!
//! ```text
//!   node a                                            node b
//!   agent-a (cgroup agent-a)                          agent-b (cgroup agent-b)
//!   workloads (cgroup a)                              workloads (cgroup b)
//!   sleep ──┐                                      ┌── reviews-v1
//!   ...   ──┴── bridge a ════ the wire ════ bridge b ─┴── ...
//! ```
//!
//! Everything that a [`Lab`] makes bears its name; it is removed when the lab
//! is dropped, also by a panic, and a lab whose process was killed is removed
//! by the next one.

mod agent;
mod capture;
mod cgroup;
mod command;
mod conversation;
mod envoy;
mod http;
mod kernel;
mod lab;
mod resources;
mod wait;
mod workload;

pub use agent::Agent;
pub use capture::{Capture, contains};
pub use command::{Outcome, Process, binary, outcome};
pub use conversation::Conversation;
pub use envoy::envoy;
pub use http::Reply;
pub use kernel::{cgroup2, check, is_root};
pub use lab::{Lab, sweep};
pub use resources::{ServicePort, container_entries, service, workload_entries};
pub use wait::{eventually, wait_until};
pub use workload::{Node, Workload};
