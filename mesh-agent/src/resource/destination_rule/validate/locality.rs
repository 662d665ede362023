//! Which `localityLbSetting`s can be used, as Istio has it.

use crate::resource::destination_rule::LocalityLbSetting;
use crate::resource::report::Report;

/// Labels that say where something is, as regions do.
const PLACES: [&str; 3] = [
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
];

/// `detects`: failing endpoints are noticed.
pub(super) fn check(
    report: &mut Report<'_>,
    block: &LocalityLbSetting,
    field: &str,
    detects: bool,
) {
    let shares = !block.distribute.is_empty();
    if shares && !block.failover.is_empty() {
        report.error(format!("{field}.failover"), "excludes distribute");
    } else if shares && !block.failover_priority.is_empty() {
        let field = format!("{field}.failoverPriority");
        report.warning(field, "has no effect beside distribute");
    } else if !block.failover.is_empty()
        && let Some(place) = (block.failover_priority.iter())
            .find(|label| PLACES.contains(&label.split('=').next().unwrap_or_default()))
    {
        let reason = format!("{place} excludes failover");
        report.error(format!("{field}.failoverPriority"), reason);
    }
    let fails_over = !(block.failover.is_empty() && block.failover_priority.is_empty());
    if fails_over && !shares && !detects && block.enabled != Some(false) {
        report.warning(field, "has no effect without outlierDetection");
    }
    for (i, entry) in block.distribute.iter().enumerate() {
        if entry.to.values().any(|weight| *weight == 0) {
            report.error(
                format!("{field}.distribute[{i}].to"),
                "a weight is 0: leave the locality out",
            );
        }
        let sum: u64 = entry.to.values().map(|weight| u64::from(*weight)).sum();
        if sum != 100 {
            report.error(
                format!("{field}.distribute[{i}].to"),
                format!("the weights add up to {sum}, not to 100"),
            );
        }
    }
    for (i, entry) in block.failover.iter().enumerate() {
        if entry.from == entry.to {
            report.error(
                format!("{field}.failover[{i}].to"),
                "is the region that fails",
            );
        }
        for (name, region) in [("from", &entry.from), ("to", &entry.to)] {
            if region.contains(['/', '*']) {
                report.error(
                    format!("{field}.failover[{i}].{name}"),
                    format!("{region:?} is not a region"),
                );
            }
        }
    }
}
