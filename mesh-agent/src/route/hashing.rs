//! Consistent hashing: which property of a request decides about its endpoint.

use std::time::Duration;

use http::HeaderName;

use crate::resource::destination_rule::ConsistentHash;

/// Entries of a ring where `ringHash.minimumRingSize` is left out, as in Istio.
const RING_SIZE: u64 = 1024;
/// Entries of a table where `maglev.tableSize` is left out, as in Envoy.
const TABLE_SIZE: u64 = 65_537;
/// Most entries of a ring or table (Envoy's bounds are 8 M and 5,000,011).
const MAX_ENTRIES: u64 = 5_000_011;

/// `loadBalancer.consistentHash`.
#[derive(Clone, Debug, PartialEq)]
pub struct HashPolicy {
    /// What is hashed.
    pub key: HashKey,
    /// How the hash leads to an endpoint.
    pub table: HashTable,
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq)]
pub enum HashKey {
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie(Cookie),
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(String),
}

/// A cookie that is made where the client has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Cookie {
    /// Name.
    pub name: String,
    /// Path.
    pub path: Option<String>,
    /// Life: none means that no cookie is made, zero that it lives as long as the client's session.
    pub ttl: Option<Duration>,
    /// Further attributes and their values, which may be empty.
    pub attributes: Vec<(String, String)>,
}

/// How a hash leads to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashTable {
    /// A Ketama ring of at least so many entries.
    Ring(u64),
    /// A Maglev table of so many entries, a prime.
    Maglev(u64),
}

impl HashPolicy {
    /// `None` where no key is named, which has been reported before.
    pub(super) fn compile(block: &ConsistentHash) -> Option<Self> {
        let key = if let Some(name) = &block.http_header_name {
            HashKey::Header(HeaderName::from_bytes(name.as_bytes()).ok()?)
        } else if let Some(cookie) = &block.http_cookie {
            let attributes = cookie.attributes.iter();
            HashKey::Cookie(Cookie {
                name: cookie.name.clone(),
                path: cookie.path.clone(),
                ttl: cookie.ttl.map(|ttl| ttl.0),
                attributes: attributes
                    .map(|one| (one.name.clone(), one.value.clone().unwrap_or_default()))
                    .collect(),
            })
        } else if block.use_source_ip == Some(true) {
            HashKey::SourceIp
        } else {
            HashKey::Query(block.http_query_parameter_name.clone()?)
        };
        let table = match &block.maglev {
            Some(maglev) => {
                HashTable::Maglev(maglev.table_size.unwrap_or(TABLE_SIZE).min(MAX_ENTRIES))
            }
            None => {
                let size = block.ring_hash.as_ref();
                let size = size
                    .and_then(|ring| ring.minimum_ring_size)
                    .or(block.minimum_ring_size);
                HashTable::Ring(size.unwrap_or(RING_SIZE).clamp(1, MAX_ENTRIES))
            }
        };
        Some(Self { key, table })
    }
}
