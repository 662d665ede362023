//! Which sockets take part in the short-circuit, and how the two ends of a
//! connection come to know each other. `sk_msg.rs` uses it.

use core::ptr;

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated;
use mesh_common::{Sender, Splice, SplicePeer, Workload, direction, workload_flag};

use crate::context::{socket_cookie, watch};
use crate::kernel;
use crate::log::log;
use crate::maps::{SPLICE_PEERS, SPLICED_SOCKETS, SPLICES};

const BPF_NOEXIST: u64 = 1;
/// `BPF_SK_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;

/// Which ends of a connection that an application opens to the agent may hand
/// their bytes over.
#[inline(always)]
pub fn with_agent(workload: &Workload) -> u32 {
    allowed(workload, direction::CLIENT, direction::SERVER)
}

/// The same for a connection that the agent opens to an application.
#[inline(always)]
pub fn with_application(workload: &Workload) -> u32 {
    allowed(workload, direction::SERVER, direction::CLIENT)
}

#[inline(always)]
fn allowed(workload: &Workload, application: u32, agent: u32) -> u32 {
    if !kernel::is_known() {
        return 0;
    }
    let may = |flag, end| if workload.flags & flag != 0 { end } else { 0 };
    may(workload_flag::SPLICE_TO_AGENT, application) | may(workload_flag::SPLICE_FROM_AGENT, agent)
}

/// The connecting end is established. The other end may not exist yet.
#[inline(always)]
pub fn connected(raw: *mut bpf_sock_ops, sk: *mut bpf_sock, ends: u32, is_agent: bool) {
    let nobody = SplicePeer { cookie: 0, sock: 0 };
    join(raw, sk, nobody, sender(ends, direction::CLIENT, is_agent));
}

/// The accepting end is established; `client` is the other end.
#[inline(always)]
pub fn accepted(
    raw: *mut bpf_sock_ops,
    sk: *mut bpf_sock,
    client: SplicePeer,
    ends: u32,
    is_agent: bool,
) {
    let sender = sender(ends, direction::SERVER, is_agent);
    let Some(own) = join(raw, sk, client, sender) else {
        return;
    };
    let this = SplicePeer {
        cookie: own,
        sock: sk as u64,
    };
    let _ = SPLICE_PEERS.insert(&client.cookie, &this, 0);
}

#[inline(always)]
fn sender(ends: u32, own: u32, is_agent: bool) -> u32 {
    let sender = match (ends & own != 0, is_agent) {
        (false, _) => Sender::Nobody,
        (true, false) => Sender::Application,
        (true, true) => Sender::Agent,
    };
    sender as u32
}

/// This end's cookie, where it takes part.
#[inline(always)]
fn join(raw: *mut bpf_sock_ops, sk: *mut bpf_sock, peer: SplicePeer, sends: u32) -> Option<u64> {
    let own = socket_cookie(raw.cast());
    // SAFETY: the context of the program and a key on the stack.
    let added = unsafe { SPLICED_SOCKETS.update(own, &mut *raw, BPF_NOEXIST) };
    if added.is_err() {
        // Full, or a kernel that does not take this socket: TCP carries everything.
        say(raw, false, 0);
        return None;
    }
    say(raw, true, sends);
    watch(raw, BPF_SOCK_OPS_STATE_CB_FLAG);
    // Made in place, all zero at first: the program's stack has no room for another one.
    // SAFETY: a checked socket pointer of the context.
    let splice = unsafe {
        generated::bpf_sk_storage_get(
            ptr::from_ref(&SPLICES).cast_mut().cast(),
            sk.cast(),
            ptr::null_mut(),
            CREATE,
        )
        .cast::<Splice>()
        .as_mut()
    }?;
    splice.own = own;
    splice.own_sock = sk as u64;
    splice.peer = peer.cookie;
    splice.peer_sock = peer.sock;
    splice.sends = sends;
    Some(own)
}

/// A log line, in a frame of its own: that of the program is full.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(
    not(feature = "log"),
    inline(always),
    expect(unused_variables, reason = "for log lines alone")
)]
fn say(raw: *mut bpf_sock_ops, joined: bool, sends: u32) {
    // SAFETY: fields of the context; the remote port is in network order.
    #[cfg(feature = "log")]
    let (port, its_port) = unsafe {
        let remote = ptr::read_volatile(&raw const (*raw).remote_port);
        let local = ptr::read_volatile(&raw const (*raw).local_port);
        (local, u32::from_be(remote))
    };
    if joined {
        log!(
            debug,
            "short-circuit from port {} to port {}: sends {}",
            port = port,
            its_port = its_port,
            sends = sends
        );
    } else {
        log!(
            debug,
            "no short-circuit from port {} to port {}: the map is full, or takes no such socket",
            port = port,
            its_port = its_port
        );
    }
}

/// This end's storage, with the other end filled in as soon as that is there.
#[inline(always)]
pub fn of(sk: *mut bpf_sock) -> Option<&'static mut Splice> {
    // SAFETY: a checked socket pointer of the context.
    let splice = unsafe {
        generated::bpf_sk_storage_get(
            ptr::from_ref(&SPLICES).cast_mut().cast(),
            sk.cast(),
            ptr::null_mut(),
            0,
        )
        .cast::<Splice>()
        .as_mut()
    }?;
    if splice.peer == 0 {
        // SAFETY: values are written whole.
        let peer = unsafe { SPLICE_PEERS.get(splice.own) }.copied()?;
        splice.peer_sock = peer.sock;
        splice.peer = peer.cookie;
        let _ = SPLICE_PEERS.remove(&splice.own);
    }
    Some(splice)
}
