//! What clients know of the services that they use: `meshctl endpoints`.

use serde::{Deserialize, Serialize};

/// What a client knows of one port of a service, or of a subset of it: `meshctl endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// `<name>.<namespace>` of the client.
    pub client: String,
    /// Host of the service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// Subset, where a route names one.
    pub subset: Option<String>,
    /// Connections that are open, or being made.
    pub connections: GaugeView,
    /// Requests that wait for a connection.
    pub pending: GaugeView,
    /// Requests (for TCP: connections) on their way.
    pub requests: GaugeView,
    /// Retries under way.
    pub retries: GaugeView,
    /// Ejections that `maxEjectionPercent` forbade.
    pub refused_ejections: u64,
    /// Routes that have bounds of their own.
    #[serde(default)]
    pub routes: Vec<RouteGaugesView>,
    /// Endpoints.
    pub endpoints: Vec<ClusterEndpointView>,
}

/// What a route with bounds of its own has under way to a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteGaugesView {
    /// `namespace/name of the VirtualService/name of the route`.
    pub route: String,
    /// Requests on their way, those included that wait for a connection.
    pub requests: GaugeView,
    /// Of those: that wait for a connection.
    #[serde(default = "GaugeView::none")]
    pub pending: GaugeView,
    /// Retries under way.
    pub retries: GaugeView,
    /// How long its breaker sends nothing yet, in seconds; `None` where requests pass.
    #[serde(default)]
    pub open_s: Option<u64>,
    /// Requests that the breaker has refused.
    #[serde(default)]
    pub broken: u64,
}

/// How many there are of something that is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GaugeView {
    /// Now.
    pub now: u32,
    /// At most; `None` without bound.
    pub limit: Option<u32>,
    /// How often there would have been more.
    pub refused: u64,
}

impl GaugeView {
    /// Where an agent does not tell.
    fn none() -> Self {
        Self {
            now: 0,
            limit: None,
            refused: 0,
        }
    }
}

/// An endpoint as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterEndpointView {
    /// `address:port`, or `host:port` for endpoints that are resolved by DNS.
    pub address: String,
    /// `<name>.<namespace>` of the workload, where the mesh knows it.
    pub workload: Option<String>,
    /// Requests (for TCP: connections) on their way to it.
    pub active: u32,
    /// All that ever were.
    pub total: u64,
    /// Why it does not pass its probe, where it does not.
    #[serde(default)]
    pub unhealthy: Option<String>,
    /// How often it was taken out of service.
    #[serde(default)]
    pub ejections: u64,
    /// Why and how long it is out of service, where it is.
    pub ejected: Option<EjectionView>,
}

/// An endpoint out of service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectionView {
    /// Why.
    pub reason: String,
    /// Seconds since it was taken out.
    pub since_s: u64,
    /// Seconds until it comes back.
    pub until_s: u64,
    /// How often it has been out.
    pub count: u64,
}
