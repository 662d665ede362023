//! The account of every connection: a record in `flows`, a hint in `flow_events`.

use core::ptr;

use aya_ebpf::bindings::{BPF_SOCK_OPS_RTT_CB_FLAG, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use mesh_common::{
    CloseReason, Counter, Flow, FlowEvent, FlowEventKind, FlowState, HandedOver, Ip, SocketIp,
    Splice, VerdictKind, Workload, beside_bytes, close_reason, refusal,
};

use crate::context::{add, count, count_more, socket_cookie, unwatch};
use crate::listener::works;
use crate::maps::{FLOW_EVENTS, FLOW_PATHS, FLOWS};
use crate::{direct, kernel};

/// `rtt_min` before the first measurement.
const NO_RTT: u32 = u32::MAX;

/// So many segments are followed by the record one by one: a short connection is never
/// behind. One with more, or with as many messages handed over, is one that lasts. After them only the end is written, since every call costs, and there are four
/// acknowledgements to a request. Who wants to see open connections asks TCP itself, as
/// the agent does.
const FOLLOWED_SEGMENTS: u32 = 32;

/// What is handed over in that many bytes lasts, too, in however few messages.
const LONG: u32 = 256 << 10;

/// What a new record starts from.
pub const NO_FLOW: Flow = Flow {
    netns_cookie: 0,
    peer: 0,
    opened_ns: 0,
    updated_ns: 0,
    closed_ns: 0,
    bytes_sent: 0,
    bytes_received: 0,
    spliced_sent: 0,
    spliced_received: 0,
    segments_sent: 0,
    segments_received: 0,
    rtt_us: 0,
    min_rtt_us: 0,
    connect_us: 0,
    retransmits: 0,
    state: 0,
    close_reason: 0,
    inbound: 0,
    verdict: 0,
    source_identity: 0,
    transport: 0,
    local: SocketIp::new(Ip::UNSPECIFIED, 0),
    remote: SocketIp::new(Ip::UNSPECIFIED, 0),
    endpoint: SocketIp::new(Ip::UNSPECIFIED, 0),
    destination_identity: 0,
};

/// A record for a new connection.
#[inline(always)]
pub fn open(raw: *mut bpf_sock_ops, flow: &Flow) {
    let cookie = socket_cookie(raw.cast());
    if FLOWS.insert(&cookie, flow, 0).is_err() {
        count(Counter::FlowsDropped);
    } else if flow.state == FlowState::Open as u32 {
        event(
            cookie,
            flow.netns_cookie,
            flow.opened_ns,
            (FlowEventKind::Opened, flow.verdict),
            &flow.remote,
        );
    }
}

/// The other end has answered the SYN.
#[inline(always)]
pub fn established(raw: *mut bpf_sock_ops) {
    let cookie = socket_cookie(raw.cast());
    let Some(flow) = FLOWS.get_ptr_mut(&cookie) else {
        return;
    };
    let now = measure(raw, flow, false);
    // SAFETY: a value of the map; only this socket's callbacks write these fields, under the socket's lock.
    let (netns_cookie, verdict, remote) = unsafe {
        (*flow).state = FlowState::Open as u32;
        (*flow).connect_us = ((now - (*flow).opened_ns) / 1000) as u32;
        ((*flow).netns_cookie, (*flow).verdict, (*flow).remote)
    };
    let what = (FlowEventKind::Opened, verdict);
    event(cookie, netns_cookie, now, what, &remote);
}

/// A round trip was measured: takes the counters.
#[inline(always)]
pub fn measured(raw: *mut bpf_sock_ops) {
    // SAFETY: a field of the context.
    let segments = unsafe { ptr::read_volatile(&raw const (*raw).segs_out) };
    let lasts = segments > FOLLOWED_SEGMENTS;
    if lasts {
        unwatch(raw, BPF_SOCK_OPS_RTT_CB_FLAG);
    }
    if let Some(flow) = FLOWS.get_ptr_mut(&socket_cookie(raw.cast())) {
        measure(raw, flow, false);
        if lasts {
            lasting(flow);
        }
    }
}

/// A connection has turned out to be one that lasts; of the other end's record nothing is done.
#[inline(always)]
fn lasting(flow: *const Flow) {
    // SAFETY: a value of the map; nobody writes these fields any more.
    let (verdict, inbound, netns_cookie, remote) = unsafe {
        let Flow {
            verdict,
            inbound,
            netns_cookie,
            remote,
            ..
        } = &*flow;
        (*verdict, *inbound, *netns_cookie, remote)
    };
    if verdict == VerdictKind::Direct as u32 && inbound == 0 {
        direct::lasts(netns_cookie, remote);
    }
}

/// The connection has ended; `before` is its TCP state until then.
#[inline(always)]
pub fn closed(raw: *mut bpf_sock_ops, sk: *mut bpf_sock, before: u32) {
    let cookie = socket_cookie(raw.cast());
    let Some(flow) = FLOWS.get_ptr_mut(&cookie) else {
        return;
    };
    let now = measure(raw, flow, kernel::is_read_to_the_end(sk));
    // SAFETY: as above.
    let segments = unsafe { ((*flow).segments_sent, (*flow).segments_received) };
    if segments.0 > FOLLOWED_SEGMENTS || segments.1 > FOLLOWED_SEGMENTS {
        lasting(flow);
    }
    let refusal = refused_by_agent(cookie, flow);
    // SAFETY: as above.
    let (netns_cookie, verdict, remote) = unsafe {
        let is_heard = (*flow).segments_received > 0;
        let reason = match refusal {
            Some(refusal) => refusal,
            None => close_reason(before, is_heard, kernel::has_timed_out(sk)),
        };
        if refusal.is_some() {
            (*flow).verdict = VerdictKind::Deny as u32;
        }
        (*flow).closed_ns = now;
        (*flow).state = FlowState::Closed as u32;
        (*flow).close_reason = reason as u32;
        ((*flow).netns_cookie, (*flow).verdict, (*flow).remote)
    };
    if refusal.is_some() {
        count(Counter::Denied);
        let what = (FlowEventKind::Denied, verdict);
        event(cookie, netns_cookie, now, what, &remote);
    }
    let what = (FlowEventKind::Closed, verdict);
    event(cookie, netns_cookie, now, what, &remote);
}

/// Of a connection that went to the agent: why that has let nothing pass.
#[inline(always)]
fn refused_by_agent(cookie: u64, flow: *const Flow) -> Option<CloseReason> {
    // SAFETY: a value of the map; nobody but this socket's callbacks writes these fields.
    let (verdict, inbound) = unsafe { ((*flow).verdict, (*flow).inbound) };
    if verdict != VerdictKind::Proxy as u32 || inbound != 0 {
        return None;
    }
    // SAFETY: values are written whole.
    let path = unsafe { FLOW_PATHS.get(cookie) }?;
    refusal(path.transport)
}

/// Writes what an end has handed over to the records of both ends. An end that
/// is a socket of the agent has none.
#[inline(always)]
pub fn handed_over(splice: &mut Splice) {
    record(&mut splice.unrecorded, splice.own, splice.peer);
}

/// The same for what went over its bridge.
#[inline(always)]
pub fn bridged(splice: &mut Splice) {
    let messages = record(&mut splice.bridged, splice.own, splice.bridge.receiver);
    count_more(Counter::Bridged, u64::from(messages));
}

#[inline(always)]
fn record(unrecorded: &mut HandedOver, sender: u64, receiver: u64) -> u32 {
    let HandedOver {
        messages, bytes, ..
    } = *unrecorded;
    if messages == 0 {
        return 0;
    }
    let before = unrecorded.recorded_messages;
    unrecorded.record();
    let lasts = bytes >= LONG
        || before < FOLLOWED_SEGMENTS && unrecorded.recorded_messages >= FOLLOWED_SEGMENTS;
    count_more(Counter::HandedOver, u64::from(messages));
    if let Some(flow) = FLOWS.get_ptr_mut(&sender) {
        if lasts {
            lasting(flow);
        }
        // SAFETY: a value of the map.
        add(unsafe { &raw mut (*flow).spliced_sent }, u64::from(bytes));
    }
    if let Some(flow) = FLOWS.get_ptr_mut(&receiver) {
        if lasts {
            lasting(flow);
        }
        // SAFETY: as above.
        add(
            unsafe { &raw mut (*flow).spliced_received },
            u64::from(bytes),
        );
    }
    messages
}

/// A connection is refused before it begins. It has a record, too, as long as there is an
/// agent that makes room again: whoever tries in vain, over and over, is not to fill the account.
#[inline(always)]
pub fn denied(
    netns_cookie: u64,
    cookie: u64,
    workload: &Workload,
    remote: &SocketIp,
    by_policy: bool,
) {
    count(Counter::Denied);
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if works() {
        // Not on the stack, which has no room for it.
        if FLOWS.insert(&cookie, &NO_FLOW, 0).is_err() {
            count(Counter::FlowsDropped);
        } else if let Some(flow) = FLOWS.get_ptr_mut(&cookie) {
            // SAFETY: a value of the map; the socket is not connected.
            unsafe {
                (*flow).netns_cookie = netns_cookie;
                (*flow).opened_ns = now;
                (*flow).updated_ns = now;
                (*flow).closed_ns = now;
                (*flow).state = FlowState::Closed as u32;
                (*flow).close_reason = if by_policy {
                    CloseReason::Policy as u32
                } else {
                    CloseReason::Refused as u32
                };
                (*flow).verdict = VerdictKind::Deny as u32;
                (*flow).source_identity = workload.identity;
                (*flow).local.ip = if remote.ip.is_v4() {
                    workload.ip4
                } else {
                    workload.ip6
                };
                (*flow).remote = *remote;
            }
        }
    }
    let what = (FlowEventKind::Denied, VerdictKind::Deny as u32);
    event(cookie, netns_cookie, now, what, remote);
}

/// Copies TCP's counters; the time it is.
#[inline(always)]
fn measure(raw: *mut bpf_sock_ops, flow: *mut Flow, read_to_the_end: bool) -> u64 {
    // SAFETY: a value of the map; only this socket's callbacks write these fields, under the socket's lock.
    unsafe {
        let now = bpf_ktime_get_ns();
        (*flow).updated_ns = now;
        let (sent, received) = beside_bytes(
            ptr::read_volatile(&raw const (*raw).state),
            (*flow).inbound != 0,
            read_to_the_end,
        );
        (*flow).bytes_sent = ptr::read_volatile(&raw const (*raw).bytes_acked).saturating_sub(sent);
        (*flow).bytes_received =
            ptr::read_volatile(&raw const (*raw).bytes_received).saturating_sub(received);
        (*flow).segments_sent = ptr::read_volatile(&raw const (*raw).segs_out);
        (*flow).segments_received = ptr::read_volatile(&raw const (*raw).segs_in);
        // The kernel keeps eight times the smoothed value.
        (*flow).rtt_us = ptr::read_volatile(&raw const (*raw).srtt_us) >> 3;
        let shortest = ptr::read_volatile(&raw const (*raw).rtt_min);
        if shortest != NO_RTT {
            (*flow).min_rtt_us = shortest;
        }
        (*flow).retransmits = ptr::read_volatile(&raw const (*raw).total_retrans);
        now
    }
}

#[inline(always)]
fn event(
    flow: u64,
    netns_cookie: u64,
    at_ns: u64,
    (kind, verdict): (FlowEventKind, u32),
    remote: &SocketIp,
) {
    let event = FlowEvent {
        flow,
        netns_cookie,
        at_ns,
        kind: kind as u16,
        verdict: verdict as u16,
        remote: *remote,
    };
    if !FLOW_EVENTS.output(&event) {
        count(Counter::EventsDropped);
    }
}
