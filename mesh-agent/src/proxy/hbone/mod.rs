//! HBONE: HTTP/2 CONNECT over mutual TLS 1.3 on port 15008, as Istio ambient
//! speaks it. A tunnel is one HTTP/2 stream: the end of a direction is
//! END_STREAM, an abort is RST_STREAM.

mod client;
mod clients;
mod connection;
mod forwarded;
mod handshakes;
mod inbox;
mod keep_alive;
mod memory;
mod metered;
mod outbox;
mod refusal;
mod server;
mod stream;
mod tls;
mod window;

#[cfg(test)]
mod tests;

pub use client::{OPEN_TIMEOUT, TunnelError, TunnelPool, TunnelRequest};
pub use clients::{Clients, DEFAULT_MAX_CONNECTIONS, Place};
pub use connection::ConnectError;
pub use handshakes::{Handshakes, Unanswered};
pub use inbox::is_overfull;
pub use memory::{DEFAULT_MAX_MIB, TunnelMemory};
pub use refusal::Refusal;
pub use server::{IncomingTunnel, ServeError, ServerTls, TunnelHandler, serve};
pub use stream::TunnelStream;

/// Where HBONE is spoken.
pub const HBONE_PORT: u16 = 15008;

/// Tunnels on one connection, for a client that opens and a server that accepts.
pub const MAX_STREAMS: usize = 100;
/// How much all tunnels of a connection together may have on their way: enough for each, so that
/// tunnels that nobody reads never hold up another one.
const CONNECTION_WINDOW_BYTES: u32 = MAX_STREAMS as u32 * window::MAX_BYTES;
/// Written bytes of one tunnel that wait for the connection.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// The largest DATA frame that is accepted.
const MAX_FRAME_BYTES: u32 = 64 << 10;
/// A CONNECT and its answer are short.
const MAX_HEADER_BYTES: u32 = 16 << 10;
