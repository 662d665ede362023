//! Which endpoints are near to a client, level by level.

use std::sync::Arc;

use super::host::Member;
use crate::registry::{Distribution, Workload, topology};
use crate::route::{LocalitySetting, Shares, UpstreamPolicy, lies_in};

/// Endpoints that are equally near, in parts with weights.
#[derive(Debug)]
pub(super) struct Level<P> {
    pub(super) areas: Vec<(u32, Vec<Arc<Member<P>>>)>,
}

impl<P> Level<P> {
    fn of(members: Vec<Arc<Member<P>>>) -> Self {
        Self {
            areas: vec![(1, members)],
        }
    }

    /// Endpoints in service, and all.
    pub(super) fn health(&self) -> (u64, u64) {
        let members = self.areas.iter().flat_map(|(_, members)| members);
        members.fold((0, 0), |(healthy, total), member| {
            (
                healthy + u64::from(!member.host.monitor.is_out()),
                total + 1,
            )
        })
    }
}

/// The nearest first; a level without endpoints is left out. As in Istio, other
/// endpoints than the nearest are for when those fail, so without outlier
/// detection, which would notice, all are equally near; unless the service itself
/// prefers near ones and no DestinationRule says otherwise.
pub(super) fn levels<P>(
    members: &[Arc<Member<P>>],
    client: &Workload,
    policy: &UpstreamPolicy,
    distribution: Distribution,
) -> Vec<Level<P>> {
    let fails_over = policy.outlier.is_some();
    match &policy.locality {
        Some(LocalitySetting::Distribute(shares)) => {
            let own = shares
                .iter()
                .find(|one| lies_in(&client.locality, &one.from));
            vec![match own {
                Some(own) => distribute(members, own),
                None => Level::of(members.to_vec()),
            }]
        }
        Some(LocalitySetting::FailoverPriority(labels, regions)) if fails_over => {
            by_rank(members, |member| {
                let place = match regions.as_slice() {
                    [] => 0,
                    regions => place_rank(regions, client, member),
                };
                (label_rank(labels, client, member), place)
            })
        }
        Some(LocalitySetting::Failover(regions)) if fails_over => {
            by_rank(members, |member| place_rank(regions, client, member))
        }
        None if matches!(
            distribution,
            Distribution::SameZone | Distribution::SameNode
        ) =>
        {
            by_rank(members, |member| {
                distribution_rank(distribution, client, member)
            })
        }
        None if fails_over => by_rank(members, |member| place_rank(&[], client, member)),
        _ => vec![Level::of(members.to_vec())],
    }
}

fn by_rank<P, R: Copy + Ord>(
    members: &[Arc<Member<P>>],
    rank: impl Fn(&Member<P>) -> R,
) -> Vec<Level<P>> {
    let mut ranked: Vec<_> = members
        .iter()
        .map(|member| (rank(member), member))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked
        .chunk_by(|(a, _), (b, _)| a == b)
        .map(|level| Level::of(level.iter().map(|(_, member)| Arc::clone(member)).collect()))
        .collect()
}

/// The same subzone, zone, region; then the regions that the client's fails over to.
fn place_rank<P>(regions: &[(String, String)], client: &Workload, member: &Member<P>) -> usize {
    let mut own = client.locality.split('/');
    let mut other = member.endpoint.locality.split('/');
    let region = client.locality.split('/').next().unwrap_or_default();
    let same = (0..3)
        .take_while(|_| own.next().unwrap_or_default() == other.next().unwrap_or_default())
        .count();
    if same > 0 || regions.is_empty() {
        return 3 - same;
    }
    let to = member
        .endpoint
        .locality
        .split('/')
        .next()
        .unwrap_or_default();
    // The first that is for the client's region, as in Istio.
    match regions.iter().find(|(from, _)| from == region) {
        Some((_, named)) if named != to => 4,
        _ => 3,
    }
}

/// Network, region and zone, as Istio has it; for the same node also subzone and node.
fn distribution_rank<P>(
    distribution: Distribution,
    client: &Workload,
    member: &Member<P>,
) -> usize {
    let plain = |key: &str| (key.to_owned(), None);
    let mut labels: Vec<_> = [
        "topology.istio.io/network",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ]
    .map(plain)
    .into();
    if distribution != Distribution::SameNode {
        return label_rank(&labels, client, member);
    }
    labels.push(plain("topology.istio.io/subzone"));
    let node = |workload: &Workload| workload.node.clone();
    let own = node(client);
    let is_here = own.is_some() && member.endpoint.workload.as_deref().and_then(node) == own;
    match label_rank(&labels, client, member) {
        0 if is_here => 0,
        rank => rank + 1,
    }
}

/// The first label that differs decides: the later, the nearer.
fn label_rank<P>(
    labels: &[(String, Option<String>)],
    client: &Workload,
    member: &Member<P>,
) -> usize {
    let endpoint = &member.endpoint;
    let same = labels.iter().take_while(|(key, wanted)| {
        let own = match wanted {
            Some(wanted) => wanted.as_str(),
            None => topology(&client.labels, &client.locality, key),
        };
        own == topology(&endpoint.labels, &endpoint.locality, key)
    });
    labels.len() - same.count()
}

/// Each named area gets its weight; what lies in none gets nothing.
fn distribute<P>(members: &[Arc<Member<P>>], shares: &Shares) -> Level<P> {
    let area_of = |member: &Member<P>| {
        // The most specific area, as the longest.
        let areas = shares.to.iter().enumerate();
        areas
            .filter(|(_, (area, _))| lies_in(&member.endpoint.locality, area))
            .max_by_key(|(_, (area, _))| area.trim_end_matches(['*', '/']).len())
            .map(|(index, _)| index)
    };
    let mut areas: Vec<(u32, Vec<Arc<Member<P>>>)> = shares
        .to
        .iter()
        .map(|(_, weight)| (*weight, Vec::new()))
        .collect();
    for member in members {
        if let Some(index) = area_of(member) {
            areas[index].1.push(Arc::clone(member));
        }
    }
    areas.retain(|(_, members)| !members.is_empty());
    Level { areas }
}
