//! `sk_lookup`, one instance per workload namespace: connections from outside
//! go to the agent's listeners. No NAT: the local address of the accepted
//! socket is the original destination. Questions to an agent that is gone are
//! refused.

use core::ptr;

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::{
    Ip, ListenerKey, ListenerKind, ListeningPort, OriginRole, Steer, Tuple, Workload, WorkloadKey,
    steer,
};

use crate::context::read6;
use crate::listener::{is_open, works};
#[cfg(feature = "log")]
use crate::log::bytes;
use crate::log::log;
use crate::maps::{CONNECTING, LISTENERS, LISTENING, WORKLOADS};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

/// The namespace that this instance is attached to: `bpf_get_netns_cookie`
/// does not exist for this program type, so the loader freezes it in here.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;

#[sk_lookup]
pub fn um_inbound(ctx: SkLookupContext) -> u32 {
    let raw = ctx.lookup;
    // SAFETY: fields of the context, read one by one.
    let (protocol, family, local_port) = unsafe {
        (
            ptr::read_volatile(&raw const (*raw).protocol),
            ptr::read_volatile(&raw const (*raw).family),
            ptr::read_volatile(&raw const (*raw).local_port) as u16,
        )
    };
    // SAFETY: as above. Both families are read and one is chosen: reads in branches would be merged
    // into one at a computed offset, which the verifier refuses.
    let (remote, local, ip_version) = unsafe {
        let remote4 = Ip::v4(ptr::read_volatile(&raw const (*raw).remote_ip4));
        let local4 = Ip::v4(ptr::read_volatile(&raw const (*raw).local_ip4));
        let remote6 = read6((&raw const (*raw).remote_ip6).cast());
        let local6 = read6((&raw const (*raw).local_ip6).cast());
        if family == AF_INET {
            (remote4, local4, 4)
        } else {
            (remote6, local6, 6)
        }
    };
    if protocol != IPPROTO_TCP && !local.is_loopback() {
        return SK_PASS;
    }
    // SAFETY: a constant of the loaded program.
    let netns_cookie = unsafe { ptr::read_volatile(&raw const NETNS_COOKIE) };
    // SAFETY: the agent replaces whole values.
    let workload = unsafe { WORKLOADS.get(WorkloadKey { netns_cookie }) };
    if protocol != IPPROTO_TCP {
        return datagram(workload, netns_cookie, &local, local_port, ip_version);
    }
    let kind = match steer(&remote, &local, local_port) {
        // From the namespace to itself: a connection to the agent, of a socket that is bound to a
        // device, or one that is none of ours.
        Steer::Pass => match workload {
            Some(workload) if workload.is_outbound_listener(&local, local_port) => {
                ListenerKind::Outbound
            }
            _ => return SK_PASS,
        },
        Steer::Hbone => ListenerKind::Hbone,
        Steer::Application => {
            if is_direct(raw, netns_cookie, &remote, local_port) {
                log!(
                    debug,
                    "direct from {:i} to port {}",
                    from = bytes(&remote),
                    port = local_port
                );
                return SK_PASS;
            }
            // Nothing listens: the kernel answers as it would without the mesh.
            if !is_served(netns_cookie, local_port) {
                log!(
                    trace,
                    "from {:i} to port {}: nobody listens",
                    from = bytes(&remote),
                    port = local_port
                );
                return SK_PASS;
            }
            ListenerKind::Inbound
        }
    };
    let key = ListenerKey {
        netns_cookie,
        kind: kind as u16,
        ip_version,
        reserved: 0,
    };
    if works() && LISTENERS.redirect_sk_lookup(&ctx, key, 0).is_ok() {
        log!(
            debug,
            "from {:i} to port {}: to the agent",
            from = bytes(&remote),
            port = local_port
        );
        return SK_PASS;
    }
    // No listener means no agent: plaintext reaches the application only where the operator wants it so.
    match workload {
        Some(workload) if workload.fails_open() => {
            log!(
                warn,
                "from {:i} to port {}: left alone, no agent serves it",
                from = bytes(&remote),
                port = local_port
            );
            SK_PASS
        }
        _ => {
            log!(
                warn,
                "from {:i} to port {}: dropped, no agent serves it",
                from = bytes(&remote),
                port = local_port
            );
            SK_DROP
        }
    }
}

/// Whether an application listens on the port, or the configuration has one behind it.
#[inline(always)]
fn is_served(netns_cookie: u64, port: u16) -> bool {
    let has = |key: ListeningPort| {
        // SAFETY: a counter that is only compared with zero.
        unsafe { LISTENING.get(key) }.is_some_and(|count| *count > 0)
    };
    has(ListeningPort::listened(netns_cookie, port))
        || has(ListeningPort::configured(netns_cookie, port))
}

/// Questions of a resolver that was connected to the agent's socket while there was an agent: no
/// program sees such a socket send. Without an agent they are refused, whoever has the port now.
#[inline(always)]
fn datagram(
    workload: Option<&Workload>,
    netns_cookie: u64,
    local: &Ip,
    local_port: u16,
    ip_version: u16,
) -> u32 {
    match workload {
        Some(workload) if workload.is_dns_socket(local, local_port) => {
            let listener = ListenerKey {
                netns_cookie,
                kind: ListenerKind::Outbound as u16,
                ip_version,
                reserved: 0,
            };
            if is_open(listener) { SK_PASS } else { SK_DROP }
        }
        _ => SK_PASS,
    }
}

/// A connection of a workload of this node, by a verdict of the agent: only the
/// kernel writes these entries, at the SYN of that very connection.
#[inline(always)]
fn is_direct(raw: *mut bpf_sk_lookup, netns_cookie: u64, remote: &Ip, local_port: u16) -> bool {
    let tuple = Tuple {
        netns_cookie,
        source: *remote,
        // SAFETY: a field of the context, in network order.
        source_port: u16::from_be(unsafe { ptr::read_volatile(&raw const (*raw).remote_port) }),
        destination_port: local_port,
        reserved: 0,
    };
    // SAFETY: values are written whole.
    match unsafe { CONNECTING.get(tuple) } {
        Some(origin) => origin.role == OriginRole::Direct as u32,
        None => false,
    }
}
