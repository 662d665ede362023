//! Istio `WorkloadEntry`: an application with an address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::scalar::{HostName, Port, is_dns_name};
use super::{Finding, Meta};

/// `WorkloadEntry.spec`, also `ServiceEntry.spec.endpoints[]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadEntrySpec {
    /// Where it is reached.
    pub address: Option<Address>,
    /// Name of a service's port to the port on which the workload listens.
    pub ports: BTreeMap<String, Port>,
    /// Labels, for selectors and subsets.
    pub labels: BTreeMap<String, String>,
    /// Network of a multi-network mesh; not applied.
    pub network: Option<String>,
    /// `region/zone/subzone`.
    pub locality: String,
    /// Load-balancing weight; 0 means 1.
    pub weight: u32,
    /// Service account, the last part of the identity.
    pub service_account: Option<String>,
}

/// `WorkloadEntry.spec.address`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A name that DNS resolves.
    Host(HostName),
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return if address.is_unspecified() || address.is_multicast() {
                Err(format!("{text} is not the address of one workload"))
            } else {
                Ok(Self::Ip(address))
            };
        }
        if text.starts_with("unix://") {
            return Err("unix sockets are not supported as endpoints".to_owned());
        }
        // Digits and dots alone are a mistyped address, never a host.
        let numeric = text.bytes().all(|c| c.is_ascii_digit() || c == b'.');
        match HostName::try_from(text.clone()) {
            Ok(host) if !numeric && !host.is_wildcard() => Ok(Self::Host(host)),
            _ => Err(format!("{text:?} is neither an IP address nor a host name")),
        }
    }
}

impl WorkloadEntrySpec {
    /// What the types of the fields cannot say. `path` is where the
    /// specification stands in the object.
    pub(super) fn check(&self, meta: &Meta, path: &str, findings: &mut Vec<Finding>) {
        match &self.address {
            None => findings.push(Finding::error(
                meta,
                format!("{path}.address"),
                "is required: an IP address or a host name",
            )),
            Some(Address::Ip(address)) if address.is_loopback() => findings.push(Finding::warning(
                meta,
                format!("{path}.address"),
                "is a loopback address, which connections inside a workload use: the mesh leaves them alone",
            )),
            Some(_) => {}
        }
        if self.locality.split('/').count() > 3 {
            findings.push(Finding::error(
                meta,
                format!("{path}.locality"),
                format!("{:?} is not region/zone/subzone", self.locality),
            ));
        }
        if let Some(account) = &self.service_account
            && !is_dns_name(account)
        {
            findings.push(Finding::error(
                meta,
                format!("{path}.serviceAccount"),
                format!("{account:?} is not the name of a service account"),
            ));
        }
        if self.network.as_ref().is_some_and(|name| !name.is_empty()) {
            findings.push(Finding::warning(
                meta,
                format!("{path}.network"),
                "is not applied: all addresses must be reachable directly",
            ));
        }
    }
}
