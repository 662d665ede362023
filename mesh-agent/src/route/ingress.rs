//! How connections to a workload are handed to its applications, as its Sidecar says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::upstream_policy::{HttpLimits, TcpLimits, resolve_http, resolve_tcp};
use super::{ClientView, Routes};
use crate::registry::{Protocol, Registry, WorkloadName, of_port};
use crate::resource::PortProtocol;
use crate::resource::destination_rule::ConnectionPool;
use crate::resource::sidecar::{DefaultEndpoint, IngressListener, SidecarSpec};

/// `ingress` and `inboundConnectionPool` of one Sidecar.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    ports: BTreeMap<u16, InboundPort>,
    /// Ports that are not named.
    others: InboundPort,
}

/// What a Sidecar says of one port.
#[derive(Clone, Debug, Default)]
pub struct InboundPort {
    /// Where the application listens, if not at the address that is asked for.
    pub endpoint: Option<DefaultEndpoint>,
    /// What is spoken, if the Sidecar says so.
    pub protocol: Option<Protocol>,
    /// Bounds of connections to the application.
    pub limits: Option<Arc<InboundLimits>>,
}

/// Bounds of connections to an application.
#[derive(Debug)]
pub struct InboundLimits {
    /// For establishing one.
    pub connect_timeout: Option<Duration>,
    /// Of connections.
    pub tcp: TcpLimits,
    /// Of requests.
    pub http: HttpLimits,
}

impl InboundLimits {
    fn compile(pool: &ConnectionPool) -> Arc<Self> {
        let tcp = pool.tcp.as_ref();
        Arc::new(Self {
            connect_timeout: (tcp.and_then(|tcp| tcp.connect_timeout)).map(|timeout| timeout.0),
            tcp: tcp.map(resolve_tcp).unwrap_or_default(),
            http: resolve_http(pool.http.as_ref(), tcp),
        })
    }
}

impl InboundPort {
    /// A port's own bounds take the place of those for all, whole.
    fn compile(listener: &IngressListener, for_all: Option<&Arc<InboundLimits>>) -> Self {
        let own = listener.connection_pool.as_ref();
        Self {
            endpoint: (listener.default_endpoint.as_deref()).and_then(DefaultEndpoint::parse),
            protocol: listener.port.as_ref().and_then(|port| {
                let said = port.protocol.clone().unwrap_or_default();
                let said = PortProtocol::try_from(said).unwrap_or_default();
                let name = port.name.as_deref().unwrap_or_default();
                let protocol = of_port(said, name, u16::try_from(port.number).ok()?);
                Some(protocol).filter(|protocol| *protocol != Protocol::Auto)
            }),
            limits: own.map(InboundLimits::compile).or(for_all.cloned()),
        }
    }
}

impl Inbound {
    pub(super) fn compile(spec: &SidecarSpec) -> Self {
        let limits = spec.inbound_connection_pool.as_ref();
        let limits = limits.map(InboundLimits::compile);
        let ports = spec.ingress.iter().filter_map(|listener| {
            let number = u16::try_from(listener.port.as_ref()?.number).ok()?;
            Some((number, InboundPort::compile(listener, limits.as_ref())))
        });
        Self {
            ports: ports.collect(),
            others: InboundPort {
                limits,
                ..InboundPort::default()
            },
        }
    }

    fn at(&self, port: u16) -> Option<&InboundPort> {
        let of_all = || Some(&self.others).filter(|others| others.limits.is_some());
        self.ports.get(&port).or_else(of_all)
    }
}

impl Routes {
    /// What the Sidecar of a workload says of connections to one of its ports.
    pub fn inbound(&self, workload: &ClientView<'_>, port: u16) -> Option<&InboundPort> {
        self.sidecar_of(workload)?.inbound.at(port)
    }

    /// Ports of a workload at which its Sidecar has an application that listens elsewhere.
    pub fn ingress<'r>(&'r self, workload: &ClientView<'_>) -> impl Iterator<Item = u16> + use<'r> {
        let sidecar = self.sidecar_of(workload).into_iter();
        let ports = sidecar.flat_map(|sidecar| &sidecar.inbound.ports);
        ports
            .filter(|(_, port)| port.endpoint.is_some())
            .map(|(number, _)| *number)
    }

    /// What is spoken at ports of workloads, as far as Sidecars say it.
    pub fn ingress_protocols(&self, registry: &Registry) -> HashMap<(WorkloadName, u16), Protocol> {
        let workloads = registry.workloads.iter();
        let of_each = workloads.flat_map(|workload| {
            let sidecar = self.sidecar_of(&ClientView::of(workload)).into_iter();
            let ports = sidecar.flat_map(|sidecar| &sidecar.inbound.ports);
            ports.filter_map(|(number, port)| {
                Some(((workload.name.clone(), *number), port.protocol?))
            })
        });
        of_each.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::route::fixture::{resource, routes_of_sidecars};

    const VIEW: ClientView<'static> = ClientView {
        namespace: "shop",
        labels: &BTreeMap::new(),
        node: None,
    };

    fn routes(spec: &str) -> Routes {
        routes_of_sidecars(vec![resource("Sidecar", "shop/s", spec)])
    }

    #[test]
    fn a_port_stands_for_another_address() {
        let routes = routes(
            "{ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: '127.0.0.1:8080'}, \
             {port: {number: 81, name: grpc-a}, defaultEndpoint: '0.0.0.0:8081'}, {port: {number: 82}}]}",
        );
        let at = |port| {
            let inbound = routes.inbound(&VIEW, port).unwrap();
            let asked_for = format!("10.0.0.1:{port}").parse().unwrap();
            let behind = inbound.endpoint.map(|endpoint| endpoint.behind(asked_for));
            (behind.map(|address| address.to_string()), inbound.protocol)
        };
        assert_eq!(
            at(80),
            (Some("127.0.0.1:8080".to_owned()), Some(Protocol::Http))
        );
        assert_eq!(
            at(81),
            (Some("10.0.0.1:8081".to_owned()), Some(Protocol::Grpc))
        );
        assert_eq!(at(82), (None, None));
        assert!(routes.inbound(&VIEW, 83).is_none());
        assert_eq!(routes.ingress(&VIEW).collect::<Vec<_>>(), [80, 81]);
    }

    #[test]
    fn a_ports_own_bounds_take_the_place_of_those_for_all() {
        let routes = routes(
            "{inboundConnectionPool: {tcp: {maxConnections: 1, connectTimeout: 3s}}, \
             ingress: [{port: {number: 80}, connectionPool: {http: {http2MaxRequests: 2}}}, {port: {number: 81}}]}",
        );
        let at = |port| {
            let inbound = routes.inbound(&VIEW, port).unwrap();
            let limits = inbound.limits.clone().unwrap();
            let http = (limits.http.max_requests, limits.http.max_pending);
            (limits.tcp.max_connections, limits.connect_timeout, http)
        };
        assert_eq!(at(80), (None, None, (Some(2), None)));
        let for_all = (Some(1), Some(Duration::from_secs(3)), (None, None));
        assert_eq!((at(81), at(82)), (for_all, for_all));
    }
}
