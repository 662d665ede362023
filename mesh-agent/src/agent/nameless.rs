//! Workloads that came when the kernel's map of identities was full.

use super::Agent;

impl Agent {
    /// Gives workloads and endpoints the numbers for which there was no room, if there is now.
    pub(super) fn name_all(&self) {
        let mut any = false;
        for local in self.enrolment.by_cookie().values().flatten() {
            let (location, workload) = (local.sockets.location(), &local.workload);
            let identity = workload.identity.to_string();
            match (self.node.datapath).number_identity(location, &identity) {
                Ok(is_new) => any |= is_new,
                Err(error) => {
                    tracing::warn!(workload = %workload.name, %error, "flows are shown without its identity");
                }
            }
        }
        if any {
            self.replace_verdicts(&self.node.snapshot.load_full());
        }
    }
}
