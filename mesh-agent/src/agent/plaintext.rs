//! Who speaks plaintext to the node's workloads, as people see it.

use std::time::Duration;

use crate::admin::api::PlaintextView;
use crate::policy::MtlsMode;
use crate::proxy::Node;

pub(super) fn views(node: &Node, minutes: u32) -> Vec<PlaintextView> {
    let snapshot = node.snapshot.load();
    let registry = &snapshot.registry;
    let window = Duration::from_secs(u64::from(minutes) * 60);
    let seen = node.plaintext.within(window).into_iter();
    seen.filter_map(|one| {
        let mut workloads = registry.workloads.iter();
        let server = workloads.find(|workload| workload.name == one.server)?;
        let (mode, policy) = snapshot.peer_authentication.mode(server, one.port);
        let client = registry.by_address.get(&one.client);
        Some(PlaintextView {
            workload: server.name.name.to_string(),
            namespace: server.name.namespace.to_string(),
            labels: (*server.labels).clone(),
            port: one.port,
            mode: match mode {
                // Those are cut off already.
                MtlsMode::Strict => return None,
                MtlsMode::Permissive => "PERMISSIVE",
                MtlsMode::Disable => "DISABLE",
            }
            .to_owned(),
            authn_policy: policy.unwrap_or("-").to_owned(),
            client: client.map_or_else(|| one.client.to_string(), |client| client.name.to_string()),
            connections: one.connections,
            last_seen_s: one.ago.as_secs(),
        })
    })
    .collect()
}
