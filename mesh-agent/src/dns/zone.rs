//! The names of the mesh: what a question is answered with, without I/O.
//!
//! Kubernetes' DNS specification gives the names of services; hosts of
//! ServiceEntries are added to them.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use hickory_proto::rr::rdata::{PTR, SRV};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::registry::{Protocol, Registry, Service, ServicePort};

/// Most records of one answer. They fit a DNS message over TCP (65 535 bytes); clients of
/// larger headless services get another part at each question.
const MAX_RECORDS: usize = 1000;

/// Weight of a SRV record; all are alike.
const SRV_WEIGHT: u16 = 100;

/// The names as one client sees them.
#[derive(Clone, Copy)]
pub struct Zone<'a> {
    /// Services and endpoints.
    pub registry: &'a Registry,
    /// Namespace of the client, in which bare service names are looked up.
    pub namespace: &'a str,
    /// Which services of the world outside it sees.
    pub sees: &'a dyn Fn(&Service) -> bool,
    /// Where lists of endpoints start, so that clients that take the first spread.
    pub rotation: usize,
}

/// What to say to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These, at least one.
    Records(Vec<RData>),
    /// The name is ours, but has nothing of the type that was asked for.
    NoData,
    /// The name is in our domain and does not exist.
    NoSuchName,
    /// Somebody else's name: forward the question.
    NotOurs,
}

/// What a name stands for.
#[derive(Debug)]
enum Subject<'a> {
    Service(&'a Service),
    Port(&'a Service, &'a ServicePort),
    Endpoint(Vec<IpAddr>),
    /// A name between ours, such as that of a namespace.
    Between,
    Missing,
}

impl<'a> Zone<'a> {
    /// The answer to a question of class IN.
    pub fn answer(&self, name: &Name, record_type: RecordType) -> Answer {
        if record_type == RecordType::PTR {
            return self.reverse(name);
        }
        let host = host_of(name);
        let Some(subject) = self.subject(&host) else {
            return Answer::NotOurs;
        };
        let records = match subject {
            Subject::Missing => return Answer::NoSuchName,
            Subject::Between => Vec::new(),
            Subject::Endpoint(addresses) => address_records(addresses, record_type),
            Subject::Service(service) if service.headless => {
                address_records(self.endpoint_addresses(service), record_type)
            }
            // Without an address of the mesh (resolution NONE) the public one is right.
            Subject::Service(service) if service.vips.is_empty() && !self.in_domain(&host) => {
                return Answer::NotOurs;
            }
            Subject::Service(service) => address_records(service.vips.clone(), record_type),
            Subject::Port(service, port) if record_type == RecordType::SRV => {
                self.srv_records(service, port)
            }
            Subject::Port(..) => Vec::new(),
        };
        if records.is_empty() {
            Answer::NoData
        } else {
            Answer::Records(records)
        }
    }

    /// Whether the mesh alone answers for `name`, so that an absence can be said.
    pub fn is_in_domain(&self, name: &Name) -> bool {
        self.in_domain(&host_of(name))
    }

    /// `svc.<cluster domain>`.
    pub fn domain(&self) -> String {
        format!("svc.{}", self.registry.cluster_domain)
    }

    fn in_domain(&self, host: &str) -> bool {
        self.below_domain(host).is_some()
    }

    /// The labels of `host` before `svc.<cluster domain>`, dotted.
    fn below_domain<'h>(&self, host: &'h str) -> Option<&'h str> {
        let above = host.strip_suffix(&self.domain())?;
        if above.is_empty() {
            Some(above)
        } else {
            above.strip_suffix('.')
        }
    }

    fn subject(&self, host: &str) -> Option<Subject<'a>> {
        // The names of the cluster are the same for all, as in Kubernetes.
        if let Some(labels) = self.below_domain(host) {
            return Some(match self.registry.by_host.get(host) {
                Some(service) => Subject::Service(service),
                None => self.in_cluster(labels),
            });
        }
        if let Some(service) = self.visible(host) {
            return Some(Subject::Service(service));
        }
        self.short_form(host).or_else(|| self.wildcard(host))
    }

    fn visible(&self, host: &str) -> Option<&'a Service> {
        let service = self.registry.named(host, self.namespace)?;
        (self.sees)(service).then_some(service)
    }

    /// What `labels`, `<...>.<service>.<namespace>`, are in the cluster.
    fn in_cluster(&self, labels: &str) -> Subject<'a> {
        let mut from_right = labels.rsplitn(3, '.');
        let (namespace, service) = (from_right.next().unwrap_or_default(), from_right.next());
        let Some(service) = service else {
            let exists = |service: &Service| service.namespace == namespace;
            return if namespace.is_empty() || self.registry.services.iter().any(|one| exists(one)) {
                Subject::Between
            } else {
                Subject::Missing
            };
        };
        let host = format!("{service}.{namespace}.{}", self.domain());
        let Some(service) = self.registry.by_host.get(&host) else {
            return Subject::Missing;
        };
        match from_right.next() {
            None => Subject::Service(service),
            Some(prefix) => below_service(service, prefix),
        }
    }

    /// The forms that a search list would complete: `service`, `service.namespace`,
    /// `service.namespace.svc`. Ours only where they lead to something, because `a.b`
    /// may as well be a host of the world outside.
    fn short_form(&self, host: &str) -> Option<Subject<'a>> {
        let namespaced = format!("{host}.{}", self.namespace);
        let stem = host.strip_suffix(".svc");
        [Some(namespaced.as_str()), Some(host), stem]
            .into_iter()
            .flatten()
            .map(|labels| self.in_cluster(labels))
            .find(|subject| !matches!(subject, Subject::Between | Subject::Missing))
    }

    /// The most specific `*.suffix`.
    fn wildcard(&self, host: &str) -> Option<Subject<'a>> {
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(service) = self.visible(&format!("*.{suffix}")) {
                return Some(Subject::Service(service));
            }
            rest = suffix;
        }
        None
    }

    fn reverse(&self, name: &Name) -> Answer {
        // Only whole addresses have names, not networks.
        let address = match name.parse_arpa_name() {
            Ok(net) if net.prefix_len() == net.max_prefix_len() => net.addr(),
            _ => return Answer::NotOurs,
        };
        match self.registry.service_at(address) {
            Some(service) if !service.host.starts_with('*') => match name_of(&service.host) {
                Some(name) => Answer::Records(vec![RData::PTR(PTR(name))]),
                None => Answer::NotOurs,
            },
            _ => Answer::NotOurs,
        }
    }

    /// Addresses of the endpoints, each once, starting where the rotation says.
    fn endpoint_addresses(&self, service: &Service) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        let well = (service.endpoints.iter()).filter(|endpoint| endpoint.unhealthy.is_none());
        for endpoint in well {
            addresses.extend(endpoint.address);
        }
        addresses.sort_unstable();
        addresses.dedup();
        if !addresses.is_empty() {
            let start = self.rotation % addresses.len();
            addresses.rotate_left(start);
        }
        addresses
    }

    fn srv_records(&self, service: &Service, port: &ServicePort) -> Vec<RData> {
        let record = |host: String, number| {
            let target = name_of(&host)?;
            Some(RData::SRV(SRV::new(0, SRV_WEIGHT, number, target)))
        };
        if !service.headless {
            return record(service.host.clone(), port.number)
                .into_iter()
                .collect();
        }
        let endpoints = (service.endpoints.iter()).filter(|endpoint| endpoint.unhealthy.is_none());
        let records = endpoints.filter_map(|endpoint| {
            let socket = endpoint.socket_address(port.number)?;
            let host = format!("{}.{}", dashed(socket.ip()), service.host);
            record(host, socket.port())
        });
        records.take(MAX_RECORDS).collect()
    }
}

/// What stands before a service's name: `_port._protocol`, or one endpoint of a headless service,
/// by the name of its workload or by its address with dashes.
fn below_service<'a>(service: &'a Service, prefix: &str) -> Subject<'a> {
    if let Some((port, protocol)) = prefix.split_once('.') {
        let found = service.ports.iter().find(|candidate| {
            let transport = match candidate.protocol {
                Protocol::Udp => "_udp",
                _ => "_tcp",
            };
            protocol == transport
                && port.strip_prefix('_').is_some_and(|name| {
                    !name.is_empty() && candidate.name.eq_ignore_ascii_case(name)
                })
        });
        return found.map_or(Subject::Missing, |port| Subject::Port(service, port));
    }
    if !service.headless {
        return Subject::Missing;
    }
    let named = service.endpoints.iter().filter(|endpoint| {
        let workload = endpoint.workload.as_ref();
        workload.is_some_and(|workload| *workload.name.name == *prefix)
            || endpoint.address.is_some_and(|ip| dashed(ip) == prefix)
    });
    let mut addresses: Vec<IpAddr> = named.filter_map(|endpoint| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        Subject::Missing
    } else {
        Subject::Endpoint(addresses)
    }
}

/// `10-0-0-1`, `fd00--1`.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn address_records(addresses: Vec<IpAddr>, record_type: RecordType) -> Vec<RData> {
    let wanted = |address: &IpAddr| match record_type {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    addresses
        .into_iter()
        .filter(wanted)
        .take(MAX_RECORDS)
        .map(|address| match address {
            IpAddr::V4(address) => RData::A(address.into()),
            IpAddr::V6(address) => RData::AAAA(address.into()),
        })
        .collect()
}

/// The text of a name: lower case, no dot at its end.
fn host_of(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    text.truncate(text.trim_end_matches('.').len());
    text
}

fn name_of(host: &str) -> Option<Name> {
    let mut name = Name::from_ascii(host).ok()?;
    name.set_fqdn(true);
    Some(name)
}
