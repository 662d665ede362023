//! What becomes of a call of connect(2), in words.

use mesh_common::SocketIp;

#[cfg(feature = "log")]
use super::{bytes, log};
use crate::connect::Next;
#[cfg(feature = "log")]
use crate::connect::What;

/// Why a connection is refused, or goes elsewhere.
#[derive(Clone, Copy)]
pub enum Why {
    /// No reason, or the usual one.
    Usual,
    /// The agent's decision.
    Policy,
    NoAgent,
    /// The service has no endpoint.
    Nobody,
    /// `SO_BINDTODEVICE`.
    Device,
    /// A direct verdict.
    Direct,
}

/// Says what is done.
#[cfg(feature = "log")]
#[inline(always)]
pub fn say(next: &Next, destination: &SocketIp) {
    match next.what {
        What::Pass => {
            log!(
                trace,
                "connect to {:i} port {} is left alone",
                to = bytes(&destination.ip),
                port = destination.port
            );
        }
        What::Refuse => match next.why {
            Why::Policy => {
                log!(
                    info,
                    "connect to {:i} port {} is refused by policy",
                    to = bytes(&destination.ip),
                    port = destination.port
                );
            }
            Why::NoAgent => {
                log!(
                    warn,
                    "connect to {:i} port {} is refused: no agent serves the workload",
                    to = bytes(&destination.ip),
                    port = destination.port
                );
            }
            Why::Nobody => {
                log!(
                    info,
                    "connect to {:i} port {} is refused: it has no endpoint",
                    to = bytes(&destination.ip),
                    port = destination.port
                );
            }
            Why::Device => {
                log!(
                    info,
                    "connect to {:i} port {} is refused: the socket's device does not lead to the agent",
                    to = bytes(&destination.ip),
                    port = destination.port
                );
            }
            _ => {
                log!(
                    error,
                    "connect to {:i} port {} is refused for want of memory",
                    to = bytes(&destination.ip),
                    port = destination.port
                );
            }
        },
        What::Redirect => match next.why {
            Why::Direct => {
                log!(
                    debug,
                    "connect to {:i} port {} goes directly to {:i} port {}",
                    to = bytes(&destination.ip),
                    port = destination.port,
                    instead = bytes(&next.to.ip),
                    its_port = next.to.port
                );
            }
            _ => {
                log!(
                    debug,
                    "connect to {:i} port {} goes to {:i} port {}",
                    to = bytes(&destination.ip),
                    port = destination.port,
                    instead = bytes(&next.to.ip),
                    its_port = next.to.port
                );
            }
        },
        What::Dns => {
            log!(trace, "DNS by connect to {:i}", to = bytes(&destination.ip));
        }
    }
}

/// Nothing, in programs without log lines.
#[cfg(not(feature = "log"))]
#[inline(always)]
pub fn say(_: &Next, _: &SocketIp) {}
