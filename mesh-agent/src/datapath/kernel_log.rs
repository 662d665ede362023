//! Log lines of the kernel programs, where the object was built with them
//! (`cargo xtask build-ebpf --log`).

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The map that programs with log lines have.
const MAP: &str = "AYA_LOGS";

/// Passes the programs' log lines on to the agent's log until it ends. Without
/// log lines in the object it does nothing.
pub(super) fn start(object: &mut Ebpf) {
    if object.map(MAP).is_none() {
        return;
    }
    let logger = match EbpfLogger::init(object) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "the kernel programs' log cannot be read");
            return;
        }
    };
    // The logger owns the map: it lives as long as the agent.
    tokio::spawn(async move {
        // SAFETY: the logger keeps its descriptor, always the same, open for as long as it lives.
        let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        let mut logger = match registered {
            Ok(logger) => logger,
            Err(error) => {
                tracing::warn!(%error, "the kernel programs' log cannot be read");
                return;
            }
        };
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}
