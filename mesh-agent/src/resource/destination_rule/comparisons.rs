//! Annotations by which a DestinationRule has its endpoints compared with each
//! other: Istio has no fields for that.

use std::time::Duration;

use crate::resource::Meta;
use crate::resource::annotation::{PREFIX, Problem, count, settings, unknown};
use crate::resource::value::GoDuration;

/// Ejection of endpoints that fail more often than the others.
const SUCCESS_RATE: &str = "undermesh.io/success-rate-ejection";
/// Ejection of endpoints that are slower than the others.
const LATENCY: &str = "undermesh.io/latency-ejection";
/// Greatest factor.
const MAX_FACTOR: f64 = 1000.0;

/// How the endpoints of a service are compared with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparisons {
    /// By how often they fail.
    pub success_rate: Option<SuccessRatePolicy>,
    /// By how long they take.
    pub latency: Option<LatencyPolicy>,
}

/// Ejection of endpoints that fail more often than the others, with Envoy's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRatePolicy {
    /// Endpoints that must have had enough requests within the interval.
    pub minimum_hosts: u32,
    /// How many are enough.
    pub request_volume: u32,
    /// An endpoint is an outlier below the mean less so many standard deviations.
    pub stdev_factor: f64,
}

impl Default for SuccessRatePolicy {
    fn default() -> Self {
        Self {
            minimum_hosts: 5,
            request_volume: 100,
            stdev_factor: 1.9,
        }
    }
}

/// Ejection of endpoints whose median latency is far above that of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatencyPolicy {
    /// Endpoints that must have answered often enough within the interval.
    pub minimum_hosts: u32,
    /// How often is enough: less than for success rates, since a slow endpoint is chosen less often.
    pub request_volume: u32,
    /// An endpoint is an outlier at so many times the median of the others.
    pub factor: f64,
    /// And only where it is slower by so much: below it nobody notices.
    pub minimum_difference: Duration,
}

impl Default for LatencyPolicy {
    fn default() -> Self {
        Self {
            minimum_hosts: 5,
            request_volume: 20,
            factor: 3.0,
            minimum_difference: Duration::from_millis(10),
        }
    }
}

impl Comparisons {
    /// What the annotations of a rule say, and what is wrong with which of them.
    pub(crate) fn read(meta: &Meta) -> (Self, Vec<(&str, Problem)>) {
        let (mut read, mut problems) = (Self::default(), Vec::new());
        let ours = meta.annotations.iter();
        for (key, value) in ours.filter(|(key, _)| key.starts_with(PREFIX)) {
            let result = match key.as_str() {
                SUCCESS_RATE => success_rate(value).map(|policy| read.success_rate = policy),
                LATENCY => latency(value).map(|policy| read.latency = policy),
                _ => {
                    problems.push((key.as_str(), unknown(&[SUCCESS_RATE, LATENCY])));
                    continue;
                }
            };
            if let Err(reason) = result {
                problems.push((key.as_str(), Problem::Value(reason)));
            }
        }
        (read, problems)
    }
}

fn success_rate(value: &str) -> Result<Option<SuccessRatePolicy>, String> {
    let mut policy = SuccessRatePolicy::default();
    let names = ["minimum-hosts", "request-volume", "stdev-factor"];
    let is_on = on_or(value, &names, |name, value| {
        match name {
            "minimum-hosts" => policy.minimum_hosts = count(value)?,
            "request-volume" => policy.request_volume = count(value)?,
            _ => policy.stdev_factor = factor(value)?,
        }
        Ok(())
    })?;
    Ok(is_on.then_some(policy))
}

fn latency(value: &str) -> Result<Option<LatencyPolicy>, String> {
    let mut policy = LatencyPolicy::default();
    let names = [
        "minimum-hosts",
        "request-volume",
        "factor",
        "minimum-difference",
    ];
    let is_on = on_or(value, &names, |name, value| {
        match name {
            "minimum-hosts" => policy.minimum_hosts = count(value)?,
            "request-volume" => policy.request_volume = count(value)?,
            "factor" => policy.factor = factor(value)?,
            _ => {
                let difference = GoDuration::parse(value).map_err(|error| error.to_string())?;
                policy.minimum_difference = difference.0;
            }
        }
        Ok(())
    })?;
    Ok(is_on.then_some(policy))
}

/// `on`, `off`, or settings; returns whether it is on.
fn on_or<'v>(
    value: &'v str,
    names: &[&str],
    set: impl FnMut(&str, &'v str) -> Result<(), String>,
) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => settings(value, names, set).map(|()| true),
    }
}

fn factor(value: &str) -> Result<f64, String> {
    let number = value.parse().ok();
    number
        .filter(|number| *number > 0.0 && *number <= MAX_FACTOR)
        .ok_or_else(|| format!("{value:?} is not a number above 0, up to {MAX_FACTOR}"))
}
