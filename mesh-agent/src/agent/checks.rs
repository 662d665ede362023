//! What the running agent adds to `meshctl check`.

use mesh_common::{Counter, Knob};

use crate::admin::api::CheckItem;
use crate::datapath::{Datapath, Tier};
use crate::identity::Certificates;

pub(super) fn checks(
    datapath: &Datapath,
    certificates: &Certificates,
    ends_connections: bool,
) -> Vec<CheckItem> {
    let folder = datapath.folder().display();
    let attached = datapath.attached().len();
    let verdicts = datapath.verdicts();
    let tiers = datapath.tiers();
    let mut items = vec![
        CheckItem::ok(
            "agent",
            "kernel programs are attached",
            format!("{attached} links below {folder}, {verdicts} verdicts in force"),
        ),
        CheckItem::ok(
            "agent",
            "short-circuit to the agent",
            tier(&tiers.to_agent, datapath),
        ),
        CheckItem::ok(
            "agent",
            "short-circuit to applications",
            tier(&tiers.to_application, datapath),
        ),
        direct(ends_connections),
        account(datapath),
        CheckItem::ok(
            "agent",
            "log of the kernel programs",
            datapath.kernel_log().to_string(),
        ),
    ];
    items.extend(authority(certificates));
    items
}

/// Whether connections may go past the agent.
fn direct(ends_connections: bool) -> CheckItem {
    let what = "direct connections can be ended";
    if ends_connections {
        CheckItem::ok("agent", what, "a new policy ends those that it forbids")
    } else {
        CheckItem::warning(
            "agent",
            what,
            "the kernel lacks CONFIG_INET_DIAG_DESTROY: no connection goes past the agent",
            "undermesh.io/direct has no effect on this kernel; policies hold",
        )
    }
}

/// Whether an authority elsewhere gives certificates.
fn authority(certificates: &Certificates) -> Option<CheckItem> {
    let (address, failures) = certificates.service()?;
    let what = "certificate authority answers";
    Some(match failures.first() {
        None => CheckItem::ok("agent", what, address),
        Some((identity, reason)) => CheckItem::failed(
            "agent",
            what,
            format!(
                "{} identities get no certificate, {identity}: {reason}",
                failures.len()
            ),
            "certificates in use stay until their end; it is tried again",
        ),
    })
}

fn tier(tier: &Tier, datapath: &Datapath) -> String {
    if datapath.knob(Knob::ShortCircuitOff) != 0 {
        return "off: by the operator (map knobs)".to_owned();
    }
    match tier {
        Tier::Automatic => "on".to_owned(),
        Tier::OptIn { reason } => format!("for workloads that opt in: {reason}"),
        Tier::Off { reason } => format!("off: {reason}"),
    }
}

/// Whether the account of flows is complete.
fn account(datapath: &Datapath) -> CheckItem {
    let counters = datapath.counters();
    let of = |counter: Counter| counters[counter as usize];
    let (flows, events) = (of(Counter::FlowsDropped), of(Counter::EventsDropped));
    let what = "every flow is in the account";
    if flows == 0 {
        let detail = format!("{events} events dropped, {} denied", of(Counter::Denied));
        CheckItem::ok("agent", what, detail)
    } else {
        let detail = format!("{flows} flows have no record: the map flows was full");
        let hint = "close connections, or restart the agent to begin a new count";
        CheckItem::warning("agent", what, detail, hint)
    }
}
