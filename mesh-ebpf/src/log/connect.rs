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
    macro_rules! connection {
        ($level:ident, $format:literal $(, $name:ident = $value:expr)*) => {
            log!($level, $format, to = bytes(&destination.ip), port = destination.port $(, $name = $value)*)
        };
    }
    macro_rules! redirected {
        ($format:literal) => {
            connection!(
                debug,
                $format,
                instead = bytes(&next.to.ip),
                its_port = next.to.port
            )
        };
    }
    match (next.what, next.why) {
        (What::Pass, _) => {
            connection!(trace, "connect to {:i} port {} is left alone");
        }
        (What::Refuse, Why::Policy) => {
            connection!(info, "connect to {:i} port {} is refused by policy");
        }
        (What::Refuse, Why::NoAgent) => {
            connection!(
                warn,
                "connect to {:i} port {} is refused: no agent serves the workload"
            );
        }
        (What::Refuse, Why::Nobody) => {
            connection!(
                info,
                "connect to {:i} port {} is refused: it has no endpoint"
            );
        }
        (What::Refuse, Why::Device) => {
            connection!(
                info,
                "connect to {:i} port {} is refused: the socket's device does not lead to the agent"
            );
        }
        (What::Refuse, _) => {
            connection!(
                error,
                "connect to {:i} port {} is refused for want of memory"
            );
        }
        (What::Redirect, Why::Direct) => {
            redirected!("connect to {:i} port {} goes directly to {:i} port {}");
        }
        (What::Redirect, _) => {
            redirected!("connect to {:i} port {} goes to {:i} port {}");
        }
        (What::Dns, _) => {
            log!(trace, "DNS by connect to {:i}", to = bytes(&destination.ip));
        }
    }
}

/// Nothing, in programs without log lines.
#[cfg(not(feature = "log"))]
#[inline(always)]
pub fn say(_: &Next, _: &SocketIp) {}
