//! Ports on which an application listens no more: the kernel's list of a namespace forgets
//! them after a look at procfs, so that clients are refused as without the mesh.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use crate::proxy::{Local, Node};

/// A look serves all refusals of this time: reading a table of thousands of connections
/// takes milliseconds, and an application that ends leaves as many refusals.
const PAUSE: Duration = Duration::from_millis(50);

/// The looks of one workload.
#[derive(Default)]
pub struct ClosedPorts {
    /// Somebody was refused, and the look that is to come has not begun.
    is_asked: AtomicBool,
    /// One at a time.
    turn: Mutex<()>,
}

/// An application has refused a connection: looks at its namespace soon, off the threads
/// that carry traffic.
pub(super) fn refused(node: &Arc<Node>, local: &Arc<Local>) {
    if local.closed_ports.is_asked.swap(true, Ordering::AcqRel) {
        return;
    }
    let (node, local) = (node.clone(), local.clone());
    tokio::spawn(async move {
        let _turn = local.closed_ports.turn.lock().await;
        tokio::time::sleep(PAUSE).await;
        // Whoever is refused from here on asks for another look.
        local.closed_ports.is_asked.store(false, Ordering::Release);
        let looking = local.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let namespace = looking.sockets.namespace();
            node.datapath.sync_listening(namespace, false)
        });
        if let Ok(Err(error)) = looked.await {
            tracing::warn!(workload = %local.workload.name, %error, "cannot read listening ports");
        }
    });
}
