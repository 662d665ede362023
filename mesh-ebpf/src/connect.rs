//! `cgroup/connect4` and `cgroup/connect6`: a connection of an enrolled
//! workload to an address of the mesh goes to the agent's listener in the same
//! namespace, with the workload's own address as its source, or to where the
//! agent's verdict says.

use core::ptr;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    Connect, Ip, Origin, OriginRole, SocketIp, Transport, VerdictKind, Way, Workload,
    connect_verdict, way,
};

use crate::context::{
    FAIL, NO_ORIGIN, PROCEED, SockAddr, agent_socket, caller, clear_origin, netns_cookie,
    set_origin, socket_cookie,
};
use crate::listener::is_served;
use crate::log::connect::{Why, say};
use crate::maps::DESTINATIONS;
use crate::{account, direct, dns, source, splice};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_MPTCP: u32 = 262;
const ECONNREFUSED: i32 = 111;
const DIRECT: u32 = VerdictKind::Direct as u32;

/// 127.0.0.1 in network order.
pub const LOOPBACK4: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
/// ::1.
pub const LOOPBACK6: Ip = Ip::v6([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])]);

#[cgroup_sock_addr(connect4)]
pub fn um_connect4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let destination = ctx.address4();
    let next = intercept(&ctx, &destination);
    say(&next, &destination);
    follow(&ctx, &next, &destination, redirect4, dns::redirect4)
}

#[cgroup_sock_addr(connect6)]
pub fn um_connect6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let destination = ctx.address6();
    let next = intercept(&ctx, &destination);
    say(&next, &destination);
    follow(&ctx, &next, &destination, redirect6, dns::redirect6)
}

/// Does what is to be done, in the family of the call. Gives the program's result.
#[inline(always)]
fn follow(
    ctx: &SockAddr,
    next: &Next,
    destination: &SocketIp,
    redirect: impl FnOnce(&SockAddr, &Next),
    ask: impl FnOnce(&SockAddr, &Workload, bool) -> i32,
) -> i32 {
    match next.what {
        What::Pass => PROCEED,
        What::Refuse => {
            if let Some(workload) = next.workload {
                let flow = socket_cookie(ctx.as_ptr());
                let netns_cookie = netns_cookie(ctx.as_ptr());
                account::denied(netns_cookie, flow, workload, destination, next.by_policy);
            }
            refuse()
        }
        What::Redirect => {
            redirect(ctx, next);
            PROCEED
        }
        What::Dns => match next.workload {
            Some(workload) => ask(ctx, workload, true),
            None => PROCEED,
        },
    }
}

#[inline(always)]
fn redirect4(ctx: &SockAddr, next: &Next) {
    source::bind4(ctx, &next.source);
    ctx.set_ip4(next.to.ip.words[3]);
    ctx.set_port(next.to.port);
}

#[inline(always)]
fn redirect6(ctx: &SockAddr, next: &Next) {
    // A mapped destination stays mapped, which is its canonical form: the socket speaks IPv4.
    source::bind6(ctx, &next.source);
    ctx.set_ip6(&next.to.ip);
    ctx.set_port(next.to.port);
}

/// What is done with the call. Every field always has a value: those of an
/// enumeration's other variants would have none, and LLVM computes with them
/// before it looks at the variant, which the verifier refuses.
pub struct Next {
    pub what: What,
    /// Redirect: another destination of the same family.
    pub to: SocketIp,
    /// Redirect: the address that the socket gets, unless it is unspecified.
    source: Ip,
    /// DNS, and where it is refused: whose question, or connection, it is.
    workload: Option<&'static Workload>,
    /// Refused: a policy forbids it.
    by_policy: bool,
    /// For log lines.
    #[cfg(feature = "log")]
    pub why: Why,
}

#[derive(Clone, Copy)]
pub enum What {
    Pass,
    Refuse,
    Redirect,
    Dns,
}

impl Next {
    const PASS: Self = Self::only(What::Pass);

    const fn only(what: What) -> Self {
        Self {
            what,
            to: SocketIp::new(Ip::UNSPECIFIED, 0),
            source: Ip::UNSPECIFIED,
            workload: None,
            by_policy: false,
            #[cfg(feature = "log")]
            why: Why::Usual,
        }
    }

    #[inline(always)]
    const fn refuse(workload: &'static Workload, why: Why) -> Self {
        Self {
            workload: Some(workload),
            by_policy: matches!(why, Why::Policy),
            ..Self::only(What::Refuse)
        }
        .because(why)
    }

    #[inline(always)]
    fn redirect(to: SocketIp, source: Ip, why: Why) -> Self {
        Self {
            to,
            source,
            ..Self::only(What::Redirect)
        }
        .because(why)
    }

    /// Without log lines, nobody wants to know.
    #[cfg(not(feature = "log"))]
    #[inline(always)]
    const fn because(self, _: Why) -> Self {
        self
    }

    #[cfg(feature = "log")]
    #[inline(always)]
    const fn because(mut self, why: Why) -> Self {
        self.why = why;
        self
    }
}

#[inline(always)]
fn intercept(ctx: &SockAddr, destination: &SocketIp) -> Next {
    let protocol = ctx.protocol();
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_MPTCP {
        return Next::PASS;
    }
    let Some(workload) = caller(netns_cookie(ctx.as_ptr())) else {
        return Next::PASS;
    };
    let sk = ctx.sk();
    if agent_socket(sk).is_some() {
        return Next::PASS;
    }
    if protocol == IPPROTO_UDP {
        return if destination.port == mesh_common::DNS_PORT {
            Next {
                workload: Some(workload),
                ..Next::only(What::Dns)
            }
        } else if destination.port == workload.dns4_port || destination.port == workload.dns6_port {
            Next::PASS
        } else {
            pass(sk)
        };
    }
    let netns_cookie = netns_cookie(ctx.as_ptr());
    let verdict = direct::verdict(netns_cookie, destination);
    // SAFETY: a value of the map.
    let cached = verdict.map(|verdict| unsafe { (*verdict).kind });
    // The costly look-up, which a direct connection does not need.
    let known = match cached {
        Some(DIRECT) => None,
        _ => DESTINATIONS.get(&Key::new(128, destination.ip)),
    };
    let decided = connect_verdict(workload, destination, cached, known.is_some());
    let origin = Origin {
        flow: socket_cookie(ctx.as_ptr()),
        server_netns: netns_cookie,
        client_sock: sk as u64,
        address: *destination,
        role: OriginRole::Application as u32,
        source_identity: workload.identity,
        ..NO_ORIGIN
    };
    let refuse = |why| Next::refuse(workload, why);
    match decided {
        // Sent to the agent by another instance of this program, further down the hierarchy.
        Connect::Pass if workload.is_outbound_listener(&destination.ip, destination.port) => {
            Next::PASS
        }
        Connect::Pass => pass(sk),
        Connect::Unserved if workload.fails_open() => pass(sk),
        Connect::Unserved | Connect::Deny => refuse(match decided {
            Connect::Deny => Why::Policy,
            _ => Why::NoAgent,
        }),
        Connect::Proxy { port } => {
            let (loopback, own) = if destination.ip.is_v4() {
                (Ip::v4(LOOPBACK4), workload.ip4)
            } else {
                (LOOPBACK6, workload.ip6)
            };
            if !is_served(ctx, &loopback, port) {
                return if workload.fails_open() {
                    pass(sk)
                } else {
                    refuse(Why::NoAgent)
                };
            }
            if let Some(known) = known {
                if known.has_nobody() {
                    return refuse(Why::Nobody);
                }
            }
            let way = way(workload, bound_device(sk));
            if matches!(way, Way::None) {
                return refuse(Why::Device);
            }
            let origin = Origin {
                splice: splice::with_agent(workload),
                ..origin
            };
            match set_origin(sk, &origin) {
                Some(_) => {
                    let ip = if matches!(way, Way::OwnAddress) {
                        own
                    } else {
                        loopback
                    };
                    let source = if matches!(way, Way::WithinLoopback) {
                        Ip::UNSPECIFIED
                    } else {
                        own
                    };
                    Next::redirect(SocketIp::new(ip, port), source, Why::Usual)
                }
                None => refuse(Why::Usual),
            }
        }
        Connect::Direct => {
            let Some(endpoint) = verdict.and_then(direct::choose) else {
                // The set has gone in this very moment: the next try finds its successor.
                return refuse(Why::Nobody);
            };
            let origin = Origin {
                server_netns: endpoint.netns_cookie,
                role: OriginRole::Direct as u32,
                splice: endpoint.splice,
                destination_identity: endpoint.identity,
                transport: Transport::SameNode as u32,
                ..origin
            };
            match set_origin(sk, &origin) {
                // The agent gives a destination endpoints of its own family; routing chooses the source.
                Some(_) => Next::redirect(endpoint.address, Ip::UNSPECIFIED, Why::Direct),
                None => refuse(Why::Usual),
            }
        }
    }
}

/// The same socket may have been proxied before: getpeername must not lie.
#[inline(always)]
fn pass(sk: *mut bpf_sock) -> Next {
    clear_origin(sk);
    Next::PASS
}

/// The device that `SO_BINDTODEVICE` has bound the socket to, or 0.
#[inline(always)]
fn bound_device(sk: *mut bpf_sock) -> u32 {
    // SAFETY: a field of the context's socket.
    unsafe { ptr::read_volatile(&raw const (*sk).bound_dev_if) }
}

/// The application sees what a closed port gives it, not EPERM.
#[inline(always)]
pub fn refuse() -> i32 {
    // SAFETY: available to cgroup programs since Linux 5.18.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}
