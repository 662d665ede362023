//! `cgroup/connect4` and `cgroup/connect6`: a connection of an enrolled
//! workload to an address of the mesh goes to the agent's listener in the same
//! namespace, with the workload's own address as its source.

use core::mem::size_of;
use core::ptr;

use aya_ebpf::bindings::{bpf_sock, sockaddr};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_bind, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{Connect, Ip, Origin, OriginRole, SocketIp, Way, Workload, connect_verdict, way};

use crate::context::{
    FAIL, PROCEED, SockAddr, agent_socket, caller, clear_origin, netns_cookie, set_origin,
    socket_cookie,
};
use crate::dns;
use crate::listener::is_served;
use crate::maps::DESTINATIONS;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_MPTCP: u32 = 262;
const ECONNREFUSED: i32 = 111;

/// 127.0.0.1 in network order.
pub const LOOPBACK4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
/// ::1.
pub const LOOPBACK6: Ip = Ip::v6([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])]);

#[cgroup_sock_addr(connect4)]
pub fn um_connect4(ctx: SockAddrContext) -> i32 {
    #[cfg(feature = "log")]
    let raw = SockAddrContext::new(ctx.sock_addr);
    let ctx = SockAddr::new(&ctx);
    let destination = ctx.address4();
    match intercept(&ctx, &destination) {
        Next::Pass => PROCEED,
        Next::Refuse => refuse(),
        Next::Proxy(workload, port, way) => {
            #[cfg(feature = "log")]
            aya_log_ebpf::debug!(
                &raw,
                "connect to {:i}:{} goes to the agent's port {}",
                u32::from_be(destination.ip.words[3]),
                destination.port,
                port
            );
            bind4(&ctx, &workload.ip4);
            ctx.set_ip4(match way {
                Way::OwnAddress => workload.ip4.words[3],
                _ => LOOPBACK4,
            });
            ctx.set_port(port);
            PROCEED
        }
        Next::Dns(workload) => {
            dns::redirect4(&ctx, workload, true);
            PROCEED
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn um_connect6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let destination = ctx.address6();
    match intercept(&ctx, &destination) {
        Next::Pass => PROCEED,
        Next::Refuse => refuse(),
        Next::Proxy(workload, port, way) => {
            let own = matches!(way, Way::OwnAddress);
            // A mapped destination stays mapped: the socket speaks IPv4.
            if destination.ip.is_v4() {
                bind6(&ctx, &workload.ip4);
                ctx.set_ip6(&if own { workload.ip4 } else { Ip::v4(LOOPBACK4) });
            } else {
                bind6(&ctx, &workload.ip6);
                ctx.set_ip6(&if own { workload.ip6 } else { LOOPBACK6 });
            }
            ctx.set_port(port);
            PROCEED
        }
        Next::Dns(workload) => {
            dns::redirect6(&ctx, workload, true);
            PROCEED
        }
    }
}

enum Next {
    Pass,
    Refuse,
    Proxy(&'static Workload, u16, Way),
    Dns(&'static Workload),
}

#[inline(always)]
fn intercept(ctx: &SockAddr, destination: &SocketIp) -> Next {
    let protocol = ctx.protocol();
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_MPTCP {
        return Next::Pass;
    }
    let Some(workload) = caller(netns_cookie(ctx.as_ptr())) else {
        return Next::Pass;
    };
    let sk = ctx.sk();
    if agent_socket(sk).is_some() {
        return Next::Pass;
    }
    if protocol == IPPROTO_UDP {
        return if destination.port == mesh_common::DNS_PORT && !dns::left_alone(ctx, workload) {
            Next::Dns(workload)
        } else if destination.port == workload.dns4_port || destination.port == workload.dns6_port {
            Next::Pass
        } else {
            pass(sk)
        };
    }
    let known = DESTINATIONS.get(&Key::new(128, destination.ip));
    match connect_verdict(workload, destination, known.is_some()) {
        // Sent to the agent by another instance of this program, further down the hierarchy.
        Connect::Pass if workload.is_outbound_listener(&destination.ip, destination.port) => {
            Next::Pass
        }
        Connect::Pass => pass(sk),
        Connect::Refuse if workload.fails_open() => pass(sk),
        Connect::Refuse => Next::Refuse,
        Connect::Proxy { port } => {
            let loopback = if destination.ip.is_v4() {
                Ip::v4(LOOPBACK4)
            } else {
                LOOPBACK6
            };
            if workload.fails_open() && !is_served(ctx, &loopback, port) {
                return pass(sk);
            }
            if let Some(known) = known {
                if known.has_nobody() {
                    return Next::Refuse;
                }
            }
            let way = way(workload, bound_device(sk));
            if matches!(way, Way::None) {
                return Next::Refuse;
            }
            let origin = Origin {
                flow: socket_cookie(ctx.as_ptr()),
                address: *destination,
                role: OriginRole::Application as u32,
            };
            if set_origin(sk, &origin) {
                Next::Proxy(workload, port, way)
            } else {
                Next::Refuse
            }
        }
    }
}

/// The same socket may have been proxied before: getpeername must not lie.
#[inline(always)]
fn pass(sk: *mut bpf_sock) -> Next {
    clear_origin(sk);
    Next::Pass
}

/// The device that `SO_BINDTODEVICE` has bound the socket to, or 0.
#[inline(always)]
fn bound_device(sk: *mut bpf_sock) -> u32 {
    // SAFETY: a field of the context's socket.
    unsafe { ptr::read_volatile(&raw const (*sk).bound_dev_if) }
}

/// The application sees what a closed port gives it, not EPERM.
#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: available to cgroup programs since Linux 5.18.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}

/// `struct sockaddr_in` of the kernel.
#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6` of the kernel.
#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flow_info: u32,
    address: [u32; 4],
    scope_id: u32,
}

/// Gives the socket the workload's address, as routing to the original
/// destination would have. A socket that the application has bound keeps its
/// own (the helper then fails, which is ignored).
#[inline(always)]
fn bind4(ctx: &SockAddr, ip: &Ip) {
    if ip.is_unspecified() {
        return;
    }
    let mut address = SockaddrIn {
        family: AF_INET,
        port: 0,
        address: ip.words[3],
        zero: [0; 2],
    };
    // SAFETY: the context of a connect program and an address on the stack.
    unsafe {
        bpf_bind(
            ctx.as_ptr().cast(),
            (&raw mut address).cast::<sockaddr>(),
            size_of::<SockaddrIn>() as i32,
        )
    };
}

#[inline(always)]
fn bind6(ctx: &SockAddr, ip: &Ip) {
    if ip.is_unspecified() {
        return;
    }
    let mut address = SockaddrIn6 {
        family: AF_INET6,
        port: 0,
        flow_info: 0,
        address: ip.words,
        scope_id: 0,
    };
    // SAFETY: as above.
    unsafe {
        bpf_bind(
            ctx.as_ptr().cast(),
            (&raw mut address).cast::<sockaddr>(),
            size_of::<SockaddrIn6>() as i32,
        )
    };
}
