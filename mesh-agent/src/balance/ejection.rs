//! A cluster's endpoints that are out of service: who is taken out, and who comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::cluster::{Changing, Cluster, EndpointPool};
use super::host::{EndpointAddress, Member};
use super::outlier::{Cause, Detector, Ejection, Report, Verdict};
use crate::route::UpstreamPolicy;

impl<P: EndpointPool> Cluster<P> {
    pub(super) fn start_detector(
        &self,
        changing: &mut Changing<P>,
        policy: &UpstreamPolicy,
        now: Instant,
    ) {
        changing.detector = policy
            .outlier
            .as_ref()
            .map(|outlier| Detector::new(now, outlier));
        self.note_sweep(changing);
    }

    fn note_sweep(&self, changing: &Changing<P>) {
        let next = changing.detector.as_ref().map(Detector::next_sweep);
        let next = next.map_or(u64::MAX, |at| self.millis(at));
        self.next_sweep_ms.store(next, Relaxed);
    }

    /// Makes the sweeps that are due: takes endpoints back whose time out of service is over,
    /// and takes those out that stand out from the others.
    pub fn sweep(&self, now: Instant) {
        if self.millis(now) < self.next_sweep_ms.load(Relaxed) {
            return;
        }
        let mut changing = self.changing.lock();
        let state = self.state.load_full();
        let (Some(detector), Some(policy)) = (&mut changing.detector, &state.policy.outlier) else {
            return;
        };
        let monitors = state.monitors.iter().map(Arc::as_ref);
        let swept = detector.sweep(monitors, now, policy);
        if swept.has_changed() {
            self.state.store(Arc::new(state.with_new_view()));
        }
        for (index, cause) in swept.ejected {
            let is_its = |member: &&Arc<Member<P>>| {
                Arc::ptr_eq(&member.host.monitor, &state.monitors[index])
            };
            let member = state.members.iter().find(is_its);
            let address = member.map(|member| member.host.address.clone());
            changing.swept_out.extend(address.zip(Some(cause)));
        }
        self.note_sweep(&changing);
    }

    /// Endpoints that sweeps have taken out of service since this was last asked.
    pub fn swept_out(&self) -> Vec<(EndpointAddress, Cause)> {
        std::mem::take(&mut self.changing.lock().swept_out)
    }

    /// Tells what became of a request to an endpoint; `Some` where it has been
    /// taken out of service for it. The time is asked for only then.
    pub fn report(
        &self,
        member: &Member<P>,
        report: Report,
        now: impl FnOnce() -> Instant,
    ) -> Option<Cause> {
        let state = self.state.load();
        let policy = state.policy.outlier.as_ref()?;
        let cause = member.host.monitor.report(report, policy)?;
        self.eject(member, cause, now())
    }

    fn eject(&self, member: &Member<P>, cause: Cause, now: Instant) -> Option<Cause> {
        let mut changing = self.changing.lock();
        let state = self.state.load_full();
        let policy = state.policy.outlier.as_ref()?;
        let detector = changing.detector.as_mut()?;
        let is_member = |other: &Arc<Member<P>>| Arc::ptr_eq(&other.host, &member.host);
        if !state.members.iter().any(is_member) {
            return None;
        }
        let monitors = state.monitors.iter().map(Arc::as_ref);
        let verdict = detector.eject(&member.host.monitor, monitors, cause, now, policy);
        if verdict != Verdict::Ejected {
            return None;
        }
        self.state.store(Arc::new(state.with_new_view()));
        Some(cause)
    }

    /// Ejections that `maxEjectionPercent` forbade.
    pub fn refused_ejections(&self) -> u64 {
        let changing = self.changing.lock();
        changing
            .detector
            .as_ref()
            .map_or(0, |detector| detector.refused)
    }

    /// All endpoints, and which are out of service.
    pub fn members(&self) -> Vec<(Arc<Member<P>>, Option<Ejection>)> {
        let changing = self.changing.lock();
        let state = self.state.load();
        let outlier = state.policy.outlier.as_ref();
        let members = (state.members.iter())
            .chain(&state.unhealthy)
            .chain(changing.asked_for.values());
        members
            .map(|member| {
                let ejection = changing.detector.as_ref().zip(outlier);
                let ejection = ejection
                    .and_then(|(detector, policy)| detector.ejection(&member.host.monitor, policy));
                (Arc::clone(member), ejection)
            })
            .collect()
    }
}
