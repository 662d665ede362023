//! What rules look at.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use http::{HeaderMap, Method, Version};

use crate::registry::Workload;

/// What routing looks at in a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Host header or `:authority`, as it was sent; may be empty.
    pub authority: &'a str,
    /// Method.
    pub method: &'a Method,
    /// Path with query.
    pub path_and_query: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// For header edits that say them.
    pub facts: Facts,
}

impl<'a> RequestView<'a> {
    pub(super) fn path(&self) -> &'a str {
        self.path_and_query
            .split_once('?')
            .map_or(self.path_and_query, |(path, _)| path)
    }

    pub(super) fn query(&self) -> &'a str {
        self.raw_query().unwrap_or_default()
    }

    pub(super) fn raw_query(&self) -> Option<&'a str> {
        self.path_and_query.split_once('?').map(|(_, query)| query)
    }
}

/// What routing looks at in the client's workload.
#[derive(Clone, Copy, Debug)]
pub struct ClientView<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The node it runs on, where that is known.
    pub node: Option<&'a str>,
}

impl<'a> ClientView<'a> {
    /// A workload as routing sees it.
    pub fn of(workload: &'a Workload) -> Self {
        Self {
            namespace: &workload.name.namespace,
            labels: &workload.labels,
            node: workload.node.as_deref(),
        }
    }
}

/// What values may say of a request beside what routing looks at.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Address of the client's application.
    pub client: SocketAddr,
    /// Address that it asked for.
    pub destination: SocketAddr,
    /// Version of HTTP that it speaks.
    pub version: Version,
    /// The clock, for values that say the time.
    pub now: fn() -> SystemTime,
}
