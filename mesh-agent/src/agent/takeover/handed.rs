//! Sockets of workloads, on their way from one agent to the next.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::netns::Place;

/// What a socket of the agent in a workload's namespace is for, and its address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::agent) enum ListenerRole {
    Outbound4,
    Outbound6,
    Inbound4,
    Inbound6,
    Hbone4,
    Hbone6,
    Dns4,
    Dns6,
}

/// The sockets of one workload.
pub(in crate::agent) type Sockets = HashMap<ListenerRole, OwnedFd>;

/// The sockets of all workloads; `None` where they are taken.
#[derive(Default)]
pub(in crate::agent) struct Handed(HashMap<Place, Option<Sockets>>);

impl Handed {
    pub(super) fn add(
        &mut self,
        place: Place,
        sockets: impl IntoIterator<Item = (ListenerRole, OwnedFd)>,
    ) {
        let sockets = sockets.into_iter();
        let entry = self.0.entry(place).or_default();
        entry.get_or_insert_default().extend(sockets);
    }

    /// Those of a workload; none where it had none.
    pub(in crate::agent) fn take(&mut self, place: &Place) -> Sockets {
        let sockets = self.0.get_mut(place).and_then(Option::take);
        sockets.unwrap_or_default()
    }

    /// Whether there were sockets for the workload.
    pub(in crate::agent) fn was_there(&self, place: &Place) -> bool {
        self.0.contains_key(place)
    }

    /// Closes what nobody has taken.
    pub(in crate::agent) fn close_others(&mut self) {
        self.0.clear();
    }
}
