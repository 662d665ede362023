//! The line that every request ends in.

use std::fmt;
use std::time::Instant;

use http::{Request, StatusCode};

use crate::balance::EndpointAddress;

/// Collects what a request's line says; writes it when it is dropped.
pub(super) struct Record(Option<Box<Fields>>);

struct Fields {
    began: Instant,
    method: String,
    path: String,
    authority: String,
    client: String,
    route: String,
    service: String,
    endpoint: String,
    status: u16,
    flags: Flags,
    reason: String,
    attempts: u32,
    bytes_sent: u64,
    ended: bool,
}

/// Envoy's response flags, separated by commas; `-` for none.
#[derive(Default)]
struct Flags(Vec<&'static str>);

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        for (i, flag) in self.0.iter().enumerate() {
            write!(f, "{}{flag}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Record {
    /// Costs nothing where nobody reads the line.
    pub(super) fn begin<B>(
        request: &Request<B>,
        authority: &str,
        client: &dyn fmt::Display,
    ) -> Self {
        if !tracing::enabled!(target: "mesh_agent::request", tracing::Level::DEBUG) {
            return Self(None);
        }
        Self(Some(Box::new(Fields {
            began: Instant::now(),
            method: request.method().to_string(),
            path: request
                .uri()
                .path_and_query()
                .map_or("", |path| path.as_str())
                .to_owned(),
            authority: authority.to_owned(),
            client: client.to_string(),
            route: String::new(),
            service: String::new(),
            endpoint: String::new(),
            status: 0,
            flags: Flags::default(),
            reason: String::new(),
            attempts: 0,
            bytes_sent: 0,
            ended: false,
        })))
    }

    fn with(&mut self, change: impl FnOnce(&mut Fields)) {
        if let Some(fields) = &mut self.0 {
            change(fields);
        }
    }

    pub(super) fn route(&mut self, name: &str) {
        self.with(|fields| name.clone_into(&mut fields.route));
    }

    pub(super) fn attempt(&mut self, service: &str, endpoint: &EndpointAddress) {
        self.with(|fields| {
            service.clone_into(&mut fields.service);
            fields.endpoint = endpoint.to_string();
            fields.attempts += 1;
        });
    }

    pub(super) fn flag(&mut self, flag: &'static str) {
        self.with(|fields| fields.flags.0.push(flag));
    }

    pub(super) fn reason(&mut self, reason: &dyn fmt::Display) {
        self.with(|fields| fields.reason = reason.to_string());
    }

    pub(super) fn status(&mut self, status: StatusCode) {
        self.with(|fields| fields.status = status.as_u16());
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.with(|fields| fields.bytes_sent += bytes as u64);
    }

    /// The answer was given whole.
    pub(super) fn end(&mut self) {
        self.with(|fields| fields.ended = true);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(mut fields) = self.0.take() else {
            return;
        };
        if !fields.ended && fields.flags.0.is_empty() {
            fields.flags.0.push("DC");
        }
        tracing::debug!(
            target: "mesh_agent::request",
            client = %fields.client,
            method = %fields.method,
            authority = %fields.authority,
            path = %fields.path,
            status = fields.status,
            flags = %fields.flags,
            reason = %fields.reason,
            route = %fields.route,
            service = %fields.service,
            endpoint = %fields.endpoint,
            attempts = fields.attempts,
            bytes_sent = fields.bytes_sent,
            duration_ms = fields.began.elapsed().as_millis() as u64,
            "request"
        );
    }
}
