//! What can be asked of a request or a connection.

/// One of Envoy's attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// `request.path`: with the query.
    Path,
    /// `request.url_path`: without.
    UrlPath,
    /// `request.host`.
    Host,
    /// `request.method`.
    Method,
    /// `request.protocol`.
    Protocol,
    /// `request.size`.
    RequestSize,
    /// `request.duration`.
    Duration,
    /// `request.headers[name]`, and fields that have a name of their own.
    RequestHeader(String),
    /// `response.code`.
    Code,
    /// `response.code_details`.
    CodeDetails,
    /// `response.grpc_status`.
    GrpcStatus,
    /// `response.size`.
    ResponseSize,
    /// `response.headers[name]`.
    ResponseHeader(String),
    /// `connection.mtls`.
    Mtls,
    /// `connection.requested_server_name`.
    RequestedServerName,
    /// `connection.uri_san_peer_certificate`.
    PeerIdentity,
    /// `connection.termination_details`.
    TerminationDetails,
    /// `source.address`.
    SourceAddress,
    /// `source.port`.
    SourcePort,
    /// `destination.address`.
    DestinationAddress,
    /// `destination.port`.
    DestinationPort,
    /// `upstream.address`.
    UpstreamAddress,
    /// `upstream.transport_failure_reason`.
    TransportFailureReason,
    /// `xds.cluster_name`.
    ClusterName,
    /// `xds.route_name`.
    RouteName,
}

impl Attribute {
    /// By its path, with a key in brackets at the end.
    pub(super) fn named(path: &str, key: Option<&str>) -> Option<Self> {
        let header = |name: &str| Self::RequestHeader(name.to_owned());
        Some(match (path, key) {
            ("request.headers", Some(name)) => header(&name.to_ascii_lowercase()),
            ("response.headers", Some(name)) => Self::ResponseHeader(name.to_ascii_lowercase()),
            (_, Some(_)) => return None,
            ("request.path", _) => Self::Path,
            ("request.url_path", _) => Self::UrlPath,
            ("request.host", _) => Self::Host,
            ("request.method", _) => Self::Method,
            ("request.protocol", _) => Self::Protocol,
            ("request.size", _) => Self::RequestSize,
            ("request.duration", _) => Self::Duration,
            ("request.id", _) => header("x-request-id"),
            ("request.useragent", _) => header("user-agent"),
            ("request.referer", _) => header("referer"),
            ("response.code", _) => Self::Code,
            ("response.code_details", _) => Self::CodeDetails,
            ("response.grpc_status", _) => Self::GrpcStatus,
            ("response.size", _) => Self::ResponseSize,
            ("connection.mtls", _) => Self::Mtls,
            ("connection.requested_server_name", _) => Self::RequestedServerName,
            ("connection.uri_san_peer_certificate", _) => Self::PeerIdentity,
            ("connection.termination_details", _) => Self::TerminationDetails,
            ("source.address", _) => Self::SourceAddress,
            ("source.port", _) => Self::SourcePort,
            ("destination.address", _) => Self::DestinationAddress,
            ("destination.port", _) => Self::DestinationPort,
            ("upstream.address", _) => Self::UpstreamAddress,
            ("upstream.transport_failure_reason", _) => Self::TransportFailureReason,
            ("xds.cluster_name", _) => Self::ClusterName,
            ("xds.route_name", _) => Self::RouteName,
            // `request.headers.name` is the same as with brackets.
            _ => match path.rsplit_once('.')? {
                (headers @ ("request.headers" | "response.headers"), name) => {
                    return Self::named(headers, Some(name));
                }
                _ => return None,
            },
        })
    }

    /// Whether it is a header field, of which all have to be kept.
    pub fn is_header(&self) -> bool {
        matches!(self, Self::RequestHeader(_) | Self::ResponseHeader(_))
    }
}
