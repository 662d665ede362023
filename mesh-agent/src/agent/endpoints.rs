//! What the clients of this node know of endpoints, for people.

use std::time::Instant;

use crate::admin::api::{
    ClusterEndpointView, ClusterView, EjectionView, GaugeView, RouteGaugesView,
};
use crate::balance::{Clusters, Gauge};
use crate::proxy::http::{HttpCluster, HttpPool};

/// All clusters, by client and service.
pub(super) fn views(clusters: &Clusters<HttpPool>) -> Vec<ClusterView> {
    let now = Instant::now();
    let mut views: Vec<_> = clusters
        .all()
        .iter()
        .map(|cluster| {
            cluster.sweep(now);
            view(cluster, now)
        })
        .collect();
    views.sort_by(|a, b| {
        (&a.client, &a.service, a.port, &a.subset).cmp(&(&b.client, &b.service, b.port, &b.subset))
    });
    views
}

/// How many there are of something, and may be.
pub(super) fn gauge(gauge: &Gauge, limit: Option<u32>) -> GaugeView {
    GaugeView {
        now: gauge.now(),
        limit,
        refused: gauge.refused(),
    }
}

fn view(cluster: &HttpCluster, now: Instant) -> ClusterView {
    let policy = cluster.policy();
    let gauges = &cluster.gauges;
    let members = cluster.members();
    let endpoints = members
        .iter()
        .map(|(member, ejection)| ClusterEndpointView {
            address: member.host.address.to_string(),
            workload: member
                .endpoint
                .workload
                .as_ref()
                .map(|workload| workload.name.to_string()),
            active: member.host.in_flight(),
            total: member.host.served(),
            unhealthy: member.endpoint.unhealthy.as_deref().map(str::to_owned),
            ejections: member.host.monitor.ejections(),
            ejected: ejection.map(|ejection| EjectionView {
                reason: ejection.cause.to_string(),
                since_s: now.saturating_duration_since(ejection.since).as_secs(),
                until_s: ejection.until.saturating_duration_since(now).as_secs(),
                count: ejection.count,
            }),
        });
    ClusterView {
        client: cluster.key.client.to_string(),
        service: cluster.key.service.clone(),
        port: cluster.key.port,
        subset: cluster.key.subset.clone(),
        connections: gauge(&gauges.connections, policy.tcp.max_connections),
        pending: gauge(&gauges.pending, policy.http.max_pending),
        requests: gauge(&gauges.requests, policy.http.max_requests),
        retries: gauge(&gauges.retries, cluster.max_retries()),
        refused_ejections: cluster.refused_ejections(),
        routes: (cluster.routes().iter())
            .map(|route| RouteGaugesView {
                route: route.route.clone(),
                requests: gauge(&route.requests, route.max_requests()),
                pending: gauge(&route.pending, route.max_pending()),
                retries: gauge(&route.retries, route.max_retries()),
                open_s: route.breaker.open_for(now).map(|left| left.as_secs()),
                broken: route.broken(),
            })
            .collect(),
        endpoints: endpoints.collect(),
    }
}
