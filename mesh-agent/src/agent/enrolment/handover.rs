//! From one agent to the next: sockets that are taken, and given away.

use std::collections::HashSet;

use super::{Enrolment, Member};
use crate::agent::listeners;
use crate::agent::takeover::Offered;
use crate::netns::{Location, Place};

impl Enrolment {
    /// The places of all workloads that the configuration puts on this node and
    /// that are there, enrolled or not.
    pub(in crate::agent) fn claimed(&self) -> HashSet<Place> {
        let snapshot = self.node.snapshot.load();
        let ours = (snapshot.registry.workloads.iter()).filter(|workload| self.is_ours(workload));
        ours.filter_map(|workload| workload.placement.as_ref())
            .filter_map(|placement| Location::find(placement, &self.cgroup2).ok())
            .map(|location| location.place())
            .collect()
    }

    /// Why a workload that the agent before has served cannot be served by this one.
    pub(in crate::agent) fn failed_to_inherit(&self) -> Option<String> {
        let handed = self.handed.lock();
        let snapshot = self.node.snapshot.load();
        let members = self.members.lock();
        snapshot.registry.workloads.iter().find_map(|workload| {
            let Some(Member::Failed(reason)) = members.get(&workload.name) else {
                return None;
            };
            let location = Location::find(workload.placement.as_ref()?, &self.cgroup2).ok()?;
            let had = handed.was_there(&location.place());
            had.then(|| format!("{}: {reason}", workload.name))
        })
    }

    /// Closes sockets of the agent before that no workload wants.
    pub(in crate::agent) fn close_other_sockets(&self) {
        self.handed.lock().close_others();
    }

    /// Further descriptors of all workloads' sockets, for the agent that takes over.
    pub(in crate::agent) fn share(&self) -> std::io::Result<Vec<Offered>> {
        let members = self.members.lock();
        members
            .values()
            .filter_map(|member| match member {
                Member::Enrolled(enrolled) => Some(enrolled),
                _ => None,
            })
            .map(|enrolled| Ok((enrolled.place.clone(), listeners::share(&enrolled.sockets)?)))
            .collect()
    }

    /// Another agent has the workloads: their sockets are closed here, and the
    /// kernel is not told.
    pub(in crate::agent) fn give_away(&self) {
        let mut members = self.members.lock();
        for member in members.values_mut() {
            if let Member::Enrolled(enrolled) = member {
                enrolled.sockets.clear();
            }
        }
    }
}
