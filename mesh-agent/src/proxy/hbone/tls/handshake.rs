//! The handshake, which is all rustls', up to the keys that it ends with.

use std::io;
use std::ops::DerefMut;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{ClientConfig, ExtractedSecrets, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::TlsStream;
use super::opening::Opening;
use super::record::HEAD_BYTES;
use super::sealing::Sealing;
use super::session::{Key, Session};

/// Read at once.
const READ_BYTES: usize = 4 * 1024;
/// More than the longest message that rustls takes.
const MAX_BYTES: usize = 72 * 1024;

/// Who is at the other end.
pub struct Established<S> {
    pub stream: TlsStream<S>,
    /// The leaf first.
    pub peer_certificates: Vec<CertificateDer<'static>>,
    /// What both speak inside.
    pub alpn: Option<Vec<u8>>,
}

/// Introduces itself to a server. The configuration must have `enable_secret_extraction`.
///
/// # Errors
/// Those of the stream, and of rustls, which the server has been told of.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
    stream: S,
) -> io::Result<Established<S>> {
    let connection = UnbufferedClientConnection::new(config, server).map_err(invalid)?;
    establish(connection, stream).await
}

/// The same for a client that has come.
///
/// # Errors
/// As for [`connect`].
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    stream: S,
) -> io::Result<Established<S>> {
    let connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    establish(connection, stream).await
}

/// A connection during its handshake.
trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Ends the handshake.
    fn session(self) -> Result<(ExtractedSecrets, Session), rustls::Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn session(self) -> Result<(ExtractedSecrets, Session), rustls::Error> {
        let (secrets, session) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Session::Client(session)))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn session(self) -> Result<(ExtractedSecrets, Session), rustls::Error> {
        let (secrets, session) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Session::Server(session)))
    }
}

async fn establish<C: Side, S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: C,
    mut stream: S,
) -> io::Result<Established<S>> {
    let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
    let mut shown = Shown::default();
    loop {
        let UnbufferedStatus { discard, state } = connection.process(shown.of(&mut incoming));
        let mut is_done = false;
        let mut is_more_needed = false;
        match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let begin = outgoing.len();
                if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                    outgoing.resize(begin + size.required_size, 0);
                    data.encode(&mut outgoing[begin..])
                        .map_err(io::Error::other)?;
                }
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                stream.write_all(&outgoing).await?;
                outgoing.clear();
                data.done();
            }
            Ok(ConnectionState::BlockedHandshake) => is_more_needed = true,
            Ok(ConnectionState::WriteTraffic(_)) => is_done = true,
            Ok(_) => return Err(ended()),
            Err(error) => {
                tell(connection, shown.of(&mut incoming), outgoing, stream).await;
                return Err(invalid(error));
            }
        }
        incoming.drain(..discard);
        shown.drain(discard);
        if is_done {
            break;
        }
        if is_more_needed && !shown.more(&incoming) {
            if incoming.len() > MAX_BYTES {
                return Err(invalid(rustls::Error::PeerSentOversizedRecord));
            }
            incoming.reserve(READ_BYTES);
            let limit = READ_BYTES as u64;
            if (&mut stream).take(limit).read_buf(&mut incoming).await? == 0 {
                return Err(ended());
            }
        }
    }
    stream.write_all(&outgoing).await?;
    let peer_certificates = connection.peer_certificates().unwrap_or_default().to_vec();
    let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    let (secrets, session) = connection.session().map_err(invalid)?;
    let opening = Opening::new(Key::new(secrets.rx)?, incoming);
    let sealing = Sealing::new(Key::new(secrets.tx)?, session.records_per_key());
    Ok(Established {
        stream: TlsStream::new(stream, session, opening, sealing),
        peer_certificates,
        alpn,
    })
}

/// How much of what has come rustls has seen: never beyond one record. What lies behind the last of the
/// handshake is for the keys that it ends with, and rustls would begin to open it.
#[derive(Default)]
struct Shown {
    bytes: usize,
    /// Where the last record of them ends, as far as its head says.
    end: usize,
}

impl Shown {
    fn of<'a>(&self, incoming: &'a mut [u8]) -> &'a mut [u8] {
        &mut incoming[..self.bytes]
    }

    fn drain(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.end = self.end.saturating_sub(bytes);
    }

    /// Shows more. Says whether there is anything.
    fn more(&mut self, incoming: &[u8]) -> bool {
        if self.end <= self.bytes
            && let Some(&[_, _, _, high, low]) = incoming[self.end..].first_chunk::<HEAD_BYTES>()
        {
            self.end += HEAD_BYTES + usize::from(u16::from_be_bytes([high, low]));
        }
        // Not all of the head has come: that alone is no record.
        let bytes = match self.end > self.bytes {
            true => self.end.min(incoming.len()),
            false => incoming.len(),
        };
        let any = bytes > self.bytes;
        self.bytes = bytes;
        any
    }
}

/// Says why the handshake failed, as far as the peer listens.
async fn tell<C: Side, S: AsyncWrite + Unpin>(
    mut connection: C,
    incoming: &mut [u8],
    mut outgoing: Vec<u8>,
    mut stream: S,
) {
    // Only as long as something is left to be said: rustls would read on after it.
    while connection.wants_write()
        && let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process(incoming).state
    {
        let begin = outgoing.len();
        if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
            outgoing.resize(begin + size.required_size, 0);
            let _ = data.encode(&mut outgoing[begin..]);
        }
    }
    let _ = stream.write_all(&outgoing).await;
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn ended() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer left during the handshake",
    )
}
