//! Envoy as a sidecar: connections are brought to it by iptables REDIRECT in
//! the namespaces of client and server.
//!
//! It gets the shortest configuration that does the work: no access log, no
//! filters but the proxy itself, static clusters.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Result, bail};
use mesh_tests::{Lab, Process, Workload};
use serde_json::{Value, json};

use super::certificates::{CLIENT, Certificates, SERVER};
use super::needs;
use super::pair::{BULK_PORT, HTTP_PORT, HTTP_SERVICE_PORT};

/// Where Envoy's listeners begin: outbound, and inbound of a pair.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;

/// What Envoy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One TCP proxy beside the client, no TLS.
    Tcp,
    /// A pair of TCP proxies with mutual TLS 1.3 between them.
    TcpPair,
    /// The same, and the client's resumes no session: each connection pays a whole handshake.
    TcpPairFull,
    /// A pair of HTTP proxies with mutual TLS 1.3, HTTP/1.1 between them.
    Http1Pair,
    /// The same with HTTP/2 between them.
    Http2Pair,
}

impl Kind {
    fn is_pair(self) -> bool {
        self != Self::Tcp
    }

    fn is_http(self) -> bool {
        matches!(self, Self::Http1Pair | Self::Http2Pair)
    }
}

/// Starts it, and redirects what `client` sends to `vip`.
pub fn start(
    lab: &Lab,
    kind: Kind,
    client: &Workload,
    server: &Workload,
    vip: Ipv4Addr,
) -> Result<Vec<Process>> {
    let certificates = if kind.is_pair() {
        Some(Certificates::make(&lab.folder().join("certificates"))?)
    } else {
        None
    };
    let outbound = Side {
        http: kind.is_http(),
        downstream: None,
        upstream: certificates
            .as_ref()
            .map(|all| tls(all, "client", SERVER, false, kind)),
        http2: kind == Kind::Http2Pair,
        first_port: OUTBOUND,
        to: server.v4,
    };
    let mut processes = vec![run(lab, client, OUTBOUND, &outbound.configuration())?];
    for (index, port) in [(0, HTTP_SERVICE_PORT), (1, BULK_PORT)] {
        redirect(client, "OUTPUT", vip, port, OUTBOUND + index)?;
    }
    if let Some(certificates) = &certificates {
        let inbound = Side {
            http: kind.is_http(),
            downstream: Some(tls(certificates, "server", CLIENT, true, kind)),
            upstream: None,
            http2: false,
            first_port: INBOUND,
            to: Ipv4Addr::LOCALHOST,
        };
        processes.push(run(lab, server, INBOUND, &inbound.configuration())?);
        for (index, port) in [(0, HTTP_PORT), (1, BULK_PORT)] {
            redirect(server, "PREROUTING", server.v4, port, INBOUND + index)?;
        }
    }
    Ok(processes)
}

/// Starts it with this configuration, and waits until it listens on `port`.
pub fn run(lab: &Lab, place: &Workload, port: u16, configuration: &Value) -> Result<Process> {
    let file = lab.folder().join(format!("{}-envoy.json", place.name));
    fs::write(&file, configuration.to_string())?;
    Ok(place.serve(
        port,
        &needs::envoy_binary().to_string_lossy(),
        &[
            "--config-path",
            &file.to_string_lossy(),
            "--disable-hot-restart",
            "--log-level",
            "error",
        ],
    ))
}

fn redirect(place: &Workload, chain: &str, to: Ipv4Addr, port: u16, envoy: u16) -> Result<()> {
    let said = place.run(
        "iptables",
        &[
            "-t",
            "nat",
            "-A",
            chain,
            "-p",
            "tcp",
            "-d",
            &to.to_string(),
            "--dport",
            &port.to_string(),
            "-j",
            "REDIRECT",
            "--to-ports",
            &envoy.to_string(),
        ],
    );
    if said.code != 0 {
        bail!("iptables in {}: {}", place.name, said.stderr.trim());
    }
    Ok(())
}

/// One Envoy: a listener for HTTP, one for bulk, and where they lead.
struct Side {
    http: bool,
    downstream: Option<Value>,
    upstream: Option<Value>,
    /// HTTP/2 towards the upstream.
    http2: bool,
    first_port: u16,
    to: Ipv4Addr,
}

impl Side {
    fn configuration(&self) -> Value {
        json!({
            "static_resources": {
                "listeners": [
                    self.listener("http", self.first_port, if self.http { http_filter() } else { tcp_filter("http") }),
                    self.listener("bulk", self.first_port + 1, tcp_filter("bulk")),
                ],
                "clusters": [
                    self.cluster("http", HTTP_PORT, self.http && self.http2),
                    self.cluster("bulk", BULK_PORT, false),
                ],
            },
        })
    }

    fn listener(&self, name: &str, port: u16, filter: Value) -> Value {
        let mut chain = json!({ "filters": [filter] });
        if let Some(tls) = &self.downstream {
            chain["transport_socket"] = transport("DownstreamTlsContext", tls);
        }
        json!({
            "name": name,
            "address": socket(Ipv4Addr::UNSPECIFIED, port),
            "tcp_backlog_size": 4096,
            "filter_chains": [chain],
        })
    }

    fn cluster(&self, name: &str, port: u16, http2: bool) -> Value {
        const PLENTY: u32 = 1_000_000;
        let mut cluster = json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": { "thresholds": [{
                "max_connections": PLENTY,
                "max_pending_requests": PLENTY,
                "max_requests": PLENTY,
            }] },
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{ "lb_endpoints": [{
                    "endpoint": { "address": socket(self.to, port) },
                }] }],
            },
        });
        if http2 {
            cluster["typed_extension_protocol_options"] = json!({
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            });
        }
        if let Some(tls) = &self.upstream {
            cluster["transport_socket"] = transport("UpstreamTlsContext", tls);
        }
        cluster
    }
}

pub fn socket(address: Ipv4Addr, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

fn tcp_filter(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster,
            "cluster": cluster,
        },
    })
}

/// The same two routes as `stage::ROUTES`.
fn http_filter() -> Value {
    let route = json!({ "cluster": "http", "timeout": "0s" });
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "http",
            "route_config": { "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [
                    {
                        "match": {
                            "prefix": "/",
                            "headers": [{ "name": "end-user", "string_match": { "exact": "jason" } }],
                        },
                        "route": route,
                    },
                    { "match": { "prefix": "/" }, "route": route },
                ],
            }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                },
            }],
        },
    })
}

fn transport(kind: &str, tls: &Value) -> Value {
    let mut config = tls.clone();
    config["@type"] =
        format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}").into();
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}

fn tls(all: &Certificates, side: &str, peer: &str, accepts: bool, kind: Kind) -> Value {
    let mut common = json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": { "filename": all.certificate(side) },
            "private_key": { "filename": all.key(side) },
        }],
        "validation_context": {
            "trusted_ca": { "filename": all.root() },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
        },
    });
    if kind == Kind::Http2Pair {
        common["alpn_protocols"] = json!(["h2"]);
    }
    let mut context = json!({ "common_tls_context": common });
    if accepts {
        context["require_client_certificate"] = true.into();
    } else if kind == Kind::TcpPairFull {
        context["max_session_keys"] = 0.into();
    }
    context
}
