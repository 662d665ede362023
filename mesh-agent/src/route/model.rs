//! The model that all kinds of HTTP routes compile to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use rand::Rng;

use super::cors::Cors;
use super::edit::{PathRewrite, RouteEdits};
use super::matching::Match;
use super::redirect::Redirect;
use super::retry::Retries;
use super::tcp::TcpRule;
use super::tls::TlsRule;
use super::view::ClientView;
use crate::registry::Visibility;
use crate::resource::virtual_service::Destination;
use crate::resource::virtual_service::limits::RouteBounds;

/// The rules of one VirtualService, shared by its hosts.
#[derive(Clone, Debug)]
pub(super) struct VirtualHost(pub(super) Arc<Rules>);

/// Rules in order.
#[derive(Debug)]
pub(super) struct Rules {
    /// `VirtualService namespace/name`.
    pub(super) origin: String,
    /// Of the resource.
    pub(super) namespace: String,
    pub(super) visibility: Visibility,
    pub(super) http: Box<[Rule]>,
    pub(super) tcp: Box<[TcpRule]>,
    pub(super) tls: Box<[TlsRule]>,
}

/// One rule: the first that matches decides.
#[derive(Debug)]
pub(super) struct Rule {
    /// Where it stands in its resource, `http[0]`.
    pub(super) field: String,
    /// Any of them; a rule for all requests has one without conditions.
    pub(super) matches: Box<[Match]>,
    pub(super) cors: Option<Cors>,
    pub(super) fault: Fault,
    pub(super) action: Action,
    /// Edits of the rule, for every action.
    pub(super) edits: RouteEdits,
}

/// What a rule does with a request.
#[derive(Debug)]
pub(super) enum Action {
    Forward(Forward),
    Redirect(Redirect),
    Direct(DirectResponse),
}

impl Action {
    /// Where a request would go.
    pub(super) fn target(&self, random: &mut impl Rng) -> Option<&Target> {
        match self {
            Self::Forward(forward) => forward.targets.pick(random),
            Self::Redirect(_) | Self::Direct(_) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Forward {
    pub(super) targets: Targets<Target>,
    pub(super) path: Option<PathRewrite>,
    pub(super) authority: Option<http::HeaderValue>,
    pub(super) timeout: Option<Duration>,
    pub(super) retries: Retries,
    /// Bounds of the route.
    pub(super) limits: Option<Arc<RouteLimits>>,
    /// Where copies go, with their shares in millionths.
    pub(super) mirrors: Box<[(u32, Target)]>,
}

/// Bounds of one route's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteLimits {
    /// `namespace/name of the VirtualService/name of the route`.
    pub route: String,
    /// How many there may be.
    pub bounds: RouteBounds,
}

/// A destination.
#[derive(Debug)]
pub struct Target {
    /// Full name.
    pub host: String,
    /// Part of its endpoints.
    pub subset: Option<String>,
    /// Port, where the rule names one.
    pub port: Option<u16>,
    pub(super) edits: RouteEdits,
}

impl Target {
    /// All of a service.
    pub(super) fn whole(host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            subset: None,
            port: Some(port),
            edits: RouteEdits::default(),
        }
    }

    pub(super) fn of(
        to: &Destination,
        edits: RouteEdits,
        full_name: &dyn Fn(&str) -> String,
    ) -> Self {
        Self {
            host: full_name(&to.host),
            subset: to.subset.clone(),
            port: to.port.and_then(|port| u16::try_from(port.number).ok()),
            edits,
        }
    }
}

/// An answer without an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Status.
    pub status: StatusCode,
    /// Body, may be empty.
    pub body: Bytes,
}

/// Faults that are injected, with their shares in millionths.
#[derive(Debug, Default)]
pub(super) struct Fault {
    pub(super) delay: Option<(u32, Duration)>,
    pub(super) abort: Option<(u32, super::Abort)>,
}

impl Fault {
    pub(super) fn hits(share: u32, random: &mut impl Rng) -> bool {
        share > 0 && random.random_range(0..1_000_000) < share
    }
}

/// Things to choose from by weight. Weights are shares of their sum.
#[derive(Debug)]
pub(super) struct Targets<T> {
    entries: Vec<(u32, T)>,
    sum: u32,
}

impl<T> Targets<T> {
    /// Sums above `u32::MAX` are refused by validation.
    pub(super) fn new(entries: Vec<(u32, T)>) -> Self {
        let sum = entries
            .iter()
            .fold(0u32, |sum, (weight, _)| sum.saturating_add(*weight));
        Self { entries, sum }
    }

    /// All of them with their shares, in percent.
    pub(super) fn shares(&self) -> impl Iterator<Item = (f64, &T)> {
        let single = self.entries.len() == 1;
        self.entries.iter().map(move |(weight, entry)| {
            let percent = f64::from(*weight) * 100.0 / f64::from(self.sum.max(1));
            (if single { 100.0 } else { percent }, entry)
        })
    }

    /// One of them; a single one whatever its weight.
    pub(super) fn pick(&self, random: &mut impl Rng) -> Option<&T> {
        if let [(_, only)] = self.entries.as_slice() {
            return Some(only);
        }
        let mut point = random.random_range(0..self.sum.max(1));
        self.entries.iter().find_map(|(weight, entry)| {
            if point < *weight {
                return Some(entry);
            }
            point -= weight;
            None
        })
    }
}

impl Rules {
    /// Whether any HTTP rule can ever be for this client; where none can, the
    /// VirtualService does not exist for it (as in Istio, which filters when it configures a client).
    pub(super) fn http_is_for(&self, client: &ClientView<'_>) -> bool {
        self.http.iter().any(|rule| {
            rule.matches
                .iter()
                .any(|block| block.client.matches(client))
        })
    }

    /// Whether any rule for connections can ever be for this client.
    pub(super) fn tcp_is_for(&self, client: &ClientView<'_>) -> bool {
        self.tcp.iter().any(|rule| rule.is_for(client))
            || self.tls.iter().any(|rule| rule.is_for(client))
    }
}
