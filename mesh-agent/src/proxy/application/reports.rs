//! What policies had to say, counted for people: who was denied, who would be
//! if dry runs were in force, and what was to be audited.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

/// Different reports that are kept. At the bound, the one that was last seen
/// longest ago gives way.
const MAX_REPORTS: usize = 4096;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// It was denied.
    Denied,
    /// It passed, and a dry run would have denied it.
    WouldBeDenied,
    /// An AUDIT policy matched.
    Audited,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    event: Event,
    workload: String,
    port: u16,
    source: String,
    by: String,
}

struct Count {
    count: u64,
    last: Instant,
}

/// Connections or requests that had the same fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What happened.
    pub event: Event,
    /// `<name>.<namespace>` of the workload.
    pub workload: String,
    /// Its port.
    pub port: u16,
    /// The client's identity, or its address where it has none.
    pub source: String,
    /// The policy or the reason.
    pub by: String,
    /// How often.
    pub count: u64,
    /// Seconds since the last time.
    pub last_seen_s: u64,
}

/// All reports since the agent started.
#[derive(Default)]
pub struct Reports {
    counts: Mutex<HashMap<Key, Count>>,
}

impl Reports {
    /// Counts one.
    pub fn add(&self, event: Event, workload: String, port: u16, source: String, by: String) {
        let key = Key {
            event,
            workload,
            port,
            source,
            by,
        };
        let mut counts = self.counts.lock();
        if counts.len() >= MAX_REPORTS && !counts.contains_key(&key) {
            let oldest = counts.iter().min_by_key(|(_, count)| count.last);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                counts.remove(&oldest);
            }
        }
        let count = counts.entry(key).or_insert(Count {
            count: 0,
            last: Instant::now(),
        });
        count.count += 1;
        count.last = Instant::now();
    }

    /// All of them, by what happened and to whom.
    pub fn all(&self) -> Vec<Report> {
        let counts = self.counts.lock();
        let mut all: Vec<Report> = counts
            .iter()
            .map(|(key, count)| Report {
                event: key.event,
                workload: key.workload.clone(),
                port: key.port,
                source: key.source.clone(),
                by: key.by.clone(),
                count: count.count,
                last_seen_s: count.last.elapsed().as_secs(),
            })
            .collect();
        all.sort_by(|a, b| {
            let key = |report: &Report| {
                let Report {
                    event,
                    workload,
                    port,
                    source,
                    by,
                    ..
                } = report.clone();
                (event, workload, port, source, by)
            };
            key(a).cmp(&key(b))
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_counted_and_bounded() {
        let reports = Reports::default();
        let add = |source: &str| {
            let (workload, by) = ("a.shop".to_owned(), "shop/p".to_owned());
            reports.add(Event::Denied, workload, 80, source.to_owned(), by);
        };
        add("first");
        add("first");
        assert_eq!(reports.all()[0].count, 2);
        for number in 0..MAX_REPORTS {
            add(&number.to_string());
        }
        let all = reports.all();
        assert_eq!(all.len(), MAX_REPORTS);
        assert!(all.iter().all(|report| report.source != "first"));
    }
}
