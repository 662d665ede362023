//! What filters and formats can ask of a line.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::HeaderMap;

use super::Entry;
use crate::telemetry::expression::{Attribute, Facts, Value};

impl Facts for Entry<'_> {
    fn get(&self, attribute: &Attribute) -> Option<Value<'_>> {
        let text = |text: Option<&str>| text.map(|text| Value::Text(text.to_owned().into()));
        let number = |number: u64| Some(Value::Int(i64::try_from(number).unwrap_or(i64::MAX)));
        let address = |address: Option<SocketAddr>| Some(Value::Text(address?.to_string().into()));
        let port = |address: Option<SocketAddr>| Some(Value::Int(address?.port().into()));
        match attribute {
            Attribute::Path => text(self.path),
            Attribute::UrlPath => text(self.path.and_then(|path| path.split('?').next())),
            Attribute::Host => text(self.authority),
            Attribute::Method => text(self.method),
            Attribute::Protocol => text(self.protocol),
            Attribute::RequestSize => number(self.bytes_received),
            Attribute::Duration => Some(Value::Duration(self.duration)),
            Attribute::RequestHeader(name) => self.request_field(name).map(Value::Text),
            // Of a connection there is none.
            Attribute::Code => number(self.method.map(|_| self.response_code.into())?),
            Attribute::CodeDetails => text(self.response_code_details),
            Attribute::GrpcStatus => number(self.grpc_status?.into()),
            Attribute::ResponseSize => number(self.bytes_sent),
            Attribute::ResponseHeader(name) => self.response_field(name).map(Value::Text),
            Attribute::Mtls => Some(Value::Bool(self.mtls)),
            Attribute::RequestedServerName => text(self.requested_server_name),
            Attribute::PeerIdentity => Some(Value::Text(self.peer_identity?.to_string().into())),
            Attribute::TerminationDetails => text(self.connection_termination_details),
            Attribute::SourceAddress => address(self.downstream_remote_address),
            Attribute::SourcePort => port(self.downstream_remote_address),
            Attribute::DestinationAddress => address(self.downstream_local_address),
            Attribute::DestinationPort => port(self.downstream_local_address),
            Attribute::UpstreamAddress => text(self.upstream_host),
            Attribute::TransportFailureReason => text(self.upstream_transport_failure_reason),
            Attribute::ClusterName => text(self.upstream_cluster),
            Attribute::RouteName => text(self.route_name),
        }
    }
}

impl Entry<'_> {
    /// A field of the request, or what HTTP/2 would have as one.
    pub(super) fn request_field(&self, name: &str) -> Option<Cow<'_, str>> {
        let kept = match name {
            ":method" => self.method.map(str::as_bytes),
            ":path" => self.path.map(str::as_bytes),
            ":authority" | "host" => self.authority.map(str::as_bytes),
            "x-forwarded-for" => self.x_forwarded_for,
            "user-agent" => self.user_agent,
            "x-request-id" => self.request_id,
            _ => return field(self.request_headers, name),
        };
        kept.map(String::from_utf8_lossy)
    }

    /// A field of the answer.
    pub(super) fn response_field(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            "x-envoy-upstream-service-time" => {
                self.upstream_service_time.map(|ms| ms.to_string().into())
            }
            ":status" => self.method.map(|_| self.response_code.to_string().into()),
            _ => field(self.response_headers, name),
        }
    }
}

/// Whether a field of the request is there without all header fields.
pub(super) fn is_kept(name: &str) -> bool {
    let kept = [
        ":method",
        ":path",
        ":authority",
        "host",
        "x-forwarded-for",
        "user-agent",
        "x-request-id",
        // Of answers.
        "x-envoy-upstream-service-time",
        ":status",
    ];
    kept.contains(&name)
}

fn field<'h>(headers: Option<&'h HeaderMap>, name: &str) -> Option<Cow<'h, str>> {
    let value = headers?.get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()))
}
