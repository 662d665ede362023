//! What would become of a request: `meshctl routes`.

use serde::{Deserialize, Serialize};

/// A request whose way is asked for: `meshctl routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteQuestion {
    /// `<name>[.<namespace>]` of the client.
    pub workload: String,
    /// Host and port as the client writes them.
    pub authority: String,
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
}

/// What would become of a request, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    /// Service that the request is for.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// `VirtualService namespace/name` whose rules decide.
    pub rules_of: Option<String>,
    /// Rules that were looked at, in order.
    pub rules: Vec<RuleView>,
    /// What happens, in words.
    pub outcome: String,
    /// Where it may go.
    pub destinations: Vec<RouteDestinationView>,
}

/// A rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// Field of the resource, `http[0]`.
    pub field: String,
    /// Name, where it has one.
    pub name: String,
    /// Why it does not match; `None` for the one that does.
    pub mismatch: Option<String>,
}

/// A place where a request may go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteDestinationView {
    /// Host of the service.
    pub host: String,
    /// Subset.
    pub subset: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Share of the requests, in percent.
    pub percent: f64,
    /// `name/namespace` of the DestinationRule that applies.
    pub destination_rule: Option<String>,
    /// Number of endpoints.
    pub endpoints: usize,
    /// Why it would be refused.
    pub problem: Option<String>,
    /// Requests are only copied there.
    pub mirror: bool,
}
