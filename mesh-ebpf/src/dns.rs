//! `cgroup/sendmsg4/6` and `recvmsg4/6`: questions to port 53 over UDP go to
//! the agent's socket in the same namespace; answers seem to come from the
//! server that was asked.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    DNS_PORT, Ip, Nameserver, Origin, OriginRole, SocketIp, Workload, alias_of, is_alias,
};

use crate::connect::{LOOPBACK4, LOOPBACK6};
use crate::context::{
    NO_ORIGIN, PROCEED, SockAddr, agent_socket, caller, netns_cookie, origin, set_origin,
};
use crate::listener::is_served;
use crate::maps::NAMESERVERS;

#[cgroup_sock_addr(sendmsg4)]
pub fn um_sendmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if ctx.port() == DNS_PORT {
        if let Some(workload) = captured(&ctx) {
            redirect4(&ctx, workload, false);
        }
    }
    PROCEED
}

#[cgroup_sock_addr(sendmsg6)]
pub fn um_sendmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if ctx.port() == DNS_PORT {
        if let Some(workload) = captured(&ctx) {
            redirect6(&ctx, workload, false);
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

#[inline(always)]
fn captured(ctx: &SockAddr) -> Option<&'static Workload> {
    let workload = caller(netns_cookie(ctx.as_ptr()))?;
    if agent_socket(ctx.sk()).is_some() || left_alone(ctx, workload) {
        None
    } else {
        Some(workload)
    }
}

/// Whether the workload's questions are none of ours, because no agent is
/// there and it fails open.
#[inline(always)]
pub fn left_alone(ctx: &SockAddr, workload: &Workload) -> bool {
    workload.fails_open() && !is_served(ctx, &Ip::v4(LOOPBACK4), workload.outbound4_port)
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

/// Sends a question over IPv4 to the agent, at the alias of the server.
#[inline(always)]
pub fn redirect4(ctx: &SockAddr, workload: &Workload, connected: bool) {
    if workload.dns4_port == 0 {
        return;
    }
    let server = ctx.address4();
    ctx.set_ip4(alias(ctx, &server, connected));
    ctx.set_port(workload.dns4_port);
}

/// The same for an IPv6 socket: mapped addresses have aliases too; true IPv6
/// servers share ::1, and the socket remembers the last one that it asked.
#[inline(always)]
pub fn redirect6(ctx: &SockAddr, workload: &Workload, connected: bool) {
    let server = ctx.address6();
    if server.ip.is_v4() {
        if workload.dns4_port != 0 {
            let alias = alias(ctx, &server, connected);
            ctx.set_ip6(&Ip::v4(alias));
            ctx.set_port(workload.dns4_port);
        }
    } else if workload.dns6_port != 0 {
        let origin = Origin {
            address: server,
            role: OriginRole::Application as u32,
            ..NO_ORIGIN
        };
        set_origin(ctx.sk(), &origin);
        // For the agent: the alias 0 stands for the last IPv6 server that the namespace has asked.
        let _ = NAMESERVERS.insert(&Nameserver::new(netns_cookie(ctx.as_ptr()), 0), &server, 0);
        ctx.set_ip6(&LOOPBACK6);
        ctx.set_port(workload.dns6_port);
    }
}

#[inline(always)]
fn alias(ctx: &SockAddr, server: &SocketIp, connected: bool) -> u32 {
    let alias = alias_of(server.ip.words[3]);
    let key = Nameserver::new(netns_cookie(ctx.as_ptr()), alias);
    // A full map evicts the least recently used alias: an insert cannot fail for want of room.
    let _ = NAMESERVERS.insert(&key, server, 0);
    if connected {
        // For getpeername.
        let origin = Origin {
            address: *server,
            role: OriginRole::Application as u32,
            ..NO_ORIGIN
        };
        set_origin(ctx.sk(), &origin);
    }
    alias
}
