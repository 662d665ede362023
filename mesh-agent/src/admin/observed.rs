//! The OBSERVED column of tls-check: what connections really did.

use super::api::{Direction, FlowView, Security, TlsCheckRow};

/// Completes `observed`, where the agent has seen the client, from the flows of `workload` (as it was
/// asked for, `<name>[.<namespace>]`): those that are open, and those that have ended within a minute,
/// as they are remembered that long. A flow knows its service, not the subset.
pub fn observe(rows: &mut [TlsCheckRow], flows: &[FlowView], workload: &str) {
    let in_default = format!("{workload}.default");
    let own = |flow: &&FlowView| {
        flow.direction == Direction::Outbound
            && (flow.workload == workload || flow.workload == in_default)
    };
    for row in rows {
        // The agent has counted the handshakes.
        let Some(observed) = &mut row.observed else {
            continue;
        };
        for flow in flows.iter().filter(own) {
            if flow.service.as_deref() != Some(&row.host) || flow.destination.port() != row.port {
                continue;
            }
            match flow.security {
                Security::MutualTls => observed.mutual_tls += 1,
                Security::SameNode => observed.same_node += 1,
                Security::Plaintext => observed.plaintext += 1,
                Security::Unknown => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::Observed;
    use crate::admin::samples;

    #[test]
    fn flows_are_counted_for_the_host_and_port_they_went_to() {
        let mut rows = samples::tls_check();
        for row in rows.iter_mut().filter(|row| !row.host.contains('|')) {
            row.observed = Some(Observed::default());
        }
        rows[1].observed = None;
        let flow = |security, age_ms| FlowView {
            service: Some("reviews.default.svc.cluster.local".to_owned()),
            destination: "10.96.0.1:8080".parse().unwrap(),
            workload: "sleep.default".to_owned(),
            direction: Direction::Outbound,
            security,
            age_ms,
            ..samples::flows().remove(0)
        };
        let flows = [
            flow(Security::MutualTls, 0),
            flow(Security::SameNode, 60_000),
            flow(Security::Plaintext, 5),
            // Open for an hour.
            flow(Security::Plaintext, 3_600_000),
            FlowView {
                direction: Direction::Inbound,
                ..flow(Security::Plaintext, 5)
            },
            FlowView {
                workload: "other.default".to_owned(),
                ..flow(Security::Plaintext, 5)
            },
            FlowView {
                destination: "10.96.0.1:81".parse().unwrap(),
                ..flow(Security::Plaintext, 5)
            },
        ];
        observe(&mut rows, &flows, "sleep");
        let observed = |host: &str| rows.iter().find(|row| row.host == host).unwrap().observed;
        assert_eq!(
            observed("reviews.default.svc.cluster.local"),
            Some(Observed {
                mutual_tls: 1,
                handshakes: 0,
                same_node: 1,
                plaintext: 2
            })
        );
        assert_eq!(
            observed("legacy.default.svc.cluster.local"),
            Some(Observed::default())
        );
        assert_eq!(observed("reviews.default.svc.cluster.local|v1"), None);
        assert_eq!(observed("ratings.default.svc.cluster.local"), None);
    }
}
