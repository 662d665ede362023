//! When an endpoint that fails or is slow is taken out of service, and when it
//! comes back: Envoy's outlier detection, number by number, without clock and
//! without lock while all is well.

mod detector;
mod latency;
mod monitor;
mod success_rate;

use std::time::{Duration, Instant};

pub use detector::{Detector, Swept, Verdict};
pub use monitor::Monitor;

/// What became of a request or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The endpoint answered with this status (of gRPC: mapped to HTTP).
    Status(u16),
    /// A connection was made.
    Connected,
    /// No connection, or it ended without an answer.
    Failed,
    /// No answer in time.
    TimedOut,
}

/// Why an endpoint was taken out of service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cause {
    /// So many errors in a row.
    Consecutive5xx(u32),
    /// So many 502, 503 or 504 in a row.
    ConsecutiveGateway(u32),
    /// So many failures to connect, timeouts or resets in a row.
    ConsecutiveLocal(u32),
    /// It succeeded less often than the others, in percent.
    SuccessRate {
        /// Its own rate.
        rate: f64,
        /// Mean of all.
        mean: f64,
    },
    /// It took longer to answer than the others.
    Latency {
        /// Its own median.
        own: Duration,
        /// Median of the others' medians.
        others: Duration,
    },
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
        match self {
            Self::Consecutive5xx(count) => write!(f, "{count} errors in a row"),
            Self::ConsecutiveGateway(count) => write!(f, "{count} gateway errors in a row"),
            Self::ConsecutiveLocal(count) => write!(f, "{count} local failures in a row"),
            Self::SuccessRate { rate, mean } => {
                write!(f, "success rate {rate:.1} % against a mean of {mean:.1} %")
            }
            Self::Latency { own, others } => write!(
                f,
                "median latency {:.1} ms against {:.1} ms of the others",
                ms(own),
                ms(others)
            ),
        }
    }
}

/// An endpoint that is out of service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ejection {
    /// Why.
    pub cause: Cause,
    /// Since when.
    pub since: Instant,
    /// The sweep at which it comes back.
    pub until: Instant,
    /// How often it has been out.
    pub count: u64,
}

#[cfg(test)]
mod tests;
