//! Certificates, and who goes without: `meshctl certs`, `meshctl authn plaintext`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A client that speaks plaintext to a workload: `meshctl authn plaintext`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaintextView {
    /// Name of the workload.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its port.
    pub port: u16,
    /// The effective mode: `PERMISSIVE` or `DISABLE`.
    pub mode: String,
    /// `<name>/<namespace>` of the PeerAuthentication that decides, `-` for none.
    pub authn_policy: String,
    /// The client, `<name>.<namespace>` where the mesh knows it, else its address.
    pub client: String,
    /// Connections since the agent started.
    pub connections: u64,
    /// Seconds since the last of them.
    pub last_seen_s: u64,
}

/// Place of a certificate in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CertificateKind {
    /// Trust anchor.
    Root,
    /// Between a root and the leaves.
    Intermediate,
    /// Certificate of a workload.
    Leaf,
}

/// A certificate in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// SPIFFE identity, or the subject of a root.
    pub identity: String,
    /// Root or leaf.
    pub kind: CertificateKind,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Start of validity, seconds since 1970-01-01 UTC.
    pub not_before: u64,
    /// End of validity, seconds since 1970-01-01 UTC.
    pub not_after: u64,
    /// `<name>.<namespace>` of the node's workloads that use it.
    pub workloads: Vec<String>,
    /// Subjects of the certificates above it, the root last.
    pub chain: Vec<String>,
}
