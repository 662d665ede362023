//! Connections that go past the agent, as the kernel's account has them, are told to the metrics.

use std::collections::HashSet;
use std::sync::Arc;

use super::Agent;
use super::flow_keeper::{FlowKeeper, Tended};
use crate::datapath::FlowRecord;
use crate::proxy::Local;

impl Agent {
    /// What has happened until `last_beat_ns` an agent before this one has counted.
    pub(super) fn inherit_direct(&self, last_beat_ns: u64) {
        let mut records = self.node.datapath.direct_flows();
        records.retain(|record| record.counters.opened_ns < last_beat_ns);
        self.each_direct(&records, |local, record| {
            let (node, clusters) = (&self.node, &self.upstreams.clusters);
            self.direct.inherit(node, clusters, local, record);
        });
    }

    /// Takes the kernel's events, counts what has come about and ended, and makes room in its account.
    /// Whether there were any.
    pub(super) fn tend(&self, keeper: &mut FlowKeeper, is_alone: impl FnOnce() -> bool) -> bool {
        let _alone = self.accounting.lock();
        let tended = keeper.tend(&self.node.datapath, is_alone);
        let any = tended.any;
        if tended.swept {
            self.name_all();
        }
        self.count_direct(tended);
        any
    }

    /// Counts what has come about and ended since the last look at the kernel's events; from time
    /// to time all there is, since events may be lost.
    fn count_direct(&self, tended: Tended) {
        if tended.swept {
            let records = self.node.datapath.direct_flows();
            self.see_direct(&records);
            let ids: HashSet<u64> = records.iter().map(|record| record.id).collect();
            self.direct.keep(&ids);
        } else if !tended.direct.is_empty() {
            self.see_direct(&self.node.datapath.flows_of(tended.direct));
        }
        self.direct.forget(&tended.forgotten);
    }

    /// Counts the bytes of those that are open, as they are now.
    pub(super) fn refresh_direct(&self) {
        let _alone = self.accounting.lock();
        let mut records = self.node.datapath.direct_flows();
        super::live_flows::refresh(&mut records, &self.enrolment.by_cookie());
        self.see_direct(&records);
    }

    fn see_direct(&self, records: &[FlowRecord]) {
        self.each_direct(records, |local, record| {
            let (node, clusters) = (&self.node, &self.upstreams.clusters);
            self.direct.see(node, clusters, local, record);
        });
    }

    fn each_direct(&self, records: &[FlowRecord], mut each: impl FnMut(&Arc<Local>, &FlowRecord)) {
        if records.is_empty() {
            return;
        }
        let locals = self.enrolment.by_cookie();
        for record in records {
            let local = locals.get(&record.netns_cookie).and_then(|all| all.first());
            if let Some(local) = local {
                each(local, record);
            }
        }
    }
}
