//! `meshctl check` as the agent answers it: the node, the agent itself, and
//! what follows from its views.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::api::{
    Agent, CertificateKind, CertificateView, CheckItem, ConfigView, VersionView, WorkloadState,
    WorkloadView,
};
use super::host_checks;

/// A root that ends within this time should be replaced now.
const ROOT_EXPIRY_WARNING: Duration = Duration::from_secs(60 * 24 * 3600);

/// All checks, in the order in which they are shown.
pub fn all_checks(agent: &dyn Agent) -> Vec<CheckItem> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut items = host_checks::run();
    items.push(running(&agent.version()));
    items.extend(agent.checks());
    items.extend(configuration(&agent.config()));
    items.push(enrolled(&agent.workloads()));
    items.extend(certificates(&agent.certificates(), now));
    items
}

fn running(version: &VersionView) -> CheckItem {
    CheckItem::ok(
        "agent",
        "agent is running",
        format!(
            "version {}, node {}, pid {}",
            version.version, version.node, version.pid
        ),
    )
}

fn configuration(config: &ConfigView) -> Vec<CheckItem> {
    const SECTION: &str = "configuration";
    let in_force = format!(
        "generation {}, {} resources from {}",
        config.generation, config.resources, config.source
    );
    let accepted = match &config.refused {
        None => CheckItem::ok(SECTION, "configuration is accepted", in_force),
        Some(refused) => CheckItem::failed(
            SECTION,
            "configuration is accepted",
            format!(
                "the last change was refused ({} errors); in force: {in_force}",
                refused.errors.len()
            ),
            "`meshctl config` says which field of which file is wrong",
        ),
    };
    let effective = match config.warnings.len() {
        0 => CheckItem::ok(SECTION, "every field has effect", ""),
        count => CheckItem::warning(
            SECTION,
            "every field has effect",
            format!("{count} fields are not applied"),
            "`meshctl config` lists them",
        ),
    };
    vec![accepted, effective]
}

fn enrolled(workloads: &[WorkloadView]) -> CheckItem {
    const SECTION: &str = "workloads";
    const NAME: &str = "workloads are enrolled";
    const HINT: &str = "`meshctl workloads` gives the reason for each";
    let count = |wanted: fn(&WorkloadState) -> bool| {
        workloads
            .iter()
            .filter(|workload| wanted(&workload.state))
            .count()
    };
    let enrolled = count(|state| matches!(state, WorkloadState::Enrolled));
    let waiting = count(|state| matches!(state, WorkloadState::Waiting(_)));
    let failed = count(|state| matches!(state, WorkloadState::Failed(_)));
    let detail = format!("{enrolled} enrolled, {waiting} waiting, {failed} failed");
    if failed > 0 {
        CheckItem::failed(SECTION, NAME, detail, HINT)
    } else if waiting > 0 {
        CheckItem::warning(SECTION, NAME, detail, HINT)
    } else if enrolled == 0 {
        CheckItem::warning(
            SECTION,
            NAME,
            "no workload of this node is in the mesh",
            "annotate a WorkloadEntry with the namespace, PID or container of its application",
        )
    } else {
        CheckItem::ok(SECTION, NAME, detail)
    }
}

fn certificates(certificates: &[CertificateView], now: u64) -> Vec<CheckItem> {
    const SECTION: &str = "certificates";
    let (roots, leaves): (Vec<_>, Vec<_>) = certificates
        .iter()
        // What is between is the authority's, and as old as that.
        .partition(|certificate| certificate.kind != CertificateKind::Leaf);
    vec![
        validity(
            SECTION,
            "certificate authority is valid",
            &roots,
            now,
            |root| root.not_after < now + ROOT_EXPIRY_WARNING.as_secs(),
            "make a new root and trust both until every workload has its new certificate",
        ),
        validity(
            SECTION,
            "workload certificates are valid",
            &leaves,
            now,
            // A leaf is replaced at half its life: in the last tenth something is wrong.
            |leaf| {
                let life = leaf.not_after.saturating_sub(leaf.not_before);
                leaf.not_after.saturating_sub(now) < life / 10
            },
            "the agent's log says why it was not renewed",
        ),
    ]
}

fn validity(
    section: &str,
    name: &str,
    certificates: &[&CertificateView],
    now: u64,
    soon: impl Fn(&CertificateView) -> bool,
    hint: &str,
) -> CheckItem {
    let Some(first) = certificates.iter().min_by_key(|one| one.not_after) else {
        let when =
            "none yet: a workload gets its own with its first connection to or from another node";
        return CheckItem::ok(section, name, when);
    };
    if let Some(early) = certificates.iter().find(|one| one.not_before > now) {
        return CheckItem::failed(
            section,
            name,
            format!("{} is not valid yet", early.identity),
            "compare the clocks of the node and of the certificate authority",
        );
    }
    if first.not_after <= now {
        return CheckItem::failed(
            section,
            name,
            format!("{} has expired", first.identity),
            hint,
        );
    }
    let left = duration(first.not_after - now);
    let detail = format!("{} valid, the first expires in {left}", certificates.len());
    match certificates.iter().find(|one| soon(one)) {
        Some(_) => CheckItem::warning(section, name, detail, hint),
        None => CheckItem::ok(section, name, detail),
    }
}

/// Seconds in the two largest units, such as `23h59m` or `3649d12h`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::CheckStatus;
    use crate::admin::samples;

    #[test]
    fn a_refused_configuration_is_a_cross() {
        let mut config = samples::config();
        assert_eq!(configuration(&config)[0].status, CheckStatus::Failed);
        config.refused = None;
        assert_eq!(configuration(&config)[0].status, CheckStatus::Ok);
        assert_eq!(configuration(&config)[1].status, CheckStatus::Warning);
        config.warnings.clear();
        assert_eq!(configuration(&config)[1].status, CheckStatus::Ok);
    }

    #[test]
    fn the_worst_workload_decides() {
        let mut workloads = samples::workloads();
        assert_eq!(enrolled(&workloads).status, CheckStatus::Failed);
        workloads.retain(|workload| !matches!(workload.state, WorkloadState::Failed(_)));
        assert_eq!(enrolled(&workloads).status, CheckStatus::Warning);
        workloads.retain(|workload| !matches!(workload.state, WorkloadState::Waiting(_)));
        assert_eq!(enrolled(&workloads).status, CheckStatus::Ok);
        assert_eq!(enrolled(&[]).status, CheckStatus::Warning);
    }

    #[test]
    fn certificates_are_judged_by_the_clock() {
        let sample = samples::certificates();
        let status = |now| {
            certificates(&sample, now)
                .iter()
                .map(|item| item.status)
                .collect::<Vec<_>>()
        };
        let leaf = &sample[1];
        use CheckStatus::*;
        assert_eq!(status(leaf.not_before), [Ok, Ok]);
        assert_eq!(status(leaf.not_after - 60), [Ok, Warning]);
        assert_eq!(status(leaf.not_after), [Ok, Failed]);
        assert_eq!(status(sample[0].not_after - 60), [Warning, Failed]);
        assert_eq!(status(sample[0].not_before - 1), [Failed, Failed]);
        // An intermediate is no certificate of a workload, however long it is valid.
        let between = CertificateView {
            kind: CertificateKind::Intermediate,
            ..sample[0].clone()
        };
        let items = certificates(&[sample[0].clone(), between], sample[0].not_before);
        assert!(items[1].detail.starts_with("none yet"), "{items:?}");
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m1s"),
            (86399, "23h59m"),
            (86400 * 2 + 3600, "2d1h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
