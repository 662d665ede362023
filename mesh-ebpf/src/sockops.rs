//! `sock_ops`: carries original addresses from the connecting socket to the
//! accepted one, keeps the list of ports on which applications listen, and
//! accounts for every connection of a workload.

use core::ptr;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB,
    BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::{Flow, FlowState, Ip, ListeningPort, Origin, OriginRole, SocketIp, Tuple};

use crate::context::{
    agent_socket, is_host, netns_cookie, origin, set_origin, socket_cookie, workload,
};
use crate::maps::{CONNECTING, FLOWS, LISTENING};

const AF_INET: u32 = 2;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
const FLAGS: i32 = (BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG) as i32;

#[sock_ops]
pub fn um_sockops(ctx: SockOpsContext) -> u32 {
    let raw = ctx.ops;
    // SAFETY: fields of the context.
    let op = unsafe { ptr::read_volatile(&raw const (*raw).op) };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB
        | BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        | BPF_SOCK_OPS_TCP_LISTEN_CB
        | BPF_SOCK_OPS_STATE_CB
        | BPF_SOCK_OPS_RTT_CB => {}
        _ => return 1,
    }
    let netns_cookie = netns_cookie(raw.cast());
    let host = workload(netns_cookie).is_none();
    if host && !is_host(netns_cookie) {
        return 1;
    }
    // SAFETY: a pointer field of the context, null for request sockets.
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return 1;
    }
    if host && !is_of_host_workload(op, sk) {
        return 1;
    }
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(raw, sk, netns_cookie),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => update(raw, FlowState::Open),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(raw, sk, netns_cookie, host),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(raw, sk, netns_cookie),
        BPF_SOCK_OPS_STATE_CB => state(raw, netns_cookie),
        _ => update(raw, FlowState::Open),
    }
    1
}

/// In the host's own namespace only sockets count that the connect program has
/// sent to the agent, and the agent's ends of them, which `accepted` tells apart.
#[inline(always)]
fn is_of_host_workload(op: u32, sk: *mut bpf_sock) -> bool {
    match op {
        BPF_SOCK_OPS_TCP_LISTEN_CB => false,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => true,
        _ => origin(sk).is_some(),
    }
}

/// Before the SYN leaves; the source port is chosen by now.
#[inline(always)]
fn connecting(raw: *mut bpf_sock_ops, sk: *mut bpf_sock, netns_cookie: u64) {
    let (local, remote) = ends(raw);
    let tuple = Tuple {
        netns_cookie,
        source: local.ip,
        source_port: local.port,
        destination_port: remote.port,
        reserved: 0,
    };
    if let Some(socket) = agent_socket(sk) {
        // Agent to application: the application shall see the true client.
        if !socket.client.ip.is_unspecified() {
            let origin = Origin {
                flow: 0,
                address: socket.client,
                role: OriginRole::Application as u32,
            };
            let _ = CONNECTING.insert(&tuple, &origin, 0);
        }
        return;
    }
    let asked = match origin(sk) {
        Some(origin) => {
            // Application to agent: the agent shall see the original destination.
            let carried = Origin {
                flow: origin.flow,
                address: origin.address,
                role: OriginRole::Agent as u32,
            };
            let _ = CONNECTING.insert(&tuple, &carried, 0);
            origin.address
        }
        None => remote,
    };
    open(
        raw,
        netns_cookie,
        false,
        &local,
        &asked,
        FlowState::Connecting,
    );
}

#[inline(always)]
fn accepted(raw: *mut bpf_sock_ops, sk: *mut bpf_sock, netns_cookie: u64, host: bool) {
    let (local, remote) = ends(raw);
    if host && !local.ip.is_loopback() {
        return;
    }
    let tuple = Tuple {
        netns_cookie,
        source: remote.ip,
        source_port: remote.port,
        destination_port: local.port,
        reserved: 0,
    };
    // SAFETY: values are written whole.
    let carried = unsafe { CONNECTING.get(tuple) }.copied();
    let client = match carried {
        Some(origin) => {
            set_origin(sk, &origin);
            let _ = CONNECTING.remove(&tuple);
            if origin.role == OriginRole::Agent as u32 {
                // The agent's side: the application's own socket carries the account.
                return;
            }
            origin.address
        }
        // From outside, before the agent: the flow towards the application counts.
        None if host || (!remote.ip.same(&local.ip) && !local.ip.is_loopback()) => return,
        None => remote,
    };
    open(raw, netns_cookie, true, &local, &client, FlowState::Open);
}

#[inline(always)]
fn open(
    raw: *mut bpf_sock_ops,
    netns_cookie: u64,
    inbound: bool,
    local: &SocketIp,
    remote: &SocketIp,
    state: FlowState,
) {
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let flow = Flow {
        netns_cookie,
        opened_ns: now,
        updated_ns: now,
        bytes_sent: 0,
        bytes_received: 0,
        segments_sent: 0,
        segments_received: 0,
        rtt_us: 0,
        retransmits: 0,
        state: state as u32,
        inbound: inbound as u32,
        local: *local,
        remote: *remote,
    };
    let cookie = socket_cookie(raw.cast());
    // LRU: the oldest record makes room.
    let _ = FLOWS.insert(&cookie, &flow, 0);
    // SAFETY: the context of the program.
    unsafe { bpf_sock_ops_cb_flags_set(raw, FLAGS) };
}

#[inline(always)]
fn update(raw: *mut bpf_sock_ops, state: FlowState) {
    let cookie = socket_cookie(raw.cast());
    let Some(flow) = FLOWS.get_ptr_mut(&cookie) else {
        return;
    };
    // SAFETY: a value of the map; only this socket's callbacks write it, under the socket's lock.
    unsafe {
        (*flow).updated_ns = bpf_ktime_get_ns();
        (*flow).bytes_sent = ptr::read_volatile(&raw const (*raw).bytes_acked);
        (*flow).bytes_received = ptr::read_volatile(&raw const (*raw).bytes_received);
        (*flow).segments_sent = ptr::read_volatile(&raw const (*raw).segs_out);
        (*flow).segments_received = ptr::read_volatile(&raw const (*raw).segs_in);
        // The kernel keeps eight times the smoothed value.
        (*flow).rtt_us = ptr::read_volatile(&raw const (*raw).srtt_us) >> 3;
        (*flow).retransmits = ptr::read_volatile(&raw const (*raw).total_retrans);
        (*flow).state = state as u32;
    }
}

#[inline(always)]
fn state(raw: *mut bpf_sock_ops, netns_cookie: u64) {
    // SAFETY: for this callback the arguments are old and new state.
    let (old, new) = unsafe {
        let args = (&raw const (*raw).__bindgen_anon_1).cast::<u32>();
        (ptr::read_volatile(args), ptr::read_volatile(args.add(1)))
    };
    if old == TCP_LISTEN {
        count_listener(raw, netns_cookie, false);
    } else if new == TCP_CLOSE {
        update(raw, FlowState::Closed);
    }
}

#[inline(always)]
fn listening(raw: *mut bpf_sock_ops, sk: *mut bpf_sock, netns_cookie: u64) {
    if agent_socket(sk).is_some() {
        return;
    }
    count_listener(raw, netns_cookie, true);
    // SAFETY: the context of the program.
    unsafe { bpf_sock_ops_cb_flags_set(raw, BPF_SOCK_OPS_STATE_CB_FLAG as i32) };
}

/// Several sockets may listen on one port (SO_REUSEPORT, IPv4 and IPv6).
#[inline(always)]
fn count_listener(raw: *mut bpf_sock_ops, netns_cookie: u64, more: bool) {
    // SAFETY: a field of the context, host order.
    let port = unsafe { ptr::read_volatile(&raw const (*raw).local_port) } as u16;
    let key = ListeningPort {
        netns_cookie,
        port,
        reserved: [0; 3],
    };
    match LISTENING.get_ptr_mut(&key) {
        // Modulo 2^64, adding the maximum takes one away.
        Some(count) => add(count, if more { 1 } else { u64::MAX }),
        None if more => {
            let _ = LISTENING.insert(&key, &1, 0);
        }
        None => {}
    }
}

/// Adds atomically. `core` has no such operation for the kernel's target.
#[inline(always)]
fn add(counter: *mut u64, value: u64) {
    // SAFETY: an aligned counter in map memory.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value) };
}

/// Local and remote end in canonical form.
#[inline(always)]
fn ends(raw: *mut bpf_sock_ops) -> (SocketIp, SocketIp) {
    // SAFETY: fields of the context, read one by one. `local_port` is in host order, `remote_port` in network
    // order in the upper half on little endian machines.
    unsafe {
        let local_port = ptr::read_volatile(&raw const (*raw).local_port) as u16;
        let remote_port = u32::from_be(ptr::read_volatile(&raw const (*raw).remote_port)) as u16;
        let family = ptr::read_volatile(&raw const (*raw).family);
        // Both families are read and one is chosen: reads in branches would be merged into one at a
        // computed offset, which the verifier refuses.
        let local4 = Ip::v4(ptr::read_volatile(&raw const (*raw).local_ip4));
        let remote4 = Ip::v4(ptr::read_volatile(&raw const (*raw).remote_ip4));
        let local6 = read6((&raw const (*raw).local_ip6).cast());
        let remote6 = read6((&raw const (*raw).remote_ip6).cast());
        let (local, remote) = if family == AF_INET {
            (local4, remote4)
        } else {
            (local6, remote6)
        };
        (
            SocketIp::new(local, local_port),
            SocketIp::new(remote, remote_port),
        )
    }
}

#[inline(always)]
unsafe fn read6(words: *const u32) -> Ip {
    // SAFETY: the caller points at four words of the context.
    unsafe {
        Ip::v6([
            ptr::read_volatile(words),
            ptr::read_volatile(words.add(1)),
            ptr::read_volatile(words.add(2)),
            ptr::read_volatile(words.add(3)),
        ])
    }
}
