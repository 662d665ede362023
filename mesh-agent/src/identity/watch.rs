//! Looks at files again and again.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Calls `changed` whenever `look` sees something else than before (`seen` at first), until `stop`.
pub(super) async fn watch<T: PartialEq>(
    mut seen: T,
    look: impl Fn() -> T,
    changed: impl Fn(),
    stop: CancellationToken,
) {
    while stop
        .run_until_cancelled(tokio::time::sleep(INTERVAL))
        .await
        .is_some()
    {
        let now = look();
        if now != seen {
            seen = now;
            changed();
        }
    }
}
