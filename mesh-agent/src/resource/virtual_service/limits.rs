//! The annotation by which a VirtualService bounds single routes: Istio has no field for that.

use std::collections::BTreeMap;

use super::VirtualServiceSpec;
use crate::resource::Resource;
use crate::resource::annotation::{PREFIX, Problem, count, settings, unknown};

/// `NAME: max-requests=10, max-retries=2; OTHER: ...`, by `name` of the http routes.
const ROUTE_LIMITS: &str = "undermesh.io/route-limits";

/// Bounds of one route; `None` for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteBounds {
    /// Requests on their way, those included that wait for a connection.
    pub max_requests: Option<u32>,
    /// Of those: retries.
    pub max_retries: Option<u32>,
}

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
        let mut bounds = RouteBounds::default();
        settings(limits, &["max-requests", "max-retries"], |name, value| {
            let value = Some(count(value)?);
            match name {
                "max-requests" => bounds.max_requests = value,
                _ => bounds.max_retries = value,
            }
            Ok(())
        })
        .map_err(|reason| format!("{name}: {reason}"))?;
        if routes.insert(name, bounds).is_some() {
            return Err(format!("{name:?} stands twice"));
        }
    }
    Ok(routes)
}
