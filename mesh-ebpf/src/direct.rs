//! The agent's verdicts, and the endpoint of a direct one: a VIP becomes an
//! endpoint with the service's load balancing.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use mesh_common::{
    Endpoint, EndpointKey, ListeningPort, SocketIp, Verdict, VerdictKey, is_worth_joining,
    try_joining,
};

use crate::context::add;
use crate::maps::{ENDPOINT_LOAD, ENDPOINTS, GENERATION, VERDICTS};

/// The verdict that is in force for a destination.
#[inline(always)]
pub fn verdict(netns_cookie: u64, destination: &SocketIp) -> Option<*mut Verdict> {
    let verdict = any(netns_cookie, destination)?;
    let generation = GENERATION.get_ptr(0)?;
    // SAFETY: values of the maps; the agent replaces verdicts whole.
    let is_current = unsafe { (*verdict).generation == generation.read_volatile() };
    is_current.then_some(verdict)
}

#[inline(always)]
fn any(netns_cookie: u64, destination: &SocketIp) -> Option<*mut Verdict> {
    VERDICTS.get_ptr_mut(&VerdictKey {
        netns_cookie,
        destination: destination.ip,
        port: destination.port,
        reserved: [0; 3],
    })
}

/// A connection to this destination has turned out to be one that lasts.
#[inline(always)]
pub fn lasts(netns_cookie: u64, destination: &SocketIp) {
    if let Some(verdict) = any(netns_cookie, destination) {
        // SAFETY: a value of the map; who writes at the same moment writes nearly the same.
        unsafe { (*verdict).lasting = (&raw const (*verdict).turn).read_volatile() };
    }
}

/// Chooses an endpoint of a direct verdict, and whether its connection takes part in the
/// short-circuit.
#[inline(always)]
pub fn choose(verdict: *mut Verdict) -> Option<Endpoint> {
    // SAFETY: a value of the map; the agent replaces it whole, but for what only programs write.
    let (set, count, algorithm, turn, lasting) = unsafe {
        let turn = &raw mut (*verdict).turn;
        let before = turn.read_volatile();
        // Two connections at the very same moment may take the same turn.
        add(turn, 1);
        (
            (*verdict).endpoint_set,
            (*verdict).endpoint_count,
            (*verdict).algorithm,
            before,
            (*verdict).lasting,
        )
    };
    // SAFETY: no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let slot = mesh_common::choose(algorithm, count, random, turn, |slot| {
        // SAFETY: values are written whole.
        match unsafe { ENDPOINTS.get(EndpointKey { set, slot }) } {
            Some(endpoint) => load(endpoint.netns_cookie, endpoint.address.port),
            None => u64::MAX,
        }
    });
    // SAFETY: values are written whole.
    let endpoint = unsafe { ENDPOINTS.get(EndpointKey { set, slot }) }?;
    Some(Endpoint {
        splice: if is_worth_joining(turn, lasting) || is_tried(verdict) {
            endpoint.splice
        } else {
            0
        },
        ..*endpoint
    })
}

/// Whether one that is taken for short joins, to see whether it is.
#[inline(always)]
fn is_tried(verdict: *mut Verdict) -> bool {
    // SAFETY: a value of the map; of two that write at the same moment one is not counted.
    unsafe {
        let tried = &raw mut (*verdict).tried;
        let next = try_joining(tried.read_volatile(), bpf_ktime_get_ns());
        if let Some(next) = next {
            tried.write_volatile(next);
        }
        next.is_some()
    }
}

#[inline(always)]
fn load(netns_cookie: u64, port: u16) -> u64 {
    // SAFETY: a counter.
    unsafe { ENDPOINT_LOAD.get(key(netns_cookie, port)) }
        .copied()
        .unwrap_or(0)
}

/// A direct connection to this endpoint begins.
#[inline(always)]
pub fn begin(netns_cookie: u64, port: u16) {
    let key = key(netns_cookie, port);
    match ENDPOINT_LOAD.get_ptr_mut(&key) {
        Some(load) => add(load, 1),
        None => {
            let _ = ENDPOINT_LOAD.insert(&key, &1, 0);
        }
    }
}

/// A direct connection to this endpoint has ended.
#[inline(always)]
pub fn end(netns_cookie: u64, port: u16) {
    if let Some(load) = ENDPOINT_LOAD.get_ptr_mut(&key(netns_cookie, port)) {
        // SAFETY: a counter. An entry that was evicted in between began again at 0.
        if unsafe { load.read_volatile() } > 0 {
            add(load, u64::MAX);
        }
    }
}

#[inline(always)]
fn key(netns_cookie: u64, port: u16) -> ListeningPort {
    ListeningPort::listened(netns_cookie, port)
}
