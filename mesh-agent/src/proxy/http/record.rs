//! What is told of a request when it has ended.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Version};
use tokio::time::Instant;

use super::connector::Connector;
use super::pool::HttpPool;
use super::request_body::BodySource;
use super::request_id::REQUEST_ID;
use super::upstream::HttpCluster;
use super::{ConnectionContext, message};
use crate::balance::{Member, full_name};
use crate::registry::{Service, Workload};
use crate::route::format::protocol;
use crate::telemetry::access_log::Entry;
use crate::telemetry::requests::{Measures, Outcome};
use crate::telemetry::rules::Logging;
use crate::telemetry::{Flag, Flags, Side, Telemetry};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The answer is the endpoint's.
pub(super) const VIA_UPSTREAM: &str = "via_upstream";

/// Collects what is told of a request; tells it when it is dropped.
pub(super) struct Record {
    telemetry: Arc<Telemetry>,
    client: Arc<Workload>,
    began: Instant,
    status: u16,
    flags: Flags,
    bytes_sent: u64,
    /// Beside the body.
    bytes_received: u64,
    body: Option<BodySource>,
    is_grpc: bool,
    grpc_status: Option<u16>,
    cluster: Cluster,
    /// Where it went last.
    member: Option<Arc<Member<HttpPool>>>,
    end: End,
    line: Option<Box<Line>>,
}

/// How an exchange has ended.
enum End {
    /// Not yet.
    Open,
    /// The answer was given whole.
    Whole,
    /// It could not be.
    Broken,
}

/// Where a request goes, or would have gone.
enum Cluster {
    Used(Arc<HttpCluster>),
    Meant {
        service: String,
        port: u16,
        subset: Option<String>,
    },
    /// No rule says; the service of the connection.
    Unknown(Arc<Service>),
}

/// What only a line says, where one is read.
struct Line {
    client_address: SocketAddr,
    destination: SocketAddr,
    method: Method,
    path: Option<PathAndQuery>,
    version: Version,
    authority: String,
    forwarded_for: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    /// All of the request and of its answer, where somebody asks for them.
    headers: Option<Box<(HeaderMap, HeaderMap)>>,
    /// Whether the log has it.
    wanted: Logging,
    route: String,
    local_address: Option<SocketAddr>,
    details: Cow<'static, str>,
    reason: String,
    no_connection: Option<String>,
    attempts: u32,
    service_time: Option<u64>,
}

impl Record {
    /// Costs nearly nothing where nobody reads lines.
    pub(super) fn begin<B, C: Connector>(
        request: &Request<B>,
        authority: &str,
        context: &ConnectionContext<C>,
    ) -> Self {
        let wanted = {
            let rules = &context.snapshot.load().telemetry;
            rules.logging(&context.client, Side::Client)
        };
        let log = &context.telemetry.access_log;
        let is_read = log.is_on(&wanted)
            || tracing::enabled!(target: "mesh_agent::request", tracing::Level::DEBUG);
        let header = |name: &HeaderName| request.headers().get(name).cloned();
        let line = is_read.then(|| {
            Box::new(Line {
                client_address: context.client_address,
                destination: context.original_destination,
                method: request.method().clone(),
                path: request.uri().path_and_query().cloned(),
                version: request.version(),
                authority: authority.to_owned(),
                forwarded_for: header(&FORWARDED_FOR),
                user_agent: header(&USER_AGENT),
                request_id: header(&REQUEST_ID),
                headers: log.needs_headers(&wanted).then(|| {
                    let of_request = request.headers().clone();
                    Box::new((of_request, HeaderMap::new()))
                }),
                wanted,
                route: String::new(),
                local_address: None,
                details: "".into(),
                reason: String::new(),
                no_connection: None,
                attempts: 0,
                service_time: None,
            })
        });
        Self {
            telemetry: context.telemetry.clone(),
            client: context.client.clone(),
            began: Instant::now(),
            status: 0,
            flags: Flags::default(),
            bytes_sent: 0,
            bytes_received: 0,
            body: None,
            is_grpc: message::is_grpc(request.headers()),
            grpc_status: None,
            cluster: Cluster::Unknown(context.service.clone()),
            member: None,
            end: End::Open,
            line,
        }
    }

    fn line(&mut self, change: impl FnOnce(&mut Line)) {
        if let Some(line) = &mut self.line {
            change(line);
        }
    }

    pub(super) fn route(&mut self, name: &str) {
        self.line(|line| name.clone_into(&mut line.route));
    }

    /// The request's body, whose bytes are counted.
    pub(super) fn body(&mut self, body: &BodySource) {
        self.body = Some(body.clone());
    }

    /// Where the request is to go.
    pub(super) fn cluster(&mut self, cluster: &Arc<HttpCluster>) {
        self.cluster = Cluster::Used(cluster.clone());
    }

    /// Where it would have gone.
    pub(super) fn meant(&mut self, service: &str, port: u16, subset: Option<&str>) {
        self.cluster = Cluster::Meant {
            service: service.to_owned(),
            port,
            subset: subset.map(str::to_owned),
        };
    }

    /// Which endpoint it is to go to.
    pub(super) fn chosen(&mut self, member: &Arc<Member<HttpPool>>) {
        self.member = Some(member.clone());
        self.line(|line| line.local_address = None);
    }

    /// It is sent over a connection.
    pub(super) fn attempt(&mut self, member: &Arc<Member<HttpPool>>, local: Option<SocketAddr>) {
        if !self
            .member
            .as_ref()
            .is_some_and(|known| Arc::ptr_eq(known, member))
        {
            self.member = Some(member.clone());
        }
        self.line(|line| {
            line.local_address = local;
            line.no_connection = None;
            line.attempts += 1;
        });
    }

    pub(super) fn flag(&mut self, flag: Flag) {
        self.flags.add(flag);
    }

    pub(super) fn flags(&mut self, flags: Flags) {
        self.flags.extend(flags);
    }

    /// Why the answer is what it is, in Envoy's words.
    pub(super) fn details(&mut self, details: impl Into<Cow<'static, str>>) {
        self.line(|line| line.details = details.into());
    }

    /// The same in ours.
    pub(super) fn reason(&mut self, reason: &dyn fmt::Display) {
        self.line(|line| line.reason = reason.to_string());
    }

    /// Why there was no connection to the endpoint.
    pub(super) fn no_connection(&mut self, cause: String) {
        self.line(|line| line.no_connection = Some(cause));
    }

    /// The answer's head, as the client gets it.
    pub(super) fn answered<B>(&mut self, response: &Response<B>) {
        self.status = response.status().as_u16();
        self.line(|line| {
            if let Some(headers) = &mut line.headers {
                response.headers().clone_into(&mut headers.1);
            }
        });
    }

    /// Time from the request to the beginning of its answer.
    pub(super) fn service_time(&mut self, ms: u64) {
        self.line(|line| line.service_time = Some(ms));
    }

    /// Bytes that came over a connection whose protocol was switched.
    pub(super) fn received(&mut self, bytes: u64) {
        self.bytes_received += bytes;
    }

    /// Status of a call of gRPC's.
    pub(super) fn grpc_status(&mut self, status: u16) {
        self.grpc_status = Some(status);
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.bytes_sent += bytes;
    }

    /// The answer was given whole.
    pub(super) fn end(&mut self) {
        self.end = End::Whole;
    }

    /// The answer ends early, and not because of the client.
    pub(super) fn broken(&mut self, flag: Flag, details: &'static str, cause: &dyn fmt::Display) {
        self.end = End::Broken;
        self.flag(flag);
        self.details(details);
        self.reason(cause);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if matches!(self.end, End::Open) {
            self.flag(Flag::DownstreamConnectionTermination);
            self.details("downstream_remote_disconnect");
        }
        let measures = Measures {
            took: self.began.elapsed(),
            received: self.bytes_received + self.body.as_ref().map_or(0, BodySource::received),
            sent: self.bytes_sent,
        };
        self.count(measures);
        if let Some(line) = &self.line {
            self.tell(line, measures);
        }
    }
}

impl Record {
    fn count(&self, measures: Measures) {
        let outcome = Outcome {
            code: self.status,
            flags: self.flags,
            is_grpc: self.is_grpc,
            grpc_status: self.grpc_status,
        };
        if let Some(member) = &self.member {
            member.host.pool.requests.add(outcome, measures);
            return;
        }
        let service = match &self.cluster {
            Cluster::Used(cluster) => &cluster.key.service,
            Cluster::Meant { service, .. } => service,
            Cluster::Unknown(service) => &service.host,
        };
        let unreached = &self.telemetry.unreached;
        unreached.add(&self.client, service, outcome, measures);
    }

    fn tell(&self, line: &Line, measures: Measures) {
        let duration = measures.took;
        let path = line.path.as_ref().map(PathAndQuery::as_str);
        let cluster = match &self.cluster {
            Cluster::Used(cluster) => Some(cluster.key.full_name()),
            Cluster::Meant {
                service,
                port,
                subset,
            } => Some(full_name(service, *port, subset.as_deref())),
            Cluster::Unknown(_) => None,
        };
        let endpoint = self.member.as_ref();
        let endpoint = endpoint.map(|member| member.host.address.to_string());
        tracing::debug!(
            target: "mesh_agent::request",
            client = %self.client.name,
            method = %line.method,
            authority = %line.authority,
            path = path.unwrap_or_default(),
            status = self.status,
            flags = %self.flags,
            reason = %line.reason,
            route = %line.route,
            cluster = cluster.as_deref().unwrap_or("-"),
            endpoint = endpoint.as_deref().unwrap_or("-"),
            attempts = line.attempts,
            bytes_sent = self.bytes_sent,
            duration_ms = duration.as_millis() as u64,
            "request"
        );
        let log = &self.telemetry.access_log;
        let headers = line.headers.as_deref();
        let entry = Entry {
            start_time: Entry::began(duration),
            method: Some(line.method.as_str()),
            path,
            protocol: Some(protocol(line.version)),
            response_code: self.status,
            response_flags: self.flags,
            response_code_details: Some(&*line.details).filter(|details| !details.is_empty()),
            upstream_transport_failure_reason: line.no_connection.as_deref(),
            bytes_received: measures.received,
            bytes_sent: match line.method {
                // Of an answer of our own only the length is sent.
                Method::HEAD => 0,
                _ => self.bytes_sent,
            },
            duration,
            upstream_service_time: line.service_time,
            x_forwarded_for: line.forwarded_for.as_ref().map(HeaderValue::as_bytes),
            user_agent: line.user_agent.as_ref().map(HeaderValue::as_bytes),
            request_id: line.request_id.as_ref().map(HeaderValue::as_bytes),
            authority: Some(line.authority.as_str()).filter(|authority| !authority.is_empty()),
            upstream_host: endpoint.as_deref(),
            upstream_cluster: cluster.as_deref(),
            upstream_local_address: line.local_address,
            downstream_local_address: Some(line.destination),
            downstream_remote_address: Some(line.client_address),
            route_name: Some(line.route.as_str()).filter(|route| !route.is_empty()),
            grpc_status: self.grpc_status,
            request_headers: headers.map(|(request, _)| request),
            response_headers: headers.map(|(_, response)| response),
            ..Entry::default()
        };
        log.write(&entry, &line.wanted);
    }
}
