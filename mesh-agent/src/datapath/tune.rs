//! `net.ipv4.tcp_tw_reuse` of a workload's namespace.
//!
//! All of a workload's connections to the agent have one destination, and so
//! have the agent's to one port of the application: closed ones that linger in
//! TIME_WAIT for a minute would use up the ports. By default (2) the kernel uses
//! such a port again after a second only where both ends are in 127.0.0.0/8, which the
//! workload's address is not (`tcp_twsk_unique`, net/ipv4/tcp_ipv4.c).

use crate::netns::Namespace;

const PATH: &str = "/proc/sys/net/ipv4/tcp_tw_reuse";
/// Ports are used again whatever the addresses.
const EVERYWHERE: u32 = 1;

/// Changes the setting. Gives what [`leave`] needs to undo it: 0 where there is
/// nothing to undo.
pub(super) fn enter(namespace: &Namespace) -> u32 {
    let changed = namespace.run(|| {
        let text = std::fs::read_to_string(PATH)?;
        let before: u32 = text.trim().parse().map_err(std::io::Error::other)?;
        if before == EVERYWHERE {
            return Ok(0);
        }
        std::fs::write(PATH, EVERYWHERE.to_string())?;
        Ok(before + 1)
    });
    changed.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot set net.ipv4.tcp_tw_reuse: very many short connections may run out of ports");
        0
    })
}

/// Sets it to what it was, unless somebody else has changed it since.
pub(super) fn leave(namespace: &Namespace, before: u32) {
    if before == 0 {
        return;
    }
    let restored = namespace.run(|| {
        if std::fs::read_to_string(PATH)?.trim() == EVERYWHERE.to_string() {
            std::fs::write(PATH, (before - 1).to_string())?;
        }
        Ok(())
    });
    if let Err(error) = restored {
        tracing::warn!(%error, "cannot restore net.ipv4.tcp_tw_reuse");
    }
}
