//! `cgroup/sendmsg4/6` and `recvmsg4/6`: questions to port 53 over UDP go to
//! the agent's socket in the same namespace; answers seem to come from the
//! server that was asked.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    DNS_PORT, Ip, Nameserver, Origin, OriginRole, SocketIp, Workload, alias_of, is_alias,
};

use crate::connect::{LOOPBACK4, LOOPBACK6, refuse};
use crate::context::{
    NO_ORIGIN, PROCEED, SockAddr, agent_socket, caller, clear_origin, netns_cookie, origin,
    set_origin,
};
use crate::listener::is_served;
#[cfg(feature = "log")]
use crate::log::bytes;
use crate::log::log;
use crate::maps::NAMESERVERS;

#[cgroup_sock_addr(sendmsg4)]
pub fn um_sendmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if ctx.port() == DNS_PORT {
        if let Some(workload) = asker(&ctx) {
            return redirect4(&ctx, workload, false);
        }
    }
    PROCEED
}

#[cgroup_sock_addr(sendmsg6)]
pub fn um_sendmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if ctx.port() == DNS_PORT {
        if let Some(workload) = asker(&ctx) {
            return redirect6(&ctx, workload, false);
        }
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg4)]
pub fn um_recvmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let source = ctx.address4();
    if let Some(server) = asked(&ctx, &source) {
        ctx.set_ip4(server.ip.words[3]);
        ctx.set_port(server.port);
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn um_recvmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let source = ctx.address6();
    if let Some(server) = asked(&ctx, &source) {
        ctx.set_ip6(&server.ip);
        ctx.set_port(server.port);
    }
    PROCEED
}

/// The workload whose application asks.
#[inline(always)]
fn asker(ctx: &SockAddr) -> Option<&'static Workload> {
    let workload = caller(netns_cookie(ctx.as_ptr()))?;
    if agent_socket(ctx.sk()).is_some() {
        None
    } else {
        Some(workload)
    }
}

/// The server behind the address that an answer came from.
#[inline(always)]
fn asked(ctx: &SockAddr, source: &SocketIp) -> Option<SocketIp> {
    let netns_cookie = netns_cookie(ctx.as_ptr());
    let workload = caller(netns_cookie)?;
    if let Some(alias) = source.ip.as_v4() {
        if source.port != workload.dns4_port || !is_alias(alias) || agent_socket(ctx.sk()).is_some()
        {
            return None;
        }
        // SAFETY: values are written whole.
        return unsafe { NAMESERVERS.get(Nameserver::new(netns_cookie, alias)) }.copied();
    }
    if source.port != workload.dns6_port || !source.ip.same(&LOOPBACK6) {
        return None;
    }
    let origin = origin(ctx.sk())?;
    if origin.role == OriginRole::Agent as u32 {
        None
    } else {
        Some(origin.address)
    }
}

/// Whether the agent is there to answer. The helper that finds UDP sockets does
/// not see those of one device, as the agent's is; but it has that one as long
/// as it listens for connections.
#[inline(always)]
fn is_answered(ctx: &SockAddr, workload: &Workload) -> bool {
    is_served(ctx, &Ip::v4(LOOPBACK4), workload.outbound4_port)
}

/// Sends a question over IPv4 to the agent, at the alias of the server. Gives
/// the program's result.
#[inline(always)]
pub fn redirect4(ctx: &SockAddr, workload: &Workload, connected: bool) -> i32 {
    if workload.dns4_port == 0 {
        return PROCEED;
    }
    let server = ctx.address4();
    let alias = alias_of(server.ip.words[3]);
    if !is_answered(ctx, workload) {
        return unanswered(ctx, workload, &server);
    }
    log!(
        debug,
        "question to {:i} goes to the agent",
        server = bytes(&server.ip)
    );
    remember(ctx, alias, &server, connected);
    ctx.set_ip4(alias);
    ctx.set_port(workload.dns4_port);
    PROCEED
}

/// The same for an IPv6 socket: mapped addresses have aliases too; true IPv6
/// servers share ::1, and the socket remembers the last one that it asked.
#[inline(always)]
pub fn redirect6(ctx: &SockAddr, workload: &Workload, connected: bool) -> i32 {
    let server = ctx.address6();
    let is_v4 = server.ip.is_v4();
    let port = if is_v4 {
        workload.dns4_port
    } else {
        workload.dns6_port
    };
    if port == 0 {
        return PROCEED;
    }
    let alias = alias_of(server.ip.words[3]);
    let to = if is_v4 { Ip::v4(alias) } else { LOOPBACK6 };
    if !is_answered(ctx, workload) {
        return unanswered(ctx, workload, &server);
    }
    log!(
        debug,
        "question to {:i} goes to the agent",
        server = bytes(&server.ip)
    );
    if is_v4 {
        remember(ctx, alias, &server, connected);
    } else {
        // For the agent: the alias 0 stands for the last IPv6 server that the namespace has asked.
        remember(ctx, 0, &server, true);
    }
    ctx.set_ip6(&to);
    ctx.set_port(port);
    PROCEED
}

/// No agent is there. Where it fails open the question goes to the server that
/// the application asks; else nobody gets it, whoever has the agent's port now.
#[inline(always)]
#[cfg_attr(
    not(feature = "log"),
    expect(unused_variables, reason = "for log lines alone")
)]
fn unanswered(ctx: &SockAddr, workload: &Workload, server: &SocketIp) -> i32 {
    if workload.fails_open() {
        // The same socket may have asked the agent before: getpeername must not lie.
        clear_origin(ctx.sk());
        return PROCEED;
    }
    log!(
        info,
        "question to {:i} is refused: no agent answers",
        server = bytes(&server.ip)
    );
    refuse()
}

/// Keeps which server is behind an alias and, for getpeername and for answers
/// over IPv6, in the socket.
#[inline(always)]
fn remember(ctx: &SockAddr, alias: u32, server: &SocketIp, in_socket: bool) {
    let key = Nameserver::new(netns_cookie(ctx.as_ptr()), alias);
    // A full map evicts the least recently used alias: an insert cannot fail for want of room.
    let _ = NAMESERVERS.insert(&key, server, 0);
    if in_socket {
        let origin = Origin {
            address: *server,
            role: OriginRole::Application as u32,
            ..NO_ORIGIN
        };
        set_origin(ctx.sk(), &origin);
    }
}
