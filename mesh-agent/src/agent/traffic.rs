//! What has been counted of requests and connections of this node: by its clients, and by
//! those of its workloads that were called.

use std::collections::HashMap;
use std::sync::Arc;

use crate::admin::metrics::{Asked, Ends, Traffic};
use crate::balance::Clusters;
use crate::proxy::Node;
use crate::proxy::http::HttpPool;
use crate::registry::{Registry, Service, Workload, WorkloadName};
use crate::telemetry::Side;
use crate::telemetry::connections::ConnectionCounts;

/// All of it.
pub(super) fn traffic(clusters: &Clusters<HttpPool>, node: &Node, cluster: &str) -> Traffic {
    let snapshot = node.snapshot.load();
    let mut traffic = Traffic {
        rules: snapshot.telemetry.clone(),
        cluster: cluster.to_owned(),
        ..Traffic::default()
    };
    as_clients(&mut traffic, clusters, node, &snapshot.registry);
    as_servers(&mut traffic, node, &snapshot.registry);
    traffic
}

fn as_clients(
    traffic: &mut Traffic,
    clusters: &Clusters<HttpPool>,
    node: &Node,
    registry: &Registry,
) {
    let ends = |client: &Arc<Workload>, host: &str| {
        let service = registry.service_of_host(host, &client.name.namespace);
        Ends {
            side: Side::Client,
            client: Some(client.clone()),
            client_identity: Some(client.identity.clone()),
            service: Asked {
                host: Some(host.to_owned()),
                namespace: service.map(|service| service.namespace.clone()),
            },
            endpoint: None,
            mutual_tls: None,
        }
    };
    for cluster in clusters.all() {
        let client = cluster.client();
        for (member, _) in cluster.members() {
            let ends = Ends {
                endpoint: member.endpoint.workload.clone(),
                ..ends(&client, &cluster.key.service)
            };
            let pool = &member.host.pool;
            for (outcome, counts) in pool.requests.all() {
                traffic.requests.push((ends.clone(), outcome, counts));
            }
            let connections = pool.connections.counts();
            if connections != ConnectionCounts::default() {
                traffic.connections.push((ends, connections));
            }
        }
    }
    for (client, service, tally) in node.telemetry.unreached.all() {
        for (outcome, counts) in tally.all() {
            let ends = ends(&client, &service);
            traffic.requests.push((ends, outcome, counts));
        }
    }
}

fn as_servers(traffic: &mut Traffic, node: &Node, registry: &Registry) {
    let locals = node.locals.load();
    // The first service that leads to a port, as in Istio.
    let mut services: HashMap<(&WorkloadName, u16), &Service> = HashMap::new();
    for service in &registry.services {
        for endpoint in &service.endpoints {
            let Some(workload) = &endpoint.workload else {
                continue;
            };
            if locals.named(&workload.name).is_some() {
                for port in endpoint.ports.values() {
                    services.entry((&workload.name, *port)).or_insert(service);
                }
            }
        }
    }
    for local in locals.all() {
        for (source, arrived) in local.callers.all() {
            let service = services.get(&(&local.workload.name, source.port));
            let ends = Ends {
                side: Side::Server,
                client: source.workload,
                client_identity: source.identity,
                service: Asked {
                    host: service.map(|service| service.host.clone()),
                    namespace: service.map(|service| service.namespace.clone()),
                },
                endpoint: Some(local.workload.clone()),
                mutual_tls: Some(source.mutual_tls),
            };
            for (outcome, counts) in arrived.requests.all() {
                traffic.requests.push((ends.clone(), outcome, counts));
            }
            let connections = arrived.connections.counts();
            if connections != ConnectionCounts::default() {
                traffic.connections.push((ends, connections));
            }
        }
    }
}
