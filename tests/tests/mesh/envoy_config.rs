//! Envoy's configuration, put together from parts: JSON is YAML, too.

use std::fmt::Display;
use std::path::PathBuf;

use mesh_tests::Lab;
use serde_json::{Map, Value, json};

/// All of it.
pub fn bootstrap(listeners: &[Value], clusters: &[Value]) -> String {
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}}).to_string()
}

/// `kind` is the type's name below `envoy.extensions`.
pub fn extension(name: &str, kind: &str, fields: Value) -> Value {
    json!({"name": name, "typed_config": typed(kind, fields)})
}

fn typed(kind: &str, mut fields: Value) -> Value {
    fields["@type"] = format!("type.googleapis.com/envoy.extensions.{kind}").into();
    fields
}

pub fn address(host: impl Display, port: u16) -> Value {
    json!({"socket_address": {"address": host.to_string(), "port_value": port}})
}

/// Hands what comes to one filter.
pub fn listener(name: &str, address: Value, filter: Value) -> Value {
    json!({"name": name, "address": address, "filter_chains": [{"filters": [filter]}]})
}

pub fn tcp_proxy(fields: Value) -> Value {
    let kind = "filters.network.tcp_proxy.v3.TcpProxy";
    extension("tcp", kind, with(json!({"stat_prefix": "tcp"}), fields))
}

/// HTTP with one route for all hosts.
pub fn http_proxy(route: Value, fields: Value) -> Value {
    let routes = json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]});
    let router = extension("router", "filters.http.router.v3.Router", json!({}));
    let all = json!({"stat_prefix": "http", "route_config": routes, "http_filters": [router]});
    let kind = "filters.network.http_connection_manager.v3.HttpConnectionManager";
    extension("http", kind, with(all, fields))
}

/// A cluster of one endpoint.
pub fn cluster(name: &str, endpoint: Value, fields: Value) -> Value {
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}]);
    let assignment = json!({"cluster_name": name, "endpoints": endpoints});
    with(
        json!({"name": name, "type": "STATIC", "load_assignment": assignment}),
        fields,
    )
}

/// Fields of a cluster that speaks this version of HTTP: `http_protocol_options` or `http2_protocol_options`.
pub fn speaks(version: &str) -> Value {
    let kind = "upstreams.http.v3.HttpProtocolOptions";
    let options = typed(kind, json!({"explicit_http_config": {version: {}}}));
    json!({"typed_extension_protocol_options": {format!("envoy.extensions.{kind}"): options}})
}

/// What who has this certificate and key takes from `peer` of namespace `default`, and from nobody else.
pub fn mutual_tls(
    lab: &Lab,
    (chain, key): &(PathBuf, PathBuf),
    peer: &str,
    protocols: &[&str],
    oldest: &str,
) -> Value {
    let root = lab.ca().join("root-cert.pem");
    let peer = format!("spiffe://cluster.local/ns/default/sa/{peer}");
    json!({
        "alpn_protocols": protocols,
        "tls_params": {"tls_minimum_protocol_version": oldest, "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}],
        "validation_context": {
            "trusted_ca": {"filename": root},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    })
}

/// What a client of TLS does.
pub fn client_tls(common: Value, fields: Value) -> Value {
    let kind = "transport_sockets.tls.v3.UpstreamTlsContext";
    let all = with(json!({"common_tls_context": common}), fields);
    json!({"transport_socket": extension("tls", kind, all)})
}

/// What a server of TLS does, which wants to know its clients.
pub fn server_tls(common: Value) -> Value {
    let kind = "transport_sockets.tls.v3.DownstreamTlsContext";
    let all = json!({"common_tls_context": common, "require_client_certificate": true});
    json!({"transport_socket": extension("tls", kind, all)})
}

/// The fields of both objects.
pub fn with(one: Value, other: Value) -> Value {
    let fields = [one, other].into_iter().filter_map(|value| match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    Value::Object(fields.flatten().collect::<Map<_, _>>())
}
