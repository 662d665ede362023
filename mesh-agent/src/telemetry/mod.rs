//! What the agent tells of the traffic that it carries.

pub mod access_log;
mod flags;
pub mod requests;

pub use flags::{Flag, Flags};

use access_log::AccessLog;
use requests::Unreached;

/// Where the parts of the agent that carry traffic tell of it.
#[derive(Default)]
pub struct Telemetry {
    /// A line for each request and connection.
    pub access_log: AccessLog,
    /// Requests that have reached no endpoint; the others are counted where they went.
    pub unreached: Unreached,
}
