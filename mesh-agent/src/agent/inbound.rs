//! What is open to applications that a Sidecar bounds, for people.

use super::endpoints::gauge;
use crate::admin::api::InboundView;
use crate::proxy::Locals;
use crate::route::ClientView;
use crate::snapshot::Snapshot;

/// All ports that have bounds and have been used, by workload.
pub(super) fn views(locals: &Locals, snapshot: &Snapshot) -> Vec<InboundView> {
    let mut views = Vec::new();
    for local in locals.all() {
        let client = ClientView::of(&local.workload);
        for (number, port) in local.inbound.all() {
            let inbound = snapshot.routes.inbound(&client, number);
            let Some(limits) = inbound.and_then(|inbound| inbound.limits.as_ref()) else {
                continue;
            };
            views.push(InboundView {
                workload: local.workload.name.to_string(),
                port: number,
                connections: gauge(&port.connections, limits.tcp.max_connections),
                pending: gauge(&port.pending, limits.http.max_pending),
                requests: gauge(&port.requests, limits.http.max_requests),
            });
        }
    }
    views.sort_by(|a, b| (&a.workload, a.port).cmp(&(&b.workload, b.port)));
    views
}
