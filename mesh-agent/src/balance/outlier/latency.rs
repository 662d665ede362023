//! Who is slower than the others. Neither Istio nor Envoy has it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::Cause;
use crate::route::LatencyPolicy;

/// Bits of a time, in microseconds, that a bucket is chosen by: four buckets to an octave, each
/// at most a quarter wider than the one before.
const PRECISION_BITS: u32 = 2;
const PER_OCTAVE: usize = 1 << PRECISION_BITS;
/// The last bucket begins at 117 s, and has what is longer as well.
const BUCKETS: usize = 26 * PER_OCTAVE;

/// How long an endpoint took to answer, since the last sweep.
#[derive(Debug)]
pub(super) struct Histogram([AtomicU32; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl Histogram {
    pub(super) fn count(&self, took: Duration) {
        self.0[bucket(took)].fetch_add(1, Relaxed);
    }

    /// How many answers there were, and their median; counts anew from here on.
    pub(super) fn take(&self) -> (u32, Duration) {
        let counts = self.0.each_ref().map(|count| count.swap(0, Relaxed));
        let all = counts
            .iter()
            .fold(0u32, |sum, count| sum.saturating_add(*count));
        let mut left = all / 2;
        let at = counts.iter().position(|&count| {
            let is_here = left < count;
            left = left.saturating_sub(count);
            is_here
        });
        (all, at.map_or(Duration::ZERO, middle))
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    if micros < PER_OCTAVE as u64 {
        return micros as usize;
    }
    let shift = micros.ilog2() - PRECISION_BITS;
    let within = (micros >> shift) as usize - PER_OCTAVE;
    ((shift as usize + 1) * PER_OCTAVE + within).min(BUCKETS - 1)
}

/// The time that stands for a bucket.
fn middle(bucket: usize) -> Duration {
    if bucket < PER_OCTAVE {
        return Duration::from_micros(bucket as u64);
    }
    let shift = bucket / PER_OCTAVE - 1;
    let begin = ((PER_OCTAVE + bucket % PER_OCTAVE) as u64) << shift;
    Duration::from_micros(begin + (1 << shift) / 2)
}

/// Endpoints whose median is above that of the others' medians by the policy's factor and
/// difference, the slowest first. `medians` are volume and median of those in service.
pub(super) fn outliers(
    medians: &[(usize, (u32, Duration))],
    policy: &LatencyPolicy,
) -> Vec<(usize, Cause)> {
    let mut valid: Vec<(usize, Duration)> = medians
        .iter()
        .filter(|(_, (volume, _))| *volume >= policy.request_volume)
        .map(|&(index, (_, median))| (index, median))
        .collect();
    if valid.len() < (policy.minimum_hosts as usize).max(2) {
        return Vec::new();
    }
    valid.sort_by_key(|(_, median)| *median);
    let slowest_first = (0..valid.len()).rev();
    slowest_first
        .filter_map(|at| {
            let (index, own) = valid[at];
            // The others are in order without it. Of two in the middle, the slower counts.
            let middle = (valid.len() - 1) / 2;
            let (_, others) = valid[if middle < at { middle } else { middle + 1 }];
            let is_slow = own >= others.mul_f64(policy.factor)
                && own.saturating_sub(others) >= policy.minimum_difference;
            is_slow.then_some((index, Cause::Latency { own, others }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn of(medians: &[u64], policy: &LatencyPolicy) -> Vec<(usize, Cause)> {
        let medians: Vec<_> = medians
            .iter()
            .map(|ms| (100, MS(*ms)))
            .enumerate()
            .collect();
        outliers(&medians, policy)
    }

    #[test]
    fn buckets_are_a_quarter_wide_at_most() {
        let mut last = 0;
        for micros in (0..5000).chain((5000..200_000_000).step_by(7919)) {
            let took = Duration::from_micros(micros);
            let at = bucket(took);
            assert!(at >= last, "{took:?}");
            last = at;
            if at < BUCKETS - 1 {
                let off = middle(at).as_secs_f64() / took.as_secs_f64().max(1e-9);
                assert!(micros == 0 || (0.8..1.25).contains(&off), "{took:?}: {off}");
            }
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert!(middle(BUCKETS - 1) > Duration::from_secs(100));
    }

    #[test]
    fn few_slow_answers_do_not_change_the_median() {
        let histogram = Histogram::default();
        for number in 0..100 {
            histogram.count(if number % 10 == 0 { MS(30_000) } else { MS(10) });
        }
        let (volume, median) = histogram.take();
        assert_eq!(volume, 100);
        assert!((MS(8)..MS(13)).contains(&median), "{median:?}");
        assert_eq!(histogram.take(), (0, Duration::ZERO));
    }

    #[test]
    fn an_endpoint_is_compared_with_the_others() {
        let policy = LatencyPolicy::default();
        let (own, others) = (MS(60), MS(10));
        let slow = Cause::Latency { own, others };
        assert_eq!(of(&[10, 10, 60, 11, 9], &policy), [(2, slow)]);
        assert_eq!(of(&[10, 10, 29, 11, 9], &policy), []);
        // Three times as long, and nobody would notice.
        assert_eq!(of(&[1, 1, 4, 1, 1], &policy), []);
        assert_eq!(of(&[10; 5], &policy), []);
        let two: Vec<_> = of(&[10, 100, 10, 300, 10], &policy);
        let two: Vec<_> = two.into_iter().map(|(index, _)| index).collect();
        assert_eq!(two, [3, 1], "the slowest first");
    }

    #[test]
    fn too_few_endpoints_or_answers_say_nothing() {
        let policy = LatencyPolicy::default();
        assert_eq!(of(&[10, 10, 10, 1000], &policy), []);
        let of_volume = |volume| {
            let medians = [10, 10, 1000, 10, 10].map(|ms| (volume, MS(ms)));
            let medians: Vec<_> = medians.into_iter().enumerate().collect();
            outliers(&medians, &policy).len()
        };
        let least = policy.request_volume;
        assert_eq!((of_volume(least - 1), of_volume(least)), (0, 1));
        let alone = LatencyPolicy {
            minimum_hosts: 0,
            ..policy
        };
        assert_eq!(of(&[1000], &alone), []);
    }
}
