//! Endpoints among which only algorithm and load decide.

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;

use super::host::Member;
use super::table::Table;
use crate::route::{Algorithm, Balancer, UpstreamPolicy, Warmup};

/// Fraction of the golden ratio: multiples of it fill the unit evenly, in any number.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// Healthy endpoints of one place.
#[derive(Debug)]
pub(super) struct Set<P> {
    members: Vec<Arc<Member<P>>>,
    /// Sums of the weights up to each member; empty where all weigh the same.
    sums: Vec<u64>,
    table: Option<Table>,
}

/// What a choice depends on beside the endpoints.
pub(super) struct Draw<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) hash: Option<u64>,
    /// Counts choices, for round robin.
    pub(super) turn: &'a dyn Fn() -> u64,
    /// Slow start, and the time.
    pub(super) warmup: Option<(Warmup, Instant)>,
}

impl<P> Set<P> {
    pub(super) fn build(members: Vec<Arc<Member<P>>>, policy: &UpstreamPolicy) -> Self {
        let even = members
            .windows(2)
            .all(|pair| pair[0].weight() == pair[1].weight());
        let table = match &policy.balancer {
            Balancer::Hash(hash) => {
                let names: Vec<_> = members
                    .iter()
                    .map(|member| {
                        (
                            member.host.address.to_string(),
                            member.endpoint.weight.max(1),
                        )
                    })
                    .collect();
                Some(Table::build(hash.table, &names))
            }
            _ => None,
        };
        let sums = members.iter().scan(0, |sum, member| {
            *sum += member.weight();
            Some(*sum)
        });
        Self {
            sums: if even { Vec::new() } else { sums.collect() },
            members,
            table,
        }
    }

    pub(super) fn members(&self) -> &[Arc<Member<P>>] {
        &self.members
    }

    /// One of them; `None` where there is none.
    pub(super) fn draw(&self, draw: &Draw<'_>, random: &mut impl Rng) -> Option<&Arc<Member<P>>> {
        if let [only] = self.members.as_slice() {
            return Some(only);
        }
        if let (Some(table), Some(hash)) = (&self.table, draw.hash) {
            return self.members.get(table.host(hash)?);
        }
        if self.members.is_empty() {
            return None;
        }
        if let Some((warmup, now)) = draw.warmup
            && draw.algorithm != Algorithm::Random
            && self
                .members
                .iter()
                .any(|member| now.saturating_duration_since(member.host.since) < warmup.duration)
        {
            return self.draw_slowly(draw, warmup, now, random);
        }
        let total = self.total();
        let index = match draw.algorithm {
            Algorithm::Random => self.at(random.random_range(0..total)),
            Algorithm::RoundRobin => self.at((draw.turn)() % total),
            Algorithm::LeastRequest => self.less_loaded(total, random),
        };
        self.members.get(index)
    }

    fn total(&self) -> u64 {
        self.sums
            .last()
            .copied()
            .unwrap_or(self.members.len() as u64)
    }

    /// The member at a point of the line on which each is as long as its weight.
    fn at(&self, point: u64) -> usize {
        if self.sums.is_empty() {
            point as usize
        } else {
            self.sums.partition_point(|sum| *sum <= point)
        }
    }

    /// The less loaded, by its weight, of two different ones.
    fn less_loaded(&self, total: u64, random: &mut impl Rng) -> usize {
        let first = self.at(random.random_range(0..total));
        let (before, weight) = if self.sums.is_empty() {
            (first as u64, 1)
        } else {
            let weight = self.members[first].weight();
            (self.sums[first] - weight, weight)
        };
        // The second is drawn from the line without the first.
        let point = random.random_range(0..total - weight);
        let second = self.at(if point < before {
            point
        } else {
            point + weight
        });
        let (a, b) = (&self.members[first], &self.members[second]);
        let active = |member: &Member<P>| u64::from(member.host.in_flight()) + 1;
        if active(b) * a.weight() < active(a) * b.weight() {
            second
        } else {
            first
        }
    }

    /// While some are new: by weights that grow with time (Envoy's slow start).
    fn draw_slowly(
        &self,
        draw: &Draw<'_>,
        warmup: Warmup,
        now: Instant,
        random: &mut impl Rng,
    ) -> Option<&Arc<Member<P>>> {
        let weights: Vec<f64> = self
            .members
            .iter()
            .map(|member| {
                let age = now.saturating_duration_since(member.host.since);
                let mut weight = member.weight() as f64 * growth(warmup, age.as_secs_f64());
                if draw.algorithm == Algorithm::LeastRequest {
                    weight /= f64::from(member.host.in_flight() + 1);
                }
                weight
            })
            .collect();
        let unit = match draw.algorithm {
            Algorithm::RoundRobin => ((draw.turn)() as f64 * GOLDEN).fract(),
            _ => random.random::<f64>(),
        };
        let mut point = unit * weights.iter().sum::<f64>();
        let found = self.members.iter().zip(&weights).find(|(_, weight)| {
            let here = point < **weight;
            point -= **weight;
            here
        });
        found.map(|(member, _)| member).or(self.members.last())
    }
}

/// Share of its weight that an endpoint of this age has, 0 to 1.
fn growth(warmup: Warmup, age_s: f64) -> f64 {
    let window_s = warmup.duration.as_secs_f64();
    if age_s >= window_s {
        return 1.0;
    }
    let time = age_s.max(1.0) / window_s;
    time.min(1.0)
        .powf(1.0 / warmup.aggression)
        .max(warmup.minimum)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_new_endpoint_grows_from_its_minimum_to_its_weight() {
        let warmup = Warmup {
            duration: Duration::from_secs(100),
            minimum: 0.1,
            aggression: 1.0,
        };
        for (age_s, expected) in [
            (0.0, 0.1),
            (5.0, 0.1),
            (50.0, 0.5),
            (100.0, 1.0),
            (500.0, 1.0),
        ] {
            assert_eq!(growth(warmup, age_s), expected, "after {age_s} s");
        }
        let faster = Warmup {
            aggression: 2.0,
            ..warmup
        };
        assert_eq!(growth(faster, 25.0), 0.5);
    }
}
