//! TCP's counters of open flows as they are now. The kernel programs write
//! them at an acknowledgement and at the end; what has come since is asked for
//! when somebody wants to know, by one dump of the sockets of each namespace.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_common::FlowState;

use crate::datapath::FlowRecord;
use crate::netns::{Detail, Namespace, SockDiag};
use crate::proxy::Local;

/// Brings the records of open flows up to date. Where a namespace cannot be
/// asked, they stay as the kernel programs wrote them.
pub(super) fn refresh(records: &mut [FlowRecord], locals: &HashMap<u64, Vec<Arc<Local>>>) {
    let mut open: HashMap<u64, HashMap<u64, &mut FlowRecord>> = HashMap::new();
    for record in records {
        if record.state != FlowState::Closed {
            let of_namespace = open.entry(record.netns_cookie).or_default();
            of_namespace.insert(record.id, record);
        }
    }
    for (netns_cookie, mut records) in open {
        let local = locals.get(&netns_cookie).and_then(|locals| locals.first());
        let Some(local) = local else { continue };
        if let Err(error) = ask(local.sockets.namespace(), &mut records) {
            tracing::debug!(workload = %local.workload.name, %error, "open flows are not up to date");
        }
    }
}

fn ask(namespace: &Namespace, records: &mut HashMap<u64, &mut FlowRecord>) -> std::io::Result<()> {
    SockDiag::open(namespace)?.sockets(Detail::Counters, |socket| {
        if let Some(counters) = &socket.counters
            && let Some(record) = records.get_mut(&socket.cookie)
        {
            record.refresh(socket.state, counters);
        }
    })
}
