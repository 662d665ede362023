//! Makes room in the kernel's account: records of flows that have ended are
//! kept for a while, for people, and then removed; and after them the identities
//! that only they mention.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_common::{FlowEventKind, VerdictKind};

use crate::datapath::Datapath;
use crate::proxy::sparse_log::SparseLog;

/// How long an ended flow is remembered.
const RETENTION: Duration = Duration::from_secs(60);
/// How many ended flows are remembered at most; the account has room for 65,536 flows in all.
const MAX_ENDED: usize = 8_192;
/// While events come, they are taken this often, so that the ring of 1 MiB is
/// not filled by 150,000 a second.
pub(super) const BUSY: Duration = Duration::from_millis(100);
/// While none come.
pub(super) const IDLE: Duration = Duration::from_millis(250);
/// Refused connections that are logged in ten seconds: who tries over and over is not to keep the
/// agent from its work.
const MAX_REFUSED_LINES: u32 = 100;
/// How often the whole account is looked through, for flows whose end was lost with a dropped event.
const SWEEP: Duration = Duration::from_secs(30);

/// What the kernel's events have told of flows.
#[derive(Debug, Default)]
pub(super) struct FlowCounts {
    /// That were established.
    pub(super) opened: AtomicU64,
    /// That have ended.
    pub(super) closed: AtomicU64,
    /// Whose records were removed early, to make room.
    pub(super) evicted: AtomicU64,
}

/// Ended flows, the oldest first.
pub(super) struct FlowKeeper {
    ended: VecDeque<(u64, u64)>,
    swept_ns: u64,
    counts: Arc<FlowCounts>,
    refused: SparseLog,
}

/// What a look at the events has come to.
#[derive(Default)]
pub(super) struct Tended {
    /// Whether there were any.
    pub(super) any: bool,
    /// Whether the whole account was looked through.
    pub(super) swept: bool,
    /// Connections past the agent that were established, or have ended.
    pub(super) direct: HashSet<u64>,
    /// Those whose records were removed.
    pub(super) forgotten: Vec<u64>,
}

impl FlowKeeper {
    pub(super) fn new(counts: Arc<FlowCounts>) -> Self {
        Self {
            ended: VecDeque::new(),
            swept_ns: 0,
            counts,
            refused: SparseLog::of(MAX_REFUSED_LINES),
        }
    }

    /// Takes the events that have come. `is_alone` says whether no other agent works with the
    /// kernel's maps.
    pub(super) fn tend(&mut self, datapath: &Datapath, is_alone: impl FnOnce() -> bool) -> Tended {
        let mut tended = Tended::default();
        datapath.events(|event| {
            tended.any = true;
            if event.verdict == VerdictKind::Direct as u16 {
                tended.direct.insert(event.flow);
            }
            if event.kind == FlowEventKind::Opened as u16 {
                self.counts.opened.fetch_add(1, Relaxed);
            } else if event.kind == FlowEventKind::Closed as u16 {
                self.counts.closed.fetch_add(1, Relaxed);
                self.ended.push_back((event.at_ns, event.flow));
            } else if event.kind == FlowEventKind::Denied as u16 {
                self.ended.push_back((event.at_ns, event.flow));
                if let Some(line) = self.refused.line() {
                    let destination: std::net::SocketAddr = event.remote.into();
                    tracing::info!(
                        netns_cookie = event.netns_cookie,
                        %destination,
                        left_out = line.left_out,
                        "connection refused"
                    );
                }
            }
        });
        let now = datapath.now_ns();
        if now.saturating_sub(self.swept_ns) > nanoseconds(SWEEP) {
            self.swept_ns = now;
            tended.swept = true;
            datapath.forget_flows_before(now.saturating_sub(nanoseconds(RETENTION)));
            if is_alone() {
                datapath.give_back_identities();
            }
        }
        tended.forgotten = datapath.forget_flows(self.expired(now));
        tended
    }

    fn expired(&mut self, now_ns: u64) -> Vec<u64> {
        let before = now_ns.saturating_sub(nanoseconds(RETENTION));
        let too_many = self.ended.len().saturating_sub(MAX_ENDED);
        let old = self.ended.iter().take_while(|(at, _)| *at < before).count();
        let evicted = too_many.saturating_sub(old) as u64;
        self.counts.evicted.fetch_add(evicted, Relaxed);
        self.ended
            .drain(..too_many.max(old))
            .map(|(_, id)| id)
            .collect()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_flows_are_kept_for_a_while_and_not_too_many() {
        let second = 1_000_000_000;
        let mut keeper = FlowKeeper::new(Arc::default());
        keeper.ended.extend((1..=10).map(|id| (id * second, id)));
        assert!(keeper.expired(60 * second).is_empty());
        assert_eq!(keeper.expired(63 * second), [1, 2]);
        let many = MAX_ENDED as u64;
        keeper
            .ended
            .extend((0..many).map(|id| (64 * second, 100 + id)));
        assert_eq!(keeper.expired(64 * second), [3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(keeper.ended.len(), MAX_ENDED);
        // The time of the first was over anyway.
        assert_eq!(keeper.counts.evicted.load(Relaxed), 7);
    }
}
