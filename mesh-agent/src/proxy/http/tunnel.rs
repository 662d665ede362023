//! A connection whose protocol was switched: WebSocket and the like, CONNECT.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::record::Record;
use super::upstream::Lease;

/// Copies bytes both ways until both sides have ended.
pub(super) fn spawn(client: OnUpgrade, upstream: OnUpgrade, mut record: Record, lease: Lease) {
    let counted = lease.into_tunnel();
    tokio::spawn(async move {
        let _counted = counted;
        let result = async {
            let (client, upstream) =
                tokio::try_join!(client, upstream).map_err(std::io::Error::other)?;
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            tokio::io::copy_bidirectional(&mut client, &mut upstream).await
        };
        match result.await {
            Ok((bytes_received, bytes_sent)) => {
                record.received(bytes_received);
                record.sent(bytes_sent);
            }
            Err(error) => record.reason(&error),
        }
        record.end();
    });
}
