//! The Undermesh node agent.
//!
//! The modules stand in the order in which a connection meets them; see
//! `docs/architecture.md` for one connection followed from file to file.
//! Dependencies run downwards only: `agent` and `cli` compose, `proxy` drives,
//! `route`, `policy`, `balance` and `registry` decide without I/O, `datapath`
//! and `netns` are the only modules that talk to the kernel's BPF and
//! namespace interfaces.

pub mod admin;
pub mod agent;
pub mod balance;
pub mod ca;
pub mod cli;
pub mod datapath;
pub mod dns;
mod file;
#[cfg(test)]
mod fuzz;
pub mod health;
pub mod identity;
mod memo;
pub mod netns;
pub mod policy;
pub mod proxy;
pub mod registry;
pub mod resolve;
pub mod resource;
pub mod route;
pub mod snapshot;
pub mod source;
pub mod telemetry;
