//! Chooses an endpoint: a function of the endpoints, what is known of their
//! load, and chance.

mod load;

pub use load::{InFlight, Load};

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rand::Rng;

use crate::registry::{Endpoint, Service};
use crate::route::Algorithm;

/// What identifies an endpoint over changes of configuration, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// A socket address.
    Socket(SocketAddr),
    /// A name that has to be resolved, and a port.
    Name(Arc<str>, u16),
}

impl EndpointAddress {
    /// The address of an endpoint for a port of the service, where it serves that port.
    pub fn of(endpoint: &Endpoint, service_port: u16) -> Option<Self> {
        let port = *endpoint.ports.get(&service_port)?;
        match (endpoint.address, &endpoint.host) {
            (Some(ip), _) => Some(Self::Socket(SocketAddr::new(ip, port))),
            (None, Some(host)) => Some(Self::Name(host.as_str().into(), port)),
            (None, None) => None,
        }
    }
}

impl std::fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What a choice is made for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Port of the service.
    pub port: u16,
    /// Labels of the subset; `None` for all endpoints.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// How to choose.
    pub algorithm: Algorithm,
    /// Endpoints to avoid where there are others, because they have been tried.
    pub avoid: &'a [EndpointAddress],
    /// Address of the client: endpoints of its family come first where a service has both.
    pub like: Option<IpAddr>,
}

impl Wanted<'_> {
    fn serves(&self, endpoint: &Endpoint) -> bool {
        endpoint.ports.contains_key(&self.port)
            && (endpoint.address.is_some() || endpoint.host.is_some())
            && self.labels.is_none_or(|labels| {
                labels
                    .iter()
                    .all(|(key, value)| endpoint.labels.get(key) == Some(value))
            })
    }

    fn is_new(&self, endpoint: &Endpoint) -> bool {
        self.avoid.is_empty()
            || EndpointAddress::of(endpoint, self.port)
                .is_none_or(|address| !self.avoid.contains(&address))
    }

    fn is_like(&self, endpoint: &Endpoint) -> bool {
        match (self.like, endpoint.address) {
            (Some(like), Some(address)) => like.is_ipv4() == address.is_ipv4(),
            _ => true,
        }
    }
}

/// Chooses an endpoint of a service; `None` where none serves the port (and subset).
pub fn choose<'s>(
    service: &'s Service,
    wanted: &Wanted<'_>,
    load: &Load,
    random: &mut impl Rng,
) -> Option<&'s Arc<Endpoint>> {
    let all = |endpoint: &Endpoint| wanted.serves(endpoint);
    let like = |endpoint: &Endpoint| wanted.serves(endpoint) && wanted.is_like(endpoint);
    let new = |endpoint: &Endpoint| wanted.serves(endpoint) && wanted.is_new(endpoint);
    let best = |endpoint: &Endpoint| like(endpoint) && wanted.is_new(endpoint);
    choose_among(service, wanted, best, load, random)
        // A server may listen in one address family only.
        .or_else(|| choose_among(service, wanted, new, load, random))
        .or_else(|| choose_among(service, wanted, like, load, random))
        .or_else(|| choose_among(service, wanted, all, load, random))
}

fn choose_among<'s>(
    service: &'s Service,
    wanted: &Wanted<'_>,
    may: impl Fn(&Endpoint) -> bool,
    load: &Load,
    random: &mut impl Rng,
) -> Option<&'s Arc<Endpoint>> {
    let eligible = || service.endpoints.iter().filter(|endpoint| may(endpoint));
    let (count, sum) = eligible().fold((0u32, 0u64), |(count, sum), endpoint| {
        (count + 1, sum + u64::from(endpoint.weight.max(1)))
    });
    // The endpoint at a point of the line on which each is as long as its weight.
    let at = |mut point: u64| {
        eligible().find(|endpoint| {
            let weight = u64::from(endpoint.weight.max(1));
            let found = point < weight;
            point = point.saturating_sub(weight);
            found
        })
    };
    match (count, wanted.algorithm) {
        (0, _) => None,
        (1, _) => eligible().next(),
        (_, Algorithm::Random) => at(random.random_range(0..sum)),
        (_, Algorithm::RoundRobin) => at(load.next(cursor_key(service, wanted)) % sum),
        (_, Algorithm::LeastRequest) => {
            let first = at(random.random_range(0..sum))?;
            // The second is drawn from the line without the first.
            let weight = u64::from(first.weight.max(1));
            let before: u64 = eligible()
                .take_while(|endpoint| !Arc::ptr_eq(endpoint, first))
                .map(|endpoint| u64::from(endpoint.weight.max(1)))
                .sum();
            let point = random.random_range(0..sum - weight);
            let second = at(if point < before {
                point
            } else {
                point + weight
            })?;
            let cost = |endpoint: &Endpoint| {
                let active = EndpointAddress::of(endpoint, wanted.port)
                    .map_or(0, |address| load.in_flight(&address));
                (u64::from(active) + 1) * u64::from(u32::MAX) / u64::from(endpoint.weight.max(1))
            };
            Some(if cost(second) < cost(first) {
                second
            } else {
                first
            })
        }
    }
}

fn cursor_key(service: &Service, wanted: &Wanted<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&service.host, wanted.port, wanted.labels).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
