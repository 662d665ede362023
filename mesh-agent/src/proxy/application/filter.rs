//! Stands between a caller and an application where policies ask for what the
//! bytes say: finds out whether they are HTTP, and goes on accordingly.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use super::pipe::Pipe;
use super::{Caller, Refused, Revocable, admitted, denied, http, told};
use crate::policy::authorization::{Decision, Payload, Verdict};
use crate::proxy::application_stream::ApplicationStream;
use crate::proxy::copy::{Duplex, Transferred, copy_both};
use crate::proxy::http::HttpVersion;
use crate::proxy::outbound::{CLIENT_FIRST, read_more};
use crate::proxy::replay::Replay;
use crate::proxy::sniff::Sniffed;
use crate::proxy::{Local, Node};
use crate::registry::Protocol;

/// How long a caller has until its first bytes where it may pass by its requests alone. The way
/// of a tunnel there and back is part of it, and clients connect before they have something to ask.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Serves one connection to its end.
pub(super) async fn run(
    node: Arc<Node>,
    local: Arc<Local>,
    caller: Caller,
    application: SocketAddr,
    pipe: Pipe,
) {
    let client = caller.address;
    let workload = local.workload.name.clone();
    if let Err(error) = filter(&node, &local, caller, application, pipe).await {
        tracing::debug!(%workload, %client, %error, "filtered connection ended");
    }
}

async fn filter(
    node: &Arc<Node>,
    local: &Arc<Local>,
    caller: Caller,
    application: SocketAddr,
    mut pipe: Pipe,
) -> io::Result<()> {
    let (declared, if_bytes) = {
        let snapshot = node.snapshot.load();
        let authorization = &snapshot.authorization;
        let connection = caller.connection(application);
        let decision = authorization.decide(&local.workload, &connection, Payload::Tcp);
        let declared = authorization.protocol(&local.workload, application.port());
        (declared, decision.verdict)
    };
    let is_http = matches!(declared, Protocol::Http | Protocol::Http2 | Protocol::Grpc);
    let patience = match if_bytes {
        _ if is_http => None,
        // It may be the server that speaks first.
        Verdict::Allow => Some(CLIENT_FIRST),
        // The server will not speak to a caller that has asked nothing.
        Verdict::Deny | Verdict::NeedsHttp => Some(FIRST_REQUEST),
    };
    let mut bytes = BytesMut::new();
    let sniffed = read_more(&mut pipe, &mut bytes, patience).await?;
    if bytes.is_empty() && !is_http {
        return first_speaker(node, local, caller, application, pipe).await;
    }
    let stream = Replay::new(bytes, pipe);
    let version = match sniffed {
        Sniffed::Http2 => HttpVersion::Http2,
        Sniffed::Http1 => HttpVersion::Http1,
        // What is no HTTP gets the HTTP server's answer.
        _ if is_http => HttpVersion::Http1,
        _ => return as_bytes(node, local, caller, application, stream).await,
    };
    http::serve(node, local, caller, application, version, stream).await
}

/// Nobody has said anything: is it the application's turn? Whoever speaks first tells.
async fn first_speaker(
    node: &Arc<Node>,
    local: &Arc<Local>,
    caller: Caller,
    application: SocketAddr,
    mut pipe: Pipe,
) -> io::Result<()> {
    let (mut to_application, decision) = match for_bytes(node, local, &caller, application).await {
        Ok(connected) => connected,
        Err(error) => {
            pipe.abort();
            return Err(error);
        }
    };
    let (mut bytes, mut greeting) = (BytesMut::new(), BytesMut::new());
    let spoken = tokio::select! {
        biased;
        greeted = to_application.read_buf(&mut greeting) => greeted.map(|_| None),
        first = read_more(&mut pipe, &mut bytes, None) => first.map(|first| match first {
            Sniffed::Http1 => Some(HttpVersion::Http1),
            Sniffed::Http2 => Some(HttpVersion::Http2),
            _ => None,
        }),
    };
    let version = match spoken {
        Ok(version) => version,
        Err(error) => {
            // A reset before the first word is a reset to the other end, too.
            pipe.abort();
            to_application.abort();
            return Err(error);
        }
    };
    let stream = Replay::new(bytes, pipe);
    if let Some(version) = version {
        // Requests bring connections of their own.
        drop(to_application);
        return http::serve(node, local, caller, application, version, stream).await;
    }
    told(node, &local.workload, &caller, application, decision);
    let to_application = Replay::new(greeting, to_application);
    copy_both(stream, to_application, &Transferred::default())
        .await
        .map_err(io::Error::other)
}

/// The client has spoken, and it is no request.
async fn as_bytes(
    node: &Arc<Node>,
    local: &Arc<Local>,
    caller: Caller,
    application: SocketAddr,
    mut stream: Replay<Pipe>,
) -> io::Result<()> {
    match for_bytes(node, local, &caller, application).await {
        Ok((to_application, decision)) => {
            told(node, &local.workload, &caller, application, decision);
            copy_both(stream, to_application, &Transferred::default())
                .await
                .map_err(io::Error::other)
        }
        Err(error) => {
            stream.abort();
            Err(error)
        }
    }
}

/// A connection for what is not HTTP, or not known: nothing may pass by an attribute of HTTP. So
/// what passes here may pass whatever it turns out to be.
async fn for_bytes(
    node: &Arc<Node>,
    local: &Arc<Local>,
    caller: &Caller,
    application: SocketAddr,
) -> io::Result<(Revocable<ApplicationStream>, Decision)> {
    let decision = {
        let snapshot = node.snapshot.load();
        let connection = caller.connection(application);
        (snapshot.authorization).decide(&local.workload, &connection, Payload::Tcp)
    };
    if decision.verdict != Verdict::Allow {
        denied(node, local, caller, application, &decision.reason);
        return Err(Refused::Policy(decision.reason).into());
    }
    let to_application = admitted(node, local, caller.clone(), application).await?;
    Ok((to_application, decision))
}
