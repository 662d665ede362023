//! The endpoints that may be chosen now, in order of nearness: built when
//! configuration or health changes, read for every request.

use std::net::IpAddr;
use std::sync::Arc;

use super::host::{EndpointAddress, Member};
use super::locality::{self, Level};
use super::set::Set;
use crate::registry::{Distribution, Workload};
use crate::route::UpstreamPolicy;

/// Healthy endpoints are taken for 1.4 times as many (Envoy's overprovisioning factor, in percent).
const OVERPROVISIONING: u64 = 140;

/// Endpoints by family of addresses and nearness.
#[derive(Debug)]
pub(super) struct View<P> {
    /// Families are told apart only where a service has both.
    v4: Option<Near<P>>,
    v6: Option<Near<P>>,
    all: Near<P>,
}

/// Levels of nearness with their shares, in percent.
#[derive(Debug)]
pub(super) struct Near<P> {
    levels: Vec<(u32, Areas<P>)>,
    /// Those that get nothing for now, and have endpoints in service.
    spare: Vec<Areas<P>>,
}

/// Parts of a level with their weights.
#[derive(Debug)]
struct Areas<P> {
    parts: Vec<(u64, Set<P>)>,
    sum: u64,
}

impl<P> View<P> {
    pub(super) fn build(
        members: &[Arc<Member<P>>],
        client: &Workload,
        policy: &UpstreamPolicy,
        distribution: Distribution,
    ) -> Self {
        let of = |like: fn(&IpAddr) -> bool| -> Vec<Arc<Member<P>>> {
            let is_like =
                |member: &&Arc<Member<P>>| member.host.address.ip().as_ref().is_none_or(like);
            members.iter().filter(is_like).cloned().collect()
        };
        let (v4, v6) = (of(IpAddr::is_ipv4), of(IpAddr::is_ipv6));
        let both = v4.len() < members.len() && v6.len() < members.len();
        let near = |members: &[Arc<Member<P>>]| Near::build(members, client, policy, distribution);
        Self {
            v4: both.then(|| near(&v4)),
            v6: both.then(|| near(&v6)),
            all: near(members),
        }
    }

    /// Where to choose from, best first.
    pub(super) fn near(&self, like: Option<IpAddr>) -> impl Iterator<Item = &Near<P>> {
        let family = match like {
            Some(IpAddr::V4(_)) => self.v4.as_ref(),
            Some(IpAddr::V6(_)) => self.v6.as_ref(),
            None => None,
        };
        family.into_iter().chain([&self.all])
    }
}

impl<P> Near<P> {
    fn build(
        members: &[Arc<Member<P>>],
        client: &Workload,
        policy: &UpstreamPolicy,
        distribution: Distribution,
    ) -> Self {
        let levels = locality::levels(members, client, policy, distribution);
        let panic = policy
            .outlier
            .as_ref()
            .map_or(0, |outlier| u64::from(outlier.min_health_percent));
        let health: Vec<(u64, u64)> = levels.iter().map(Level::health).collect();
        let shares = shares(&health, panic);
        let mut near = Self {
            levels: Vec::new(),
            spare: Vec::new(),
        };
        for ((level, share), (healthy, total)) in levels.into_iter().zip(shares).zip(health) {
            let all = panic > 0 && healthy * 100 < panic * total;
            let areas = Areas::build(level, all, policy);
            if share > 0 {
                near.levels.push((share, areas));
            } else if areas.sum > 0 {
                near.spare.push(areas);
            }
        }
        near
    }

    /// The nearest endpoints of a level of which none is among those that have been tried.
    pub(super) fn elsewhere(&self, tried: &[EndpointAddress]) -> Option<&Set<P>> {
        let in_use = self.levels.iter().map(|(_, areas)| areas);
        let untouched = |areas: &&Areas<P>| {
            let sets = areas.parts.iter().map(|(_, set)| set);
            !sets
                .flat_map(Set::members)
                .any(|member| tried.contains(&member.host.address))
        };
        let areas = in_use.chain(&self.spare).find(untouched)?;
        // The part with the greatest weight stands for its level.
        let heaviest = areas.parts.iter().max_by_key(|(weight, _)| *weight)?;
        Some(&heaviest.1)
    }

    /// The endpoints of one level, by a point below 100, and of one part of it, by a second below the sum of weights.
    pub(super) fn set(&self, mut point: impl FnMut(u64) -> u64) -> Option<&Set<P>> {
        let areas = match self.levels.as_slice() {
            [] => return None,
            [(_, only)] => only,
            levels => {
                let mut at = point(100) as u32;
                let found = levels.iter().find(|(share, _)| {
                    let here = at < *share;
                    at = at.saturating_sub(*share);
                    here
                });
                &found.or(levels.last())?.1
            }
        };
        match areas.parts.as_slice() {
            [] => None,
            [(_, only)] => Some(only),
            parts => {
                let mut at = point(areas.sum);
                let found = parts.iter().find(|(weight, _)| {
                    let here = at < *weight;
                    at = at.saturating_sub(*weight);
                    here
                });
                found.map(|(_, set)| set)
            }
        }
    }

    /// All that may be chosen.
    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Member<P>>> {
        let areas = self.levels.iter().flat_map(|(_, areas)| &areas.parts);
        areas.flat_map(|(_, set)| set.members())
    }
}

impl<P> Areas<P> {
    /// Parts with fewer healthy endpoints get less than their weight, as in Envoy.
    fn build(level: Level<P>, all: bool, policy: &UpstreamPolicy) -> Self {
        let parts: Vec<_> = level
            .areas
            .into_iter()
            .filter_map(|(weight, members)| {
                let total = members.len() as u64;
                let usable: Vec<_> = members
                    .into_iter()
                    .filter(|member| all || !member.host.monitor.is_out())
                    .collect();
                let health = usable.len() as u64 * OVERPROVISIONING / total.max(1);
                let weight = u64::from(weight) * health.min(100);
                (weight > 0 && !usable.is_empty()).then(|| (weight, Set::build(usable, policy)))
            })
            .collect();
        Self {
            sum: parts.iter().map(|(weight, _)| weight).sum(),
            parts,
        }
    }
}

/// What each level gets, in percent: the nearest all, until fewer than 100/1.4 of
/// its endpoints are healthy; then the next takes over what is missing.
fn shares(health: &[(u64, u64)], panic: u64) -> Vec<u32> {
    let availability: Vec<u64> = health
        .iter()
        .map(|(healthy, total)| match total {
            0 => 0,
            total => (healthy * OVERPROVISIONING / total).min(100),
        })
        .collect();
    let sum = availability.iter().sum::<u64>().min(100);
    if sum == 0 && panic > 0 {
        // None is healthy, and all are used: by their number.
        let all: u64 = health.iter().map(|(_, total)| total).sum();
        return health
            .iter()
            .map(|(_, total)| (total * 100).checked_div(all).unwrap_or(0) as u32)
            .collect();
    }
    let mut left = 100;
    let mut shares: Vec<u32> = availability
        .iter()
        .map(|available| {
            let share = (available * 100).checked_div(sum).unwrap_or(0).min(left);
            left -= share;
            share as u32
        })
        .collect();
    // What rounding left goes to the nearest that has any.
    if let Some(first) = shares.iter_mut().find(|share| **share > 0) {
        *first += left as u32;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn traffic_spills_over_when_too_few_are_healthy() {
        for (health, panic, expected) in [
            (&[(10, 10), (10, 10)][..], 0, &[100, 0][..]),
            (&[(8, 10), (10, 10)], 0, &[100, 0]),
            (&[(5, 10), (10, 10)], 0, &[70, 30]),
            (&[(0, 10), (10, 10)], 0, &[0, 100]),
            // Both together have too few: as they are healthy.
            (&[(2, 10), (1, 10)], 0, &[67, 33]),
            (&[(0, 10), (0, 10)], 0, &[0, 0]),
            (&[(0, 30), (0, 10)], 1, &[75, 25]),
            (&[(0, 0), (1, 1)], 0, &[0, 100]),
            (&[], 0, &[]),
        ] {
            assert_eq!(shares(health, panic), expected, "{health:?}");
        }
    }
}
