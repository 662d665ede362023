//! Ports on which somebody listens, from procfs.

use std::collections::HashSet;
use std::fs;
use std::io;

/// State `TCP_LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Listening TCP ports of the calling thread's network namespace, IPv4 and
/// IPv6, loopback left out: nobody outside can reach those.
pub(super) fn ports() -> io::Result<HashSet<u16>> {
    let mut ports = parse(&fs::read_to_string("/proc/thread-self/net/tcp")?);
    // The file is missing where IPv6 is off.
    if let Ok(table) = fs::read_to_string("/proc/thread-self/net/tcp6") {
        ports.extend(parse(&table));
    }
    Ok(ports)
}

fn parse(table: &str) -> HashSet<u16> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (address, port) = fields.next()?.split_once(':')?;
            let state = fields.nth(1)?;
            let is_loopback = match address.len() {
                8 => address.ends_with("7F"),
                _ => address == "00000000000000000000000001000000",
            };
            (state == LISTEN && !is_loopback).then(|| u16::from_str_radix(port, 16).ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_that_others_can_reach_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
            0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:1F91 00000000:0000 0A 00000000:00000000\n\
            2: 0100000A:1F92 0200000A:0050 01 00000000:00000000\n\
            3: 00000000000000000000000000000000:1F93 00000000000000000000000000000000:0000 0A 0:0\n\
            4: 00000000000000000000000001000000:1F94 00000000000000000000000000000000:0000 0A 0:0\n";
        assert_eq!(parse(table), HashSet::from([0x1f90, 0x1f93]));
    }
}
