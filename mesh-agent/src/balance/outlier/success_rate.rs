//! Who fails more often than the others: Envoy's success rate ejection.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::Cause;
use crate::route::SuccessRatePolicy;

/// Answers of an endpoint since the last sweep.
#[derive(Debug, Default)]
pub(super) struct Tally {
    all: AtomicU32,
    errors: AtomicU32,
}

impl Tally {
    pub(super) fn count(&self, is_error: bool) {
        self.all.fetch_add(1, Relaxed);
        if is_error {
            self.errors.fetch_add(1, Relaxed);
        }
    }

    /// What has been counted, as volume and success rate in percent; counts anew from here on.
    pub(super) fn take(&self) -> (u32, f64) {
        let (all, errors) = (self.all.swap(0, Relaxed), self.errors.swap(0, Relaxed));
        // An answer that is counted meanwhile may be in one of the two only.
        let share = f64::from(errors.min(all)) / f64::from(all.max(1));
        (all, 100.0 * (1.0 - share))
    }
}

/// Endpoints whose success rate is below the mean by more than the policy's factor times the
/// standard deviation, the worst first. `rates` are volume and success rate of those in service.
pub(super) fn outliers(
    rates: &[(usize, (u32, f64))],
    policy: &SuccessRatePolicy,
) -> Vec<(usize, Cause)> {
    let mut valid: Vec<(usize, f64)> = rates
        .iter()
        .filter(|(_, (volume, _))| *volume >= policy.request_volume)
        .map(|&(index, (_, rate))| (index, rate))
        .collect();
    if valid.is_empty() || valid.len() < policy.minimum_hosts as usize {
        return Vec::new();
    }
    let count = valid.len() as f64;
    let mean = valid.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let squares = valid.iter().map(|(_, rate)| (rate - mean).powi(2));
    let deviation = (squares.sum::<f64>() / count).sqrt();
    let threshold = mean - policy.stdev_factor * deviation;
    // Where not all may go, the worst do.
    valid.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    valid
        .into_iter()
        .filter(|(_, rate)| *rate < threshold)
        .map(|(index, rate)| (index, Cause::SuccessRate { rate, mean }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rates: &[f64], policy: &SuccessRatePolicy) -> Vec<(usize, Cause)> {
        let rates: Vec<_> = rates.iter().map(|rate| (100, *rate)).enumerate().collect();
        outliers(&rates, policy)
    }

    /// Mean 90, standard deviation 20: the threshold is 90 - 1.9 * 20 = 52.
    #[test]
    fn the_arithmetic_is_envoys() {
        let policy = SuccessRatePolicy::default();
        let cause = |rate, mean| Cause::SuccessRate { rate, mean };
        let rates = [100.0, 50.0, 100.0, 100.0, 100.0];
        assert_eq!(of(&rates, &policy), [(1, cause(50.0, 90.0))]);
        let wider = SuccessRatePolicy {
            stdev_factor: 2.1,
            ..policy
        };
        assert_eq!(of(&rates, &wider), []);
        // Two bad ones of five raise the deviation so far that neither stands out.
        assert_eq!(of(&[50.0, 50.0, 100.0, 100.0, 100.0], &policy), []);
        assert_eq!(of(&[100.0; 5], &policy), []);
        assert_eq!(of(&[0.0; 5], &policy), []);
    }

    #[test]
    fn too_few_endpoints_or_answers_say_nothing() {
        let policy = SuccessRatePolicy::default();
        assert_eq!(of(&[0.0, 100.0, 100.0, 100.0], &policy), []);
        let of_volume = |volume| {
            let rates = [100.0, 0.0, 100.0, 100.0, 100.0].map(|rate| (volume, rate));
            let rates: Vec<_> = rates.into_iter().enumerate().collect();
            outliers(&rates, &policy).len()
        };
        assert_eq!((of_volume(99), of_volume(100)), (0, 1));
    }

    #[test]
    fn the_worst_comes_first() {
        let policy = SuccessRatePolicy {
            stdev_factor: 0.5,
            ..SuccessRatePolicy::default()
        };
        let worst: Vec<_> = of(&[100.0, 60.0, 100.0, 40.0, 100.0], &policy);
        assert_eq!(
            worst.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
            [3, 1]
        );
    }

    #[test]
    fn a_tally_counts_anew_after_each_look() {
        let tally = Tally::default();
        for number in 0..10 {
            tally.count(number < 2);
        }
        assert_eq!(tally.take(), (10, 80.0));
        assert_eq!(tally.take(), (0, 100.0));
    }
}
