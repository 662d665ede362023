//! Whether anything of a client's connection has passed, for the account.

use std::net::SocketAddr;
use std::sync::atomic::{
    AtomicU8,
    Ordering::{AcqRel, Acquire},
};

use mesh_common::Transport;

const UNDECIDED: u8 = 0;
const REFUSED: u8 = 1;
const PASSED: u8 = 2;

type Tell = dyn Fn(Transport, Option<SocketAddr>) + Send + Sync;

/// What has become of a connection's requests so far. The account is told before the client has its
/// answer, so that a connection of which nothing has passed ends as refused.
#[derive(Default)]
pub struct Passage {
    so_far: AtomicU8,
    tell: Option<Box<Tell>>,
}

impl Passage {
    /// `tell` is called with a transport that is none, and the endpoint that was asked; with
    /// [`Transport::Unknown`] where something passes after all.
    pub fn new(tell: impl Fn(Transport, Option<SocketAddr>) + Send + Sync + 'static) -> Self {
        Self {
            so_far: AtomicU8::new(UNDECIDED),
            tell: Some(Box::new(tell)),
        }
    }

    /// A request is refused.
    pub fn refused(&self, why: Transport, endpoint: Option<SocketAddr>) {
        let first = self
            .so_far
            .compare_exchange(UNDECIDED, REFUSED, AcqRel, Acquire);
        if first.is_ok() {
            self.tell(why, endpoint);
        }
    }

    /// A request has an answer of an endpoint.
    pub(super) fn passed(&self) {
        // Each request of a connection comes here, and the first decides.
        if self.so_far.load(Acquire) != PASSED && self.so_far.swap(PASSED, AcqRel) == REFUSED {
            self.tell(Transport::Unknown, None);
        }
    }

    fn tell(&self, transport: Transport, endpoint: Option<SocketAddr>) {
        if let Some(tell) = &self.tell {
            tell(transport, endpoint);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn a_connection_is_refused_until_something_passes() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let passage = Passage::new({
            let told = told.clone();
            move |transport, _| told.lock().push(transport)
        });
        passage.refused(Transport::Blocked, None);
        passage.refused(Transport::NoRoom, None);
        assert_eq!(*told.lock(), [Transport::Blocked]);
        passage.passed();
        passage.passed();
        passage.refused(Transport::Blocked, None);
        assert_eq!(*told.lock(), [Transport::Blocked, Transport::Unknown]);
    }
}
