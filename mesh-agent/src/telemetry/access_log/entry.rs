//! What a line says, and how.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use serde::ser::{SerializeMap, Serializer};

use super::super::Flags;
use crate::identity::Identity;
use crate::route::format::date;

/// One request, or one connection; of what is not there the line says `-`.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// When it began.
    pub start_time: SystemTime,
    /// Method.
    pub method: Option<&'a str>,
    /// Path with query, as the client sent it.
    pub path: Option<&'a str>,
    /// Version of HTTP.
    pub protocol: Option<&'a str>,
    /// Status; 0 where there is none.
    pub response_code: u16,
    /// What happened beside.
    pub response_flags: Flags,
    /// Why the status is what it is.
    pub response_code_details: Option<&'a str>,
    /// Why the client's connection was ended.
    pub connection_termination_details: Option<&'a str>,
    /// Why there was no connection to the endpoint.
    pub upstream_transport_failure_reason: Option<&'a str>,
    /// From the client; of HTTP those of the body.
    pub bytes_received: u64,
    /// To the client; of HTTP those of the body.
    pub bytes_sent: u64,
    /// From its beginning to its end.
    pub duration: Duration,
    /// Until the answer began, in milliseconds.
    pub upstream_service_time: Option<u64>,
    /// Header field.
    pub x_forwarded_for: Option<&'a [u8]>,
    /// Header field.
    pub user_agent: Option<&'a [u8]>,
    /// Header field.
    pub request_id: Option<&'a [u8]>,
    /// Host.
    pub authority: Option<&'a str>,
    /// Address of the endpoint.
    pub upstream_host: Option<&'a str>,
    /// Istio's name of the service, port and subset.
    pub upstream_cluster: Option<&'a str>,
    /// Of the connection to the endpoint.
    pub upstream_local_address: Option<SocketAddr>,
    /// What the client asked for.
    pub downstream_local_address: Option<SocketAddr>,
    /// The client.
    pub downstream_remote_address: Option<SocketAddr>,
    /// Of a TLS client.
    pub requested_server_name: Option<&'a str>,
    /// Name of the rule.
    pub route_name: Option<&'a str>,
    /// Status of a call of gRPC's.
    pub grpc_status: Option<u16>,
    /// Whether the client came by mutual TLS.
    pub mtls: bool,
    /// Who the client is, as it has proven.
    pub peer_identity: Option<&'a Identity>,
    /// All of the request's, where somebody wants them.
    pub request_headers: Option<&'a HeaderMap>,
    /// All of the answer's, where somebody wants them.
    pub response_headers: Option<&'a HeaderMap>,
}

impl Entry<'_> {
    /// When something began that has lasted so long by now.
    pub fn began(duration: Duration) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(duration).unwrap_or(now)
    }
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            start_time: UNIX_EPOCH,
            method: None,
            path: None,
            protocol: None,
            response_code: 0,
            response_flags: Flags::default(),
            response_code_details: None,
            connection_termination_details: None,
            upstream_transport_failure_reason: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            upstream_service_time: None,
            x_forwarded_for: None,
            user_agent: None,
            request_id: None,
            authority: None,
            upstream_host: None,
            upstream_cluster: None,
            upstream_local_address: None,
            downstream_local_address: None,
            downstream_remote_address: None,
            requested_server_name: None,
            route_name: None,
            grpc_status: None,
            mtls: false,
            peer_identity: None,
            request_headers: None,
            response_headers: None,
        }
    }
}

const NONE: &str = "-";

impl Entry<'_> {
    /// In Istio's default format.
    pub(super) fn text(&self, line: &mut Vec<u8>) {
        // Writing to a vector does not fail.
        let _ = self.write_text(line);
    }

    fn write_text(&self, line: &mut Vec<u8>) -> std::io::Result<()> {
        let or = |text: Option<&'_ str>| text.unwrap_or(NONE).to_owned();
        write!(
            line,
            "[{}] \"{} {} {}\" {} {} ",
            self.start(),
            self.method.unwrap_or(NONE),
            self.path.unwrap_or(NONE),
            self.protocol.unwrap_or(NONE),
            self.response_code,
            self.response_flags,
        )?;
        // Not in quotes: blanks would make them several fields.
        for details in [
            self.response_code_details,
            self.connection_termination_details,
        ] {
            write!(line, "{} ", or(details).replace([' ', '\n'], "_"))?;
        }
        write!(
            line,
            "\"{}\" {} {} {} ",
            or(self.upstream_transport_failure_reason).replace(['"', '\n'], "'"),
            self.bytes_received,
            self.bytes_sent,
            self.duration.as_millis(),
        )?;
        match self.upstream_service_time {
            Some(ms) => write!(line, "{ms}")?,
            None => line.extend_from_slice(NONE.as_bytes()),
        }
        for field in [
            self.x_forwarded_for,
            self.user_agent,
            self.request_id,
            self.authority.map(str::as_bytes),
            self.upstream_host.map(str::as_bytes),
        ] {
            line.extend_from_slice(b" \"");
            line.extend_from_slice(field.unwrap_or(NONE.as_bytes()));
            line.push(b'"');
        }
        write!(line, " {} ", self.upstream_cluster.unwrap_or(NONE))?;
        for address in [
            self.upstream_local_address,
            self.downstream_local_address,
            self.downstream_remote_address,
        ] {
            match address {
                Some(address) => write!(line, "{address} ")?,
                None => line.extend_from_slice(b"- "),
            }
        }
        let name = self.requested_server_name.unwrap_or(NONE);
        write!(line, "{name} {}", self.route_name.unwrap_or(NONE))
    }

    /// By Istio's names of the fields.
    pub(super) fn json(&self, line: &mut Vec<u8>) {
        // Text and numbers always are JSON, and writing to a vector does not fail.
        let _ = self.write_json(line);
    }

    fn write_json(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8_lossy(b).into_owned());
        let address = |address: Option<SocketAddr>| address.map(|address| address.to_string());
        let mut writer = serde_json::Serializer::new(line);
        let mut map = writer.serialize_map(Some(24))?;
        let e = &mut map;
        e.serialize_entry("start_time", &self.start())?;
        e.serialize_entry("route_name", &self.route_name)?;
        e.serialize_entry("method", &self.method)?;
        e.serialize_entry("path", &self.path)?;
        e.serialize_entry("protocol", &self.protocol)?;
        e.serialize_entry("response_code", &self.response_code)?;
        e.serialize_entry("response_flags", &self.response_flags.to_string())?;
        e.serialize_entry("response_code_details", &self.response_code_details)?;
        e.serialize_entry(
            "connection_termination_details",
            &self.connection_termination_details,
        )?;
        e.serialize_entry("bytes_received", &self.bytes_received)?;
        e.serialize_entry("bytes_sent", &self.bytes_sent)?;
        e.serialize_entry("duration", &(self.duration.as_millis() as u64))?;
        // A header field, so it is text.
        let service_time = self.upstream_service_time.map(|ms| ms.to_string());
        e.serialize_entry("upstream_service_time", &service_time)?;
        e.serialize_entry("x_forwarded_for", &text(self.x_forwarded_for))?;
        e.serialize_entry("user_agent", &text(self.user_agent))?;
        e.serialize_entry("request_id", &text(self.request_id))?;
        e.serialize_entry("authority", &self.authority)?;
        e.serialize_entry("upstream_host", &self.upstream_host)?;
        e.serialize_entry("upstream_cluster", &self.upstream_cluster)?;
        let local = address(self.upstream_local_address);
        e.serialize_entry("upstream_local_address", &local)?;
        let local = address(self.downstream_local_address);
        e.serialize_entry("downstream_local_address", &local)?;
        let remote = address(self.downstream_remote_address);
        e.serialize_entry("downstream_remote_address", &remote)?;
        e.serialize_entry("requested_server_name", &self.requested_server_name)?;
        e.serialize_entry(
            "upstream_transport_failure_reason",
            &self.upstream_transport_failure_reason,
        )?;
        map.end()
    }

    /// `2026-11-28T09:05:59.012Z`.
    fn start(&self) -> String {
        let since = self.start_time.duration_since(UNIX_EPOCH);
        let since = since.unwrap_or_default();
        let seconds = since.as_secs();
        let (year, month, day) = date(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let ms = since.subsec_millis();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Flag;
    use super::*;

    fn request() -> Entry<'static> {
        Entry {
            start_time: UNIX_EPOCH + Duration::from_millis(1_709_251_199_045),
            method: Some("GET"),
            path: Some("/reviews/1?x=\"y\""),
            protocol: Some("HTTP/1.1"),
            response_code: 503,
            response_flags: Flag::UpstreamConnectionFailure.into(),
            response_code_details: Some("reset{connection failure}"),
            upstream_transport_failure_reason: Some("TLS \"alert\""),
            bytes_sent: 91,
            duration: Duration::from_micros(4_900),
            user_agent: Some(b"curl/8\xff"),
            authority: Some("reviews"),
            upstream_host: Some("10.1.0.2:9080"),
            upstream_cluster: Some("outbound|9080|v1|reviews.default.svc.cluster.local"),
            downstream_local_address: Some(([10, 96, 0, 1], 9080).into()),
            downstream_remote_address: Some(([10, 1, 0, 3], 4000).into()),
            route_name: Some("default"),
            ..Entry::default()
        }
    }

    fn text(entry: &Entry<'_>) -> String {
        let mut line = Vec::new();
        entry.text(&mut line);
        String::from_utf8_lossy(&line).into_owned()
    }

    #[test]
    fn text_is_istios() {
        assert_eq!(
            text(&request()),
            "[2024-02-29T23:59:59.045Z] \"GET /reviews/1?x=\"y\" HTTP/1.1\" 503 UF reset{connection_failure} - \
             \"TLS 'alert'\" 0 91 4 - \"-\" \"curl/8\u{fffd}\" \"-\" \"reviews\" \"10.1.0.2:9080\" \
             outbound|9080|v1|reviews.default.svc.cluster.local - 10.96.0.1:9080 10.1.0.3:4000 - default"
        );
        assert_eq!(
            text(&Entry::default()),
            "[1970-01-01T00:00:00.000Z] \"- - -\" 0 - - - \"-\" 0 0 0 - \"-\" \"-\" \"-\" \"-\" \"-\" - - - - - -"
        );
    }

    #[test]
    fn json_has_istios_fields() {
        let mut line = Vec::new();
        request().json(&mut line);
        let json: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(24));
        assert_eq!(json["path"], "/reviews/1?x=\"y\"");
        assert_eq!(json["response_code"], 503);
        assert_eq!(json["response_flags"], "UF");
        assert_eq!(json["duration"], 4);
        assert_eq!(json["upstream_service_time"], serde_json::Value::Null);
        assert_eq!(json["downstream_remote_address"], "10.1.0.3:4000");
        assert_eq!(json["upstream_transport_failure_reason"], "TLS \"alert\"");
    }
}
