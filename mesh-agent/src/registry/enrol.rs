//! Workloads from `WorkloadEntry` resources.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::group::{Group, Groups};
use super::{Placement, SameNode, ShortCircuit, Tunnel, WhenAgentIsDown, Workload, WorkloadName};
use crate::identity::Identity;
use crate::memo::{Memo, Same};
use crate::resource::scalar::HostName;
use crate::resource::workload_group::ProbeSpec;
use crate::resource::{Address, Finding, Meta, Resource, WorkloadEntrySpec, WorkloadGroupSpec};

/// Prefix of the annotations below.
const PREFIX: &str = "undermesh.io/";
/// The network namespace: its name (`ip netns`) or path.
const NETNS: &str = "undermesh.io/netns";
/// A process in the network namespace.
const PID: &str = "undermesh.io/pid";
/// A container, by id.
const CONTAINER: &str = "undermesh.io/container";
/// A control group of the host's own network namespace.
const CGROUP: &str = "undermesh.io/cgroup";
/// The node.
const NODE: &str = "undermesh.io/node";
/// Further addresses, with commas between them.
const ADDRESSES: &str = "undermesh.io/addresses";
/// What becomes of its connections while no agent runs: `true` for left alone, `false` for refused.
const FAIL_OPEN: &str = "undermesh.io/fail-open";
/// Connections without an agent on the way.
const DIRECT: &str = "undermesh.io/direct";
/// The short-circuit.
const SHORT_CIRCUIT: &str = "undermesh.io/short-circuit";
/// How its connections on this node travel.
const SAME_NODE: &str = "undermesh.io/same-node";
/// Label of workloads that speak HBONE (Istio ambient).
const TUNNEL: (&str, &str) = ("networking.istio.io/tunnel", "http");
/// Label of workloads that have a sidecar of Istio.
const TLS_MODE: (&str, &str) = ("security.istio.io/tlsMode", "istio");
/// Service account of workloads that do not name one.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// Most addresses of one workload.
const MAX_ADDRESSES: usize = 16;

/// A workload, and its name in DNS where it has no address.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) workload: Arc<Workload>,
    pub(super) host: Option<HostName>,
}

/// All workloads, in file order, and the one at each address.
pub(super) struct Workloads {
    pub(super) candidates: Vec<Candidate>,
    pub(super) by_address: HashMap<IpAddr, Arc<Workload>>,
    pub(super) probes: HashMap<WorkloadName, Arc<ProbeSpec>>,
}

/// What has been made of which entry and its group.
pub(super) type Compiled = Memo<
    (
        Same<Resource<WorkloadEntrySpec>>,
        Option<Same<Resource<WorkloadGroupSpec>>>,
    ),
    One,
>;

/// One workload, and what was to tell of it.
#[derive(Clone, Debug)]
pub(super) struct One {
    candidate: Candidate,
    probe: Option<Arc<ProbeSpec>>,
    findings: Arc<[Finding]>,
}

impl One {
    fn new(
        entry: &Resource<WorkloadEntrySpec>,
        group: Option<&Group<'_>>,
        trust_domain: &Arc<str>,
    ) -> Self {
        let mut findings = Vec::new();
        let (entry, probe) = Groups::complete(entry, group, &mut findings);
        let workload = workload(&entry.meta, &entry.spec, trust_domain, &mut findings);
        let host = match &entry.spec.address {
            Some(Address::Host(host)) => Some(host.clone()),
            _ => None,
        };
        Self {
            candidate: Candidate {
                workload: Arc::new(workload),
                host,
            },
            probe,
            findings: findings.into(),
        }
    }
}

pub(super) fn workloads(
    entries: &[Arc<Resource<WorkloadEntrySpec>>],
    groups: &[Arc<Resource<WorkloadGroupSpec>>],
    trust_domain: &Arc<str>,
    compiled: &mut Compiled,
    findings: &mut Vec<Finding>,
) -> Workloads {
    let mut candidates = Vec::with_capacity(entries.len());
    let mut by_address: HashMap<IpAddr, Arc<Workload>> = HashMap::new();
    let mut probes = HashMap::new();
    let groups = Groups::new(groups);
    for entry in entries {
        let group = groups.of(entry);
        let parts = (Same::new(entry), group.map(|(group, _)| Same::new(group)));
        let One {
            candidate,
            probe,
            findings: found,
        } = compiled.get(parts, || One::new(entry, group, trust_domain));
        findings.extend_from_slice(&found);
        let workload = &candidate.workload;
        for &address in &workload.addresses {
            let first = by_address
                .entry(address)
                .or_insert_with(|| workload.clone());
            // Several containers may live in one namespace.
            // So may several units of the host.
            let of_host =
                |workload: &Workload| matches!(workload.placement, Some(Placement::Cgroup(_)));
            let together = first.placement.is_some() && first.placement == workload.placement
                || of_host(first) && of_host(workload);
            if first.name != workload.name && !together {
                let reason = format!(
                    "{address} is the address of workload {} already ({}); several workloads \
                     share an address only where they name the same {NETNS}",
                    first.name, first.origin
                );
                findings.push(Finding::error(&entry.meta, "spec.address", reason));
            }
        }
        if let Some(probe) = probe {
            probes.insert(workload.name.clone(), probe);
        }
        candidates.push(candidate);
    }
    Workloads {
        candidates,
        by_address,
        probes,
    }
}

fn workload(
    meta: &Meta,
    spec: &WorkloadEntrySpec,
    trust_domain: &Arc<str>,
    findings: &mut Vec<Finding>,
) -> Workload {
    let annotations = Annotations::read(meta, findings);
    let mut addresses = Vec::new();
    if let Some(Address::Ip(address)) = spec.address {
        addresses.push(address);
    }
    for address in annotations.addresses {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if annotations.placement.is_some() && addresses.is_empty() {
        let reason = "a workload of this machine needs an IP address";
        findings.push(Finding::error(meta, "spec.address", reason));
    }
    // As in Istio, the object's own labels beat the specification's.
    let mut labels = spec.labels.clone();
    labels.extend(meta.labels.clone());

    let mut workload = endpoint_workload(meta, &meta.name, spec, trust_domain);
    workload.addresses = addresses;
    // In the host's own namespace nothing that arrives is intercepted.
    let hears_tunnels = (annotations.placement.as_ref())
        .is_some_and(|placement| !matches!(placement, Placement::Cgroup(_)));
    workload.tunnel = if hears_tunnels {
        Tunnel::Hbone
    } else {
        tunnel(&labels)
    };
    workload.labels = Arc::new(labels);
    workload.placement = annotations.placement;
    workload.node = annotations.node;
    workload.when_agent_is_down = annotations.when_agent_is_down;
    workload.direct = annotations.direct;
    workload.short_circuit = annotations.short_circuit;
    workload.same_node = annotations.same_node;
    workload
}

/// A workload by its specification alone, as `ServiceEntry.endpoints[]` gives it.
pub(super) fn endpoint_workload(
    meta: &Meta,
    name: &str,
    spec: &WorkloadEntrySpec,
    trust_domain: &Arc<str>,
) -> Workload {
    let namespace: Arc<str> = meta.namespace.as_str().into();
    let account = spec.service_account.as_deref();
    Workload {
        name: WorkloadName {
            name: name.into(),
            namespace: namespace.clone(),
        },
        labels: Arc::new(spec.labels.clone()),
        identity: Identity {
            trust_domain: trust_domain.clone(),
            namespace,
            service_account: account.unwrap_or(DEFAULT_SERVICE_ACCOUNT).into(),
        },
        addresses: match spec.address {
            Some(Address::Ip(address)) => vec![address],
            _ => Vec::new(),
        },
        ports: (spec.ports.iter())
            .map(|(name, port)| (name.clone(), port.0))
            .collect(),
        node: None,
        placement: None,
        when_agent_is_down: None,
        direct: false,
        short_circuit: None,
        same_node: None,
        tunnel: tunnel(&spec.labels),
        locality: spec.locality.clone(),
        weight: spec.weight.max(1),
        origin: meta.origin.to_string(),
    }
}

/// What the workload's labels say of it, as Istio sets them.
fn tunnel(labels: &BTreeMap<String, String>) -> Tunnel {
    let has = |(label, value): (&str, &str)| labels.get(label).is_some_and(|it| it == value);
    if has(TUNNEL) {
        Tunnel::Hbone
    } else if has(TLS_MODE) {
        Tunnel::Sidecar
    } else {
        Tunnel::None
    }
}

/// What the annotations of an entry say.
#[derive(Default)]
struct Annotations {
    placement: Option<Placement>,
    node: Option<String>,
    addresses: Vec<IpAddr>,
    when_agent_is_down: Option<WhenAgentIsDown>,
    direct: bool,
    short_circuit: Option<ShortCircuit>,
    same_node: Option<SameNode>,
}

impl Annotations {
    fn read(meta: &Meta, findings: &mut Vec<Finding>) -> Self {
        let mut read = Self::default();
        let ours = (meta.annotations.iter()).filter(|(key, _)| key.starts_with(PREFIX));
        for (key, value) in ours {
            let field = || format!("metadata.annotations[{key}]");
            let placement = match key.as_str() {
                NODE => {
                    read.node = (!value.is_empty()).then(|| value.clone());
                    continue;
                }
                ADDRESSES => {
                    match addresses(value) {
                        Ok(addresses) => read.addresses = addresses,
                        Err(reason) => findings.push(Finding::error(meta, field(), reason)),
                    }
                    continue;
                }
                FAIL_OPEN => {
                    match value.as_str() {
                        "true" => read.when_agent_is_down = Some(WhenAgentIsDown::Pass),
                        "false" => read.when_agent_is_down = Some(WhenAgentIsDown::Refuse),
                        _ => {
                            let reason = format!("{value:?} is neither \"true\" nor \"false\"");
                            findings.push(Finding::error(meta, field(), reason));
                        }
                    }
                    continue;
                }
                DIRECT => {
                    match value.as_str() {
                        "true" => read.direct = true,
                        "false" => read.direct = false,
                        _ => {
                            let reason = format!("{value:?} is neither \"true\" nor \"false\"");
                            findings.push(Finding::error(meta, field(), reason));
                        }
                    }
                    continue;
                }
                SHORT_CIRCUIT => {
                    match value.parse() {
                        Ok(setting) => read.short_circuit = Some(setting),
                        Err(reason) => findings.push(Finding::error(meta, field(), reason)),
                    }
                    continue;
                }
                SAME_NODE => {
                    match value.as_str() {
                        "attest" => read.same_node = Some(SameNode::Attest),
                        "encrypt" => read.same_node = Some(SameNode::Encrypt),
                        _ => {
                            let reason = format!("{value:?} is neither \"attest\" nor \"encrypt\"");
                            findings.push(Finding::error(meta, field(), reason));
                        }
                    }
                    continue;
                }
                NETNS => netns(value),
                PID => pid(value),
                CONTAINER => container(value),
                CGROUP => cgroup(value),
                _ => {
                    let known = [
                        NETNS,
                        PID,
                        CONTAINER,
                        CGROUP,
                        NODE,
                        ADDRESSES,
                        FAIL_OPEN,
                        DIRECT,
                        SAME_NODE,
                        SHORT_CIRCUIT,
                    ]
                    .join(", ");
                    let reason =
                        format!("is not an annotation that the mesh knows; it knows {known}");
                    findings.push(Finding::warning(meta, field(), reason));
                    continue;
                }
            };
            let error = match placement {
                Ok(_) if read.placement.is_some() => {
                    format!("only one of {NETNS}, {PID}, {CONTAINER} and {CGROUP} may be given")
                }
                Ok(placement) => {
                    read.placement = Some(placement);
                    continue;
                }
                Err(reason) => reason,
            };
            findings.push(Finding::error(meta, field(), error));
        }
        read
    }
}

fn netns(value: &str) -> Result<Placement, String> {
    if value.is_empty() || value == "." || value == ".." {
        Err(format!("{value:?} is not a network namespace"))
    } else if value.contains('/') && !value.starts_with('/') {
        Err(format!(
            "{value:?} is neither the name of a network namespace nor an absolute path"
        ))
    } else {
        Ok(Placement::Netns(value.to_owned()))
    }
}

fn pid(value: &str) -> Result<Placement, String> {
    match value.parse() {
        // Process ids are positive 32-bit integers with a sign.
        Ok(pid) if pid > 0 && i32::try_from(pid).is_ok() => Ok(Placement::Pid(pid)),
        _ => Err(format!("{value:?} is not the id of a process")),
    }
}

fn container(value: &str) -> Result<Placement, String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    if !value.is_empty() && !value.starts_with('.') && value.bytes().all(plain) {
        Ok(Placement::Container(value.to_owned()))
    } else {
        Err(format!("{value:?} is not the id of a container"))
    }
}

fn cgroup(value: &str) -> Result<Placement, String> {
    let mut parts = value.split('/').skip(1);
    let plain = parts.all(|part| !part.is_empty() && part != "." && part != "..");
    if value.len() > 1 && value.starts_with('/') && plain {
        Ok(Placement::Cgroup(value.to_owned()))
    } else {
        Err(format!(
            "{value:?} is not the path of a control group, such as /system.slice/web.service"
        ))
    }
}

fn addresses(value: &str) -> Result<Vec<IpAddr>, String> {
    let texts: Vec<&str> = value.split(',').map(str::trim).collect();
    if texts.len() > MAX_ADDRESSES {
        return Err(format!("has more than {MAX_ADDRESSES} addresses"));
    }
    let address = |text: &str| match text.parse::<IpAddr>() {
        Ok(address) if !address.is_unspecified() && !address.is_multicast() => Ok(address),
        _ => Err(format!("{text:?} is not the IP address of a workload")),
    };
    texts.into_iter().map(address).collect()
}
