//! Tells the kernel programs that the agent works, so that they do not go on
//! handing connections to one that hangs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::datapath::{Datapath, DatapathError};

/// How often at most it is told.
const OFTEN: Duration = Duration::from_secs(1);

/// Begins, and goes on until the guard is dropped: by a task among those that carry the
/// traffic, which waits when they do.
pub(super) fn start(datapath: &Arc<Datapath>, limit: Duration) -> Result<DropGuard, DatapathError> {
    datapath.beat(limit)?;
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    if limit.is_zero() {
        return Ok(guard);
    }
    let datapath = datapath.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut often = tokio::time::interval(OFTEN.min(limit / 4));
        often.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            often.tick().await;
            if let Err(error) = datapath.beat(limit) {
                tracing::error!(%error, "the kernel is not told that the agent works");
            }
        }
    }));
    Ok(guard)
}
