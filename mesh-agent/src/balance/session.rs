//! `sessionAffinity: ClientIP` of a service: connections of a client keep going to one endpoint.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::host::EndpointAddress;

/// The endpoint that a client was sent to last. A cluster is one client's.
#[derive(Debug, Default)]
pub(super) struct Session(Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    address: EndpointAddress,
    used: Instant,
}

impl Session {
    /// The endpoint, unless the client has asked for none for `timeout`.
    pub(super) fn endpoint(&self, timeout: Duration, now: Instant) -> Option<EndpointAddress> {
        let mut session = self.0.lock();
        let kept = session.as_mut()?;
        if now.saturating_duration_since(kept.used) >= timeout {
            *session = None;
            return None;
        }
        kept.used = now;
        Some(kept.address.clone())
    }

    /// From now on the client goes there.
    pub(super) fn keep(&self, address: &EndpointAddress, now: Instant) {
        *self.0.lock() = Some(Kept {
            address: address.clone(),
            used: now,
        });
    }
}
