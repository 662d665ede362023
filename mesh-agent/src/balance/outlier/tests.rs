use super::monitor::MAX_EJECTION_TIME;
use super::*;
use crate::route::{LatencyPolicy, OutlierPolicy, SuccessRatePolicy};

fn policy() -> OutlierPolicy {
    OutlierPolicy {
        consecutive_5xx: Some(5),
        consecutive_gateway: None,
        split_local: None,
        interval: Duration::from_secs(30),
        base_ejection_time: Duration::from_secs(60),
        max_ejection_percent: 50,
        min_health_percent: 0,
        error_codes: Vec::new(),
        success_rate: None,
        latency: None,
    }
}

fn reports(monitor: &Monitor, policy: &OutlierPolicy, codes: &[u16]) -> Vec<Option<Cause>> {
    codes
        .iter()
        .map(|code| monitor.report(Report::Status(*code), policy))
        .collect()
}

#[test]
fn five_errors_in_a_row_and_not_four_and_four() {
    let (monitor, policy) = (Monitor::default(), policy());
    let in_a_row = reports(&monitor, &policy, &[500, 503, 599, 500, 500]);
    assert_eq!(in_a_row[..4], [None; 4]);
    assert_eq!(in_a_row[4], Some(Cause::Consecutive5xx(5)));
    let monitor = Monitor::default();
    let interrupted = [500, 500, 500, 500, 200, 500, 500, 500, 500, 404];
    assert_eq!(reports(&monitor, &policy, &interrupted), [None; 10]);
}

#[test]
fn failures_to_connect_are_errors_unless_they_are_counted_apart() {
    let failures = [Report::Failed, Report::TimedOut, Report::Failed];
    let limit = |policy: &OutlierPolicy| {
        let monitor = Monitor::default();
        failures
            .map(|report| monitor.report(report, policy))
            .to_vec()
    };
    let together = OutlierPolicy {
        consecutive_5xx: Some(3),
        consecutive_gateway: Some(2),
        ..policy()
    };
    assert_eq!(
        limit(&together),
        [
            None,
            Some(Cause::ConsecutiveGateway(2)),
            Some(Cause::Consecutive5xx(3))
        ]
    );
    let apart = OutlierPolicy {
        split_local: Some(3),
        ..together
    };
    assert_eq!(
        limit(&apart),
        [None, None, Some(Cause::ConsecutiveLocal(3))]
    );
    let monitor = Monitor::default();
    monitor.report(Report::Failed, &apart);
    monitor.report(Report::Failed, &apart);
    monitor.report(Report::Connected, &apart);
    assert_eq!(monitor.report(Report::Failed, &apart), None);
}

#[test]
fn other_codes_can_be_errors() {
    let policy = OutlierPolicy {
        consecutive_5xx: Some(2),
        error_codes: vec![429],
        ..policy()
    };
    let monitor = Monitor::default();
    assert_eq!(reports(&monitor, &policy, &[429, 500, 429]), [None; 3]);
    assert_eq!(
        monitor.report(Report::Status(429), &policy),
        Some(Cause::Consecutive5xx(2))
    );
}

fn ejected_of(hosts: usize, max_ejection_percent: u32) -> usize {
    let policy = OutlierPolicy {
        max_ejection_percent,
        ..policy()
    };
    let now = Instant::now();
    let monitors: Vec<_> = (0..hosts).map(|_| Monitor::default()).collect();
    let mut detector = Detector::new(now, &policy);
    for monitor in &monitors {
        let cause = Cause::Consecutive5xx(5);
        detector.eject(monitor, monitors.iter(), cause, now, &policy);
    }
    monitors.iter().filter(|monitor| monitor.is_out()).count()
}

/// As measured on Envoy 1.40 with all endpoints failing.
#[test]
fn the_share_that_may_be_out_is_strict() {
    for (hosts, percent, out) in [
        (1, 50, 0),
        (2, 50, 1),
        (3, 50, 1),
        (4, 50, 2),
        (9, 10, 0),
        (10, 10, 1),
        (1, 100, 1),
    ] {
        assert_eq!(ejected_of(hosts, percent), out, "{percent} % of {hosts}");
    }
}

#[test]
fn time_out_grows_with_each_ejection_and_ends_at_a_sweep() {
    let policy = policy();
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let monitors = [Monitor::default(), Monitor::default()];
    let mut detector = Detector::new(begin, &policy);
    let cause = Cause::Consecutive5xx(5);
    let eject = |detector: &mut Detector, now| {
        detector.eject(&monitors[0], monitors.iter(), cause, now, &policy)
    };
    assert_eq!(eject(&mut detector, at(40)), Verdict::Ejected);
    assert_eq!(eject(&mut detector, at(40)), Verdict::AlreadyOut);
    let ejection = detector.ejection(&monitors[0], &policy).expect("out");
    // 60 s from 40 on are over at 100; the sweeps are at 30, 60, 90, 120.
    assert_eq!((ejection.count, ejection.until), (1, at(120)));
    assert!(!detector.sweep(monitors.iter(), at(119), &policy).returned);
    assert!(detector.sweep(monitors.iter(), at(120), &policy).returned);
    assert!(detector.ejection(&monitors[0], &policy).is_none());
    // The second time it is out for 120 s.
    assert_eq!(eject(&mut detector, at(130)), Verdict::Ejected);
    assert!(!detector.sweep(monitors.iter(), at(269), &policy).returned);
    assert!(detector.sweep(monitors.iter(), at(270), &policy).returned);
    // Each sweep in service, beginning an interval after its return, takes one off.
    detector.sweep(monitors.iter(), at(330), &policy);
    assert_eq!(eject(&mut detector, at(331)), Verdict::Ejected);
    let ejection = detector.ejection(&monitors[0], &policy).expect("out");
    assert_eq!(ejection.until, at(420));
}

#[test]
fn time_out_has_a_bound() {
    let policy = OutlierPolicy {
        max_ejection_percent: 100,
        ..policy()
    };
    let mut now = Instant::now();
    let monitors = [Monitor::default()];
    let mut detector = Detector::new(now, &policy);
    for _ in 0..20 {
        let cause = Cause::Consecutive5xx(5);
        detector.eject(&monitors[0], monitors.iter(), cause, now, &policy);
        let until = detector.ejection(&monitors[0], &policy).expect("out").until;
        assert!(until - now <= MAX_EJECTION_TIME + policy.interval);
        now = until;
        assert!(detector.sweep(monitors.iter(), now, &policy).returned);
    }
}

#[test]
fn a_refused_ejection_is_counted_and_begins_anew() {
    let policy = policy();
    let now = Instant::now();
    let monitors = [Monitor::default()];
    let mut detector = Detector::new(now, &policy);
    let cause = reports(&monitors[0], &policy, &[500; 5])[4].expect("a cause");
    let verdict = detector.eject(&monitors[0], monitors.iter(), cause, now, &policy);
    assert_eq!((verdict, detector.refused), (Verdict::Refused, 1));
    assert_eq!(reports(&monitors[0], &policy, &[500; 4]), [None; 4]);
    assert!(monitors[0].report(Report::Status(500), &policy).is_some());
}

/// Six endpoints, one that fails and one that is slow: both go, and come back like all others.
#[test]
fn who_stands_out_is_taken_out_at_the_sweep() {
    let policy = OutlierPolicy {
        consecutive_5xx: None,
        success_rate: Some(SuccessRatePolicy::default()),
        latency: Some(LatencyPolicy::default()),
        ..policy()
    };
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let monitors: [Monitor; 6] = Default::default();
    let mut detector = Detector::new(begin, &policy);
    for number in 0..120 {
        for (index, monitor) in monitors.iter().enumerate() {
            let fails = index == 1 && number % 2 == 0;
            monitor.report(Report::Status(if fails { 500 } else { 200 }), &policy);
            monitor.took(Duration::from_millis(if index == 4 { 200 } else { 10 }));
        }
    }
    assert!(
        !detector
            .sweep(monitors.iter(), at(29), &policy)
            .has_changed()
    );
    let swept = detector.sweep(monitors.iter(), at(30), &policy);
    let causes: Vec<_> = (swept.ejected.iter())
        .map(|(index, cause)| (*index, cause.to_string()))
        .collect();
    assert_eq!(
        causes[0],
        (1, "success rate 50.0 % against a mean of 91.7 %".to_owned())
    );
    assert_eq!((causes.len(), causes[1].0), (2, 4));
    assert!(causes[1].1.starts_with("median latency "), "{causes:?}");
    // What was counted belongs to the interval that is over.
    let swept = detector.sweep(monitors.iter(), at(60), &policy);
    assert!(!swept.has_changed(), "{swept:?}");
    assert!(detector.sweep(monitors.iter(), at(90), &policy).returned);
}

#[test]
fn the_share_that_may_be_out_holds_for_those_that_stand_out() {
    let policy = OutlierPolicy {
        max_ejection_percent: 10,
        latency: Some(LatencyPolicy::default()),
        ..policy()
    };
    let begin = Instant::now();
    let monitors: [Monitor; 6] = Default::default();
    let mut detector = Detector::new(begin, &policy);
    for _ in 0..100 {
        for (index, monitor) in monitors.iter().enumerate() {
            monitor.took(Duration::from_millis(if index == 0 { 200 } else { 10 }));
        }
    }
    let swept = detector.sweep(monitors.iter(), begin + policy.interval, &policy);
    assert_eq!((swept.has_changed(), detector.refused), (false, 1));
}
