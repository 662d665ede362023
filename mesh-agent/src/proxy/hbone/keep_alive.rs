//! Notices peers that vanished without a word.

use std::time::Duration;

use h2::{Ping, PingPong};

/// How often a peer is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long it may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns when the peer does not answer any more.
pub async fn lost(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        let pong = tokio::time::timeout(PING_TIMEOUT, pings.ping(Ping::opaque()));
        if !matches!(pong.await, Ok(Ok(_))) {
            return;
        }
    }
}
