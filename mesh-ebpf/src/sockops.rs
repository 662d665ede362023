//! `sock_ops`: carries original addresses from the connecting socket to the
//! accepted one, brings the two ends of a connection on this node together,
//! keeps the list of ports on which applications listen, and reports to the
//! account.

use core::ptr;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB,
    BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::{
    Flow, FlowState, ListeningPort, Origin, OriginRole, SocketIp, SplicePeer, Tuple, VerdictKind,
    Workload,
};

use crate::account::NO_FLOW;
use crate::context::{
    NO_ORIGIN, add, agent_socket, ends, is_host, netns_cookie, origin, set_origin, socket_cookie,
    watch, workload,
};
use crate::maps::{CONNECTING, FLOWS, LISTENING};
use crate::{account, direct, splice};

const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

#[sock_ops]
pub fn um_sockops(ctx: SockOpsContext) -> u32 {
    let raw = ctx.ops;
    // SAFETY: fields of the context.
    let op = unsafe { ptr::read_volatile(&raw const (*raw).op) };
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB
        | BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        | BPF_SOCK_OPS_TCP_LISTEN_CB => {}
        // With every acknowledgement, of sockets alone that have asked for it.
        BPF_SOCK_OPS_RTT_CB => {
            account::measured(raw);
            return 1;
        }
        // Of those, and of what a listener has accepted that has.
        BPF_SOCK_OPS_STATE_CB => {
            state(raw);
            return 1;
        }
        _ => return 1,
    }
    let netns_cookie = netns_cookie(raw.cast());
    let workload = workload(netns_cookie);
    let host = workload.is_none();
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
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(raw, sk, netns_cookie, workload),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(raw, sk),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(raw, sk, netns_cookie, workload),
        _ => listening(raw, sk, netns_cookie),
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
fn connecting(
    raw: *mut bpf_sock_ops,
    sk: *mut bpf_sock,
    netns_cookie: u64,
    workload: Option<&Workload>,
) {
    let (local, remote) = ends(raw);
    if let Some(socket) = agent_socket(sk) {
        // Agent to application: the application shall see the true client.
        if !socket.client.ip.is_unspecified() {
            let ends = workload.map_or(0, splice::with_application);
            let origin = Origin {
                flow: socket_cookie(raw.cast()),
                server_netns: netns_cookie,
                address: socket.client,
                client_sock: sk as u64,
                splice: ends,
                source_identity: socket.source_identity,
                transport: socket.transport,
                ..NO_ORIGIN
            };
            let _ = CONNECTING.insert(&tuple(netns_cookie, &local, &remote), &origin, 0);
            if ends != 0 {
                set_origin(
                    sk,
                    &Origin {
                        role: OriginRole::Agent as u32,
                        ..origin
                    },
                );
            }
        }
        return;
    }
    let mut flow = Flow {
        netns_cookie,
        state: FlowState::Connecting as u32,
        source_identity: workload.map_or(0, |workload| workload.identity),
        local,
        remote,
        ..NO_FLOW
    };
    if let Some(origin) = origin(sk) {
        let mut carried = *origin;
        flow.source_identity = carried.source_identity;
        if carried.role == OriginRole::Direct as u32 {
            flow.verdict = VerdictKind::Direct as u32;
            flow.endpoint = remote;
            flow.destination_identity = carried.destination_identity;
            direct::begin(carried.server_netns, remote.port);
        } else {
            // Application to agent: the agent shall see the original destination.
            carried.role = OriginRole::Agent as u32;
            flow.verdict = VerdictKind::Proxy as u32;
        }
        flow.remote = carried.address;
        let _ = CONNECTING.insert(&tuple(carried.server_netns, &local, &remote), &carried, 0);
    }
    open(raw, flow);
}

/// The connecting end is established.
#[inline(always)]
fn connected(raw: *mut bpf_sock_ops, sk: *mut bpf_sock) {
    if let Some(origin) = origin(sk)
        && origin.splice != 0
    {
        let is_agent = origin.role == OriginRole::Agent as u32;
        splice::connected(raw, sk, origin.splice, is_agent);
    }
    account::established(raw);
}

/// The accepting end is established.
#[inline(always)]
fn accepted(
    raw: *mut bpf_sock_ops,
    sk: *mut bpf_sock,
    netns_cookie: u64,
    workload: Option<&Workload>,
) {
    let (local, remote) = ends(raw);
    let host = workload.is_none();
    if host && !local.ip.is_loopback() {
        return;
    }
    let tuple = tuple(netns_cookie, &remote, &local);
    let mut flow = Flow {
        netns_cookie,
        state: FlowState::Open as u32,
        inbound: 1,
        destination_identity: workload.map_or(0, |workload| workload.identity),
        local,
        remote,
        ..NO_FLOW
    };
    // SAFETY: values are written whole.
    match unsafe { CONNECTING.get(tuple) }.copied() {
        Some(origin) => {
            let _ = CONNECTING.remove(&tuple);
            if origin.splice != 0 {
                let client = SplicePeer {
                    cookie: origin.flow,
                    sock: origin.client_sock,
                };
                let is_agent = origin.role == OriginRole::Agent as u32;
                splice::accepted(raw, sk, client, origin.splice, is_agent);
            }
            flow.source_identity = origin.source_identity;
            flow.transport = origin.transport;
            if origin.role == OriginRole::Direct as u32 {
                flow.verdict = VerdictKind::Direct as u32;
                flow.peer = origin.flow;
                if let Some(client) = FLOWS.get_ptr_mut(&origin.flow) {
                    // SAFETY: a value of the map; nobody else writes this field.
                    unsafe { (*client).peer = socket_cookie(raw.cast()) };
                }
            } else {
                set_origin(sk, &origin);
                if origin.role == OriginRole::Agent as u32 {
                    // The agent's side: the application's own socket carries the account.
                    return;
                }
                flow.verdict = VerdictKind::Proxy as u32;
                flow.remote = origin.address;
            }
        }
        // From outside, before the agent: the flow towards the application counts.
        None if host || (!remote.ip.same(&local.ip) && !local.ip.is_loopback()) => return,
        None => {}
    }
    open(raw, flow);
}

#[inline(always)]
fn open(raw: *mut bpf_sock_ops, mut flow: Flow) {
    // SAFETY: no preconditions.
    flow.opened_ns = unsafe { bpf_ktime_get_ns() };
    flow.updated_ns = flow.opened_ns;
    account::open(raw, &flow);
    watch(raw, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
}

#[inline(always)]
fn state(raw: *mut bpf_sock_ops) {
    // SAFETY: for this callback the arguments are old and new state.
    let (old, new) = unsafe {
        let args = (&raw const (*raw).__bindgen_anon_1).cast::<u32>();
        (ptr::read_volatile(args), ptr::read_volatile(args.add(1)))
    };
    if new == TCP_ESTABLISHED {
        // It has a callback of its own.
        return;
    }
    if old == TCP_LISTEN {
        return count_listener(raw, netns_cookie(raw.cast()), false);
    }
    // SAFETY: a pointer field of the context, null for request sockets.
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // When one end closes, the other one's state changes, too: both records are complete then.
    if let Some(splice) = splice::of(sk) {
        account::handed_over(splice);
        account::bridged(splice);
    }
    if new == TCP_CLOSE {
        if let Some(origin) = origin(sk)
            && origin.flow == socket_cookie(raw.cast())
        {
            // This is the end that connected.
            let (local, remote) = ends(raw);
            if origin.role == OriginRole::Direct as u32 {
                direct::end(origin.server_netns, remote.port);
            }
            // A connection that never came about must not vouch for a later one with the same ports.
            let _ = CONNECTING.remove(&tuple(origin.server_netns, &local, &remote));
        }
        account::closed(raw, sk, old);
    }
}

#[inline(always)]
fn listening(raw: *mut bpf_sock_ops, sk: *mut bpf_sock, netns_cookie: u64) {
    if agent_socket(sk).is_some() {
        return;
    }
    count_listener(raw, netns_cookie, true);
    watch(raw, BPF_SOCK_OPS_STATE_CB_FLAG);
}

/// Several sockets may listen on one port (SO_REUSEPORT, IPv4 and IPv6).
#[inline(always)]
fn count_listener(raw: *mut bpf_sock_ops, netns_cookie: u64, more: bool) {
    // SAFETY: a field of the context, host order.
    let port = unsafe { ptr::read_volatile(&raw const (*raw).local_port) } as u16;
    let key = ListeningPort::listened(netns_cookie, port);
    match LISTENING.get_ptr_mut(&key) {
        // Modulo 2^64, adding the maximum takes one away.
        Some(count) => add(count, if more { 1 } else { u64::MAX }),
        None if more => {
            let _ = LISTENING.insert(&key, &1, 0);
        }
        None => {}
    }
}

/// The key of a connection from `client` to `server`, which is in that namespace.
#[inline(always)]
fn tuple(netns_cookie: u64, client: &SocketIp, server: &SocketIp) -> Tuple {
    Tuple {
        netns_cookie,
        source: client.ip,
        source_port: client.port,
        destination_port: server.port,
        reserved: 0,
    }
}
