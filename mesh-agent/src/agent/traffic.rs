//! What has been counted of the requests and connections of this node's clients.

use crate::admin::metrics::{Ends, Traffic};
use crate::balance::Clusters;
use crate::proxy::http::HttpPool;
use crate::telemetry::Telemetry;
use crate::telemetry::requests::ConnectionCounts;

/// All of it.
pub(super) fn traffic(clusters: &Clusters<HttpPool>, telemetry: &Telemetry) -> Traffic {
    let mut traffic = Traffic::default();
    for cluster in clusters.all() {
        let client = cluster.client();
        for (member, _) in cluster.members() {
            let ends = Ends {
                client: client.clone(),
                service: cluster.key.service.clone(),
                endpoint: member.endpoint.workload.clone(),
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
    for (client, service, tally) in telemetry.unreached.all() {
        let ends = Ends {
            client,
            service,
            endpoint: None,
        };
        for (outcome, counts) in tally.all() {
            traffic.requests.push((ends.clone(), outcome, counts));
        }
    }
    traffic
}
