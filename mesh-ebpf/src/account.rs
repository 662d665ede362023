//! The account of every connection: a record in `flows`, a hint in `flow_events`.

use core::ptr;

use aya_ebpf::bindings::{BPF_SOCK_OPS_RTT_CB_FLAG, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use mesh_common::{
    Counter, Flow, FlowEvent, FlowEventKind, FlowState, HandedOver, SocketIp, Splice, beside_bytes,
    close_reason,
};

use crate::context::{add, count, count_more, socket_cookie, unwatch};
use crate::kernel;
use crate::maps::{FLOW_EVENTS, FLOWS};

/// `rtt_min` before the first measurement.
const NO_RTT: u32 = u32::MAX;

/// So many segments are followed by the record one by one: a short connection is never
/// behind. After them only the end is written, since every call costs, and there are four
/// acknowledgements to a request. Who wants to see open connections asks TCP itself, as
/// the agent does.
const FOLLOWED_SEGMENTS: u32 = 32;

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
            FlowEventKind::Opened,
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
    let (netns_cookie, remote) = unsafe {
        (*flow).state = FlowState::Open as u32;
        (*flow).connect_us = ((now - (*flow).opened_ns) / 1000) as u32;
        ((*flow).netns_cookie, (*flow).remote)
    };
    event(cookie, netns_cookie, now, FlowEventKind::Opened, &remote);
}

/// A round trip was measured: takes the counters.
#[inline(always)]
pub fn measured(raw: *mut bpf_sock_ops) {
    // SAFETY: a field of the context.
    let segments = unsafe { ptr::read_volatile(&raw const (*raw).segs_out) };
    if segments > FOLLOWED_SEGMENTS {
        unwatch(raw, BPF_SOCK_OPS_RTT_CB_FLAG);
    }
    if let Some(flow) = FLOWS.get_ptr_mut(&socket_cookie(raw.cast())) {
        measure(raw, flow, false);
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
    let (netns_cookie, remote) = unsafe {
        (*flow).closed_ns = now;
        (*flow).state = FlowState::Closed as u32;
        (*flow).close_reason = close_reason(before) as u32;
        ((*flow).netns_cookie, (*flow).remote)
    };
    event(cookie, netns_cookie, now, FlowEventKind::Closed, &remote);
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
    unrecorded.record();
    count_more(Counter::HandedOver, u64::from(messages));
    if let Some(flow) = FLOWS.get_ptr_mut(&sender) {
        // SAFETY: a value of the map.
        add(unsafe { &raw mut (*flow).spliced_sent }, u64::from(bytes));
    }
    if let Some(flow) = FLOWS.get_ptr_mut(&receiver) {
        // SAFETY: as above.
        add(
            unsafe { &raw mut (*flow).spliced_received },
            u64::from(bytes),
        );
    }
    messages
}

/// A connection is refused before it begins.
#[inline(always)]
pub fn denied(netns_cookie: u64, cookie: u64, remote: &SocketIp) {
    count(Counter::Denied);
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    event(cookie, netns_cookie, now, FlowEventKind::Denied, remote);
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
fn event(flow: u64, netns_cookie: u64, at_ns: u64, kind: FlowEventKind, remote: &SocketIp) {
    let event = FlowEvent {
        flow,
        netns_cookie,
        at_ns,
        kind: kind as u32,
        remote: *remote,
    };
    if !FLOW_EVENTS.output(&event) {
        count(Counter::EventsDropped);
    }
}
