//! The same routes as one Envoy has them, which stands beside one workload:
//! the shortest static configuration that does the same.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::super::envoy::socket;
use super::WORKLOADS;

/// A listener with a virtual host for each service, and a cluster for each of its versions.
pub fn configuration(services: usize, port: u16) -> Value {
    let hosts: Vec<_> = (0..services).map(virtual_host).collect();
    let clusters: Vec<_> = (0..services)
        .flat_map(|number| [cluster(number, 1), cluster(number, 2)])
        .collect();
    json!({
        "static_resources": {
            "listeners": [{
                "name": "http",
                "address": socket(Ipv4Addr::UNSPECIFIED, port),
                "filter_chains": [{ "filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "http",
                        "route_config": { "virtual_hosts": hosts },
                        "http_filters": [{
                            "name": "envoy.filters.http.router",
                            "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                            },
                        }],
                    },
                }] }],
            }],
            "clusters": clusters,
        },
    })
}

fn virtual_host(number: usize) -> Value {
    let second = json!({ "cluster": name(number, 2), "timeout": "0s" });
    let shares = json!({
        "timeout": "3s",
        "weighted_clusters": { "clusters": [
            { "name": name(number, 1), "weight": 90 },
            { "name": name(number, 2), "weight": 10 },
        ] },
    });
    let full = format!("s{number}.default.svc.cluster.local");
    json!({
        "name": full,
        "domains": [full, format!("s{number}"), format!("10.96.{}.{}", number / 250, number % 250 + 1)],
        "routes": [
            {
                "match": {
                    "prefix": "/",
                    "headers": [{ "name": "end-user", "string_match": { "exact": "jason" } }],
                },
                "route": second,
            },
            { "match": { "prefix": "/v2" }, "route": second },
            { "match": { "prefix": "/" }, "route": shares },
        ],
    })
}

fn cluster(number: usize, version: usize) -> Value {
    let name = name(number, version);
    let group = number % (WORKLOADS / 2);
    // As the lab gives addresses to workloads, from 1.
    let host = u8::try_from(2 * group + version).unwrap_or(u8::MAX);
    json!({
        "name": name,
        "type": "STATIC",
        "outlier_detection": { "max_ejection_percent": 50 },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{
                "endpoint": { "address": socket(Ipv4Addr::new(10, 77, 1, host), 8080) },
            }] }],
        },
    })
}

fn name(number: usize, version: usize) -> String {
    format!("s{number}-v{version}")
}
