//! Consistent hashing: from a hash to one of several hosts, such that few
//! hashes change their host when hosts come or go.

use xxhash_rust::xxh64::xxh64;

use crate::route::HashTable;

/// The hash of a request's property.
pub fn hash_of(bytes: &[u8]) -> u64 {
    xxh64(bytes, 0)
}

/// A ring or a table, built for a set of hosts.
#[derive(Debug)]
pub(super) enum Table {
    /// Points and hosts, in order of the points.
    Ring(Vec<(u64, u32)>),
    /// Hosts.
    Maglev(Vec<u32>),
}

impl Table {
    /// For hosts with these names and weights (at least 1). Empty for no hosts.
    pub(super) fn build(kind: HashTable, hosts: &[(String, u32)]) -> Self {
        match kind {
            HashTable::Ring(size) => Self::Ring(ring(hosts, size)),
            HashTable::Maglev(size) => Self::Maglev(maglev(hosts, size)),
        }
    }

    /// The host of a hash.
    pub(super) fn host(&self, hash: u64) -> Option<usize> {
        match self {
            Self::Ring(points) => {
                let next = points.partition_point(|(point, _)| *point < hash);
                let (_, host) = points.get(next).or_else(|| points.first())?;
                Some(*host as usize)
            }
            Self::Maglev(table) => {
                let length = u64::try_from(table.len())
                    .ok()
                    .filter(|length| *length > 0)?;
                Some(table[(hash % length) as usize] as usize)
            }
        }
    }
}

/// A Ketama ring: the lightest host has enough points that all together are
/// at least `size`, the others in proportion.
fn ring(hosts: &[(String, u32)], size: u64) -> Vec<(u64, u32)> {
    let sum: u64 = hosts.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let Some(least) = hosts.iter().map(|(_, weight)| u64::from(*weight)).min() else {
        return Vec::new();
    };
    let per_least = (least * size).div_ceil(sum.max(1)).max(1);
    let mut points = Vec::new();
    for (host, (name, weight)) in (0u32..).zip(hosts) {
        let count = per_least * u64::from(*weight) / least;
        points.extend((0..count).map(|i| (xxh64(format!("{name}_{i}").as_bytes(), 0), host)));
    }
    points.sort_unstable();
    points
}

/// Maglev (Eisenbud et al., NSDI 2016, section 3.4), hosts in turn by weight.
fn maglev(hosts: &[(String, u32)], size: u64) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let size = size.max(2);
    let Some(heaviest) = hosts.iter().map(|(_, weight)| *weight).max() else {
        return Vec::new();
    };
    struct Turn {
        offset: u64,
        skip: u64,
        next: u64,
        credit: u64,
    }
    let mut turns: Vec<Turn> = hosts
        .iter()
        .map(|(name, _)| Turn {
            offset: xxh64(name.as_bytes(), 0) % size,
            skip: xxh64(name.as_bytes(), 1) % (size - 1) + 1,
            next: 0,
            credit: 0,
        })
        .collect();
    let mut table = vec![FREE; size as usize];
    let mut filled = 0;
    while filled < size {
        for (host, turn) in (0u32..).zip(&mut turns) {
            turn.credit += u64::from(hosts[host as usize].1);
            if turn.credit < u64::from(heaviest) || filled == size {
                continue;
            }
            turn.credit -= u64::from(heaviest);
            // A prime size makes each host's sequence meet every entry. Where it is not one,
            // a host that has met all of its entries takes the first free one.
            let mut entry = None;
            while turn.next < size {
                let at = ((turn.offset + turn.skip * turn.next) % size) as usize;
                turn.next += 1;
                if table[at] == FREE {
                    entry = Some(at);
                    break;
                }
            }
            let entry = entry.or_else(|| table.iter().position(|host| *host == FREE));
            if let Some(entry) = entry {
                table[entry] = host;
                filled += 1;
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(count: u32) -> Vec<(String, u32)> {
        (0..count).map(|i| (format!("10.0.0.{i}:80"), 1)).collect()
    }

    fn owners(table: &Table, names: &[(String, u32)]) -> Vec<String> {
        (0..10_000u32)
            .map(|i| {
                let host = table.host(hash_of(&i.to_le_bytes())).expect("a host");
                names[host].0.clone()
            })
            .collect()
    }

    const KINDS: [HashTable; 3] = [
        HashTable::Ring(1024),
        HashTable::Maglev(65_537),
        // Not a prime.
        HashTable::Maglev(100),
    ];

    #[test]
    fn hosts_get_their_share() {
        for kind in KINDS {
            let mut names = hosts(4);
            names[0].1 = 3;
            let owned = owners(&Table::build(kind, &names), &names);
            let heavy = owned.iter().filter(|name| **name == names[0].0).count();
            assert!((4200..5800).contains(&heavy), "{kind:?}: {heavy} of 10000");
        }
    }

    #[test]
    fn few_hashes_move_when_a_host_goes() {
        for kind in KINDS {
            let names = hosts(10);
            let before = owners(&Table::build(kind, &names), &names);
            let after = owners(&Table::build(kind, &names[1..]), &names[1..]);
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(before, after)| **before != names[0].0 && before != after)
                .count();
            assert!(moved < 1200, "{kind:?}: {moved} of 10000 moved");
        }
    }

    #[test]
    fn without_hosts_there_is_none() {
        for kind in KINDS {
            assert_eq!(Table::build(kind, &[]).host(7), None);
        }
    }

    #[test]
    fn one_host_has_all() {
        for kind in KINDS {
            assert_eq!(Table::build(kind, &hosts(1)).host(u64::MAX), Some(0));
        }
    }
}
