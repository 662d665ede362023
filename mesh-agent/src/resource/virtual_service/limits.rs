//! The annotation by which a VirtualService bounds single routes: Istio has no field for that.

use std::collections::BTreeMap;
use std::time::Duration;

use super::VirtualServiceSpec;
use crate::resource::Resource;
use crate::resource::annotation::{PREFIX, Problem, count, settings, unknown};
use crate::resource::value::GoDuration;

/// `NAME: max-requests=10, max-retries=2; OTHER: ...`, by `name` of the http routes.
const ROUTE_LIMITS: &str = "undermesh.io/route-limits";

/// Bounds of one route; `None` for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteBounds {
    /// Requests on their way, those included that wait for a connection.
    pub max_requests: Option<u32>,
    /// Of those: that wait for a connection.
    pub max_pending: Option<u32>,
    /// Of those: retries.
    pub max_retries: Option<u32>,
    /// Failures after which nothing is sent for a while.
    pub breaker: Option<BreakerBounds>,
}

/// When a route is closed off, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerBounds {
    /// Failures in a row: answers of 500 and above, or none.
    pub errors: u32,
    /// How long nothing is sent then.
    pub open_time: Duration,
}

/// As Istio's `baseEjectionTime`.
const OPEN_TIME: Duration = Duration::from_secs(30);

/// The bounds of a resource's routes by their names, and what is wrong with which annotation.
pub(crate) fn read(
    resource: &Resource<VirtualServiceSpec>,
) -> (BTreeMap<&str, RouteBounds>, Vec<(&str, Problem)>) {
    let (mut bounds, mut problems) = (BTreeMap::new(), Vec::new());
    let ours = resource.meta.annotations.iter();
    for (key, value) in ours.filter(|(key, _)| key.starts_with(PREFIX)) {
        if key != ROUTE_LIMITS {
            problems.push((key.as_str(), unknown(&[ROUTE_LIMITS])));
            continue;
        }
        match of_routes(value, &resource.spec) {
            Ok(read) => bounds = read,
            Err(reason) => problems.push((key.as_str(), Problem::Value(reason))),
        }
    }
    (bounds, problems)
}

fn of_routes<'v>(
    value: &'v str,
    spec: &VirtualServiceSpec,
) -> Result<BTreeMap<&'v str, RouteBounds>, String> {
    let mut routes = BTreeMap::new();
    for part in value.split(';').map(str::trim) {
        let (name, limits) = part
            .split_once(':')
            .map(|(name, limits)| (name.trim(), limits.trim()))
            .ok_or_else(|| format!("{part:?} is not NAME: name=value, ..."))?;
        let mut forwarding = spec.http.iter().filter(|route| !route.route.is_empty());
        if !forwarding.any(|route| route.name.as_deref() == Some(name)) {
            return Err(format!("no http route that forwards has the name {name:?}"));
        }
        let bounds = of_route(limits).map_err(|reason| format!("{name}: {reason}"))?;
        if routes.insert(name, bounds).is_some() {
            return Err(format!("{name:?} stands twice"));
        }
    }
    Ok(routes)
}

fn of_route(limits: &str) -> Result<RouteBounds, String> {
    let names = [
        "max-requests",
        "max-pending",
        "max-retries",
        "consecutive-errors",
        "open-time",
    ];
    let mut bounds = RouteBounds::default();
    let (mut errors, mut open_time) = (None, None);
    settings(limits, &names, |name, value| {
        match name {
            "max-requests" => bounds.max_requests = Some(count(value)?),
            "max-pending" => bounds.max_pending = Some(count(value)?),
            "max-retries" => bounds.max_retries = Some(count(value)?),
            "consecutive-errors" => errors = Some(count(value)?),
            _ => {
                let time = GoDuration::parse(value).map_err(|error| error.to_string())?;
                open_time = Some(time.0);
            }
        }
        Ok(())
    })?;
    if errors.is_none() && open_time.is_some() {
        return Err("open-time needs consecutive-errors".to_owned());
    }
    bounds.breaker = errors.map(|errors| BreakerBounds {
        errors,
        open_time: open_time.unwrap_or(OPEN_TIME),
    });
    Ok(bounds)
}
