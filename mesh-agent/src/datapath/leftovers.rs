//! What an agent before this one has left and nobody wants any more.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData};
use mesh_common::{Workload, WorkloadKey};

use super::{Datapath, inbound, programs, tune};
use crate::netns::{self, Place};

impl Datapath {
    /// Leaves every workload that is not one of `claimed`: the configuration
    /// no longer names it, or its namespace is gone.
    pub fn leave_others(&self, claimed: &HashSet<Place>) {
        let claims = |place: Place| claimed.contains(&place);
        let cookies: HashSet<u64> = (self.maps.workload_cookies().into_iter())
            .chain(
                inbound::attached(self.folder())
                    .into_iter()
                    .map(|(cookie, _)| cookie),
            )
            .filter(|cookie| {
                !claims(Place {
                    netns_cookie: *cookie,
                    cgroup_id: None,
                })
            })
            .collect();
        if !cookies.is_empty() {
            tracing::info!(
                workloads = cookies.len(),
                "leaving workloads of an agent before"
            );
        }
        for namespace in netns::find(&cookies) {
            let before = self.maps.workload(namespace.cookie());
            tune::leave(
                &namespace,
                before.map_or(0, |before| before.tcp_tw_reuse_before),
            );
        }
        for cookie in cookies {
            inbound::detach(self.folder(), cookie);
            self.maps.remove_workload(cookie);
        }
        let claimed_groups: HashSet<u64> =
            claimed.iter().filter_map(|place| place.cgroup_id).collect();
        for id in self.maps.host.cgroup_ids() {
            if !claimed_groups.contains(&id) {
                self.maps.host.remove(id);
            }
        }
    }

    /// Removes links to cgroups that only an agent before has used, once it is gone.
    pub fn remove_other_links(&self) {
        programs::remove_others(self.folder(), &self.attached);
    }

    /// Removes every pin below `folder`: programs are detached, maps forgotten,
    /// settings of namespaces restored.
    ///
    /// # Errors
    /// Where a pin cannot be removed.
    pub fn uninstall(folder: &Path) -> io::Result<()> {
        restore(folder);
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// The map may be of another layout, or be missing: then there is nothing to know.
fn restore(folder: &Path) {
    let pinned = MapData::from_pin(folder.join("workloads"));
    let Some(Ok(workloads)) = pinned
        .ok()
        .map(|data| HashMap::<_, WorkloadKey, Workload>::try_from(Map::HashMap(data)))
    else {
        return;
    };
    let before: std::collections::HashMap<u64, u32> = workloads
        .iter()
        .filter_map(Result::ok)
        .map(|(key, workload)| (key.netns_cookie, workload.tcp_tw_reuse_before))
        .collect();
    for namespace in netns::find(&before.keys().copied().collect()) {
        tune::leave(&namespace, before[&namespace.cookie()]);
    }
}
