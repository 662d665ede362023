//! DNS over TCP (RFC 7766): messages with their length in front, several at
//! a time, in any order.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use hickory_proto::op::{MessageType, ResponseCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::message::{self, Key, Reaction, Transport};
use super::server::{DnsServer, MAX_TCP_CONNECTIONS};

/// How long a connection may be idle (RFC 7766, section 6.2.3, wants seconds).
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most questions of one connection that wait for its nameserver; more are refused.
const MAX_PENDING: usize = 64;

impl DnsServer {
    /// Answers on `stream` until its client closes it, is idle for too long, or `stop`.
    /// `original` is the nameserver that the client wanted to connect to.
    ///
    /// # Errors
    /// At [`MAX_TCP_CONNECTIONS`], on what is no DNS, and where the stream fails.
    pub async fn serve_tcp(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite,
        original: SocketAddr,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let Ok(_slot) = self.tcp_connections.clone().try_acquire_owned() else {
            return Err(io::Error::other(format!(
                "the workload has {MAX_TCP_CONNECTIONS} connections for DNS already"
            )));
        };
        let (reader, writer) = tokio::io::split(stream);
        let connection = Connection {
            server: self,
            original,
            client: Frames::new(reader),
            to_client: writer,
            upstream: None,
            pending: VecDeque::new(),
        };
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = connection.serve() => result,
        }
    }
}

/// A question that the nameserver has not answered yet.
struct Pending {
    key: Key,
    packet: Vec<u8>,
    deadline: Instant,
    _slot: OwnedSemaphorePermit,
}

struct Connection<S> {
    server: Arc<DnsServer>,
    original: SocketAddr,
    client: Frames<ReadHalf<S>>,
    to_client: WriteHalf<S>,
    /// Connected at the first question that is not ours.
    upstream: Option<(Frames<OwnedReadHalf>, OwnedWriteHalf)>,
    /// Oldest first.
    pending: VecDeque<Pending>,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    async fn serve(mut self) -> io::Result<()> {
        let mut open = true;
        loop {
            let deadline = match self.pending.front() {
                Some(oldest) => oldest.deadline,
                None if !open => return Ok(()),
                None => Instant::now() + IDLE_TIMEOUT,
            };
            tokio::select! {
                packet = self.client.next(), if open => match packet? {
                    Some(packet) => self.question(packet).await?,
                    // The client has asked all it wanted, and may still read.
                    None => open = false,
                },
                packet = next_of(&mut self.upstream) => match packet {
                    Ok(Some(packet)) => self.response(&packet).await?,
                    Ok(None) | Err(_) => self.upstream_failed().await?,
                },
                () = sleep_until(deadline) => match self.pending.pop_front() {
                    Some(late) => self.fail(&late.packet, ResponseCode::ServFail).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn question(&mut self, packet: Vec<u8>) -> io::Result<()> {
        match self.server.react(&packet, Transport::Tcp) {
            Reaction::Answer(answer) => write_frame(&mut self.to_client, &answer).await,
            Reaction::Forward => self.forward(packet).await,
            // No query: on a stream that means that both ends do not understand each other.
            Reaction::Ignore => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    async fn forward(&mut self, packet: Vec<u8>) -> io::Result<()> {
        let Some(key) = Key::of(&packet, MessageType::Query) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let slot = self.server.in_flight.clone().try_acquire_owned();
        let slot = match slot {
            Ok(slot) if self.pending.len() < MAX_PENDING => slot,
            _ => return self.fail(&packet, ResponseCode::Refused).await,
        };
        self.pending.push_back(Pending {
            key,
            packet: packet.clone(),
            deadline: Instant::now() + self.server.query_timeout,
            _slot: slot,
        });
        if self.upstream.is_none() {
            let connecting = self.server.sockets.connect(None, self.original, None);
            match timeout(self.server.query_timeout, connecting).await {
                Ok(Ok(stream)) => {
                    // Only a matter of speed.
                    let _ = stream.set_nodelay(true);
                    let (reader, writer) = stream.into_split();
                    self.upstream = Some((Frames::new(reader), writer));
                }
                _ => return self.upstream_failed().await,
            }
        }
        if let Some((_, writer)) = &mut self.upstream
            && write_frame(writer, &packet).await.is_err()
        {
            return self.upstream_failed().await;
        }
        Ok(())
    }

    /// Hands a message of the nameserver on. One that answers nothing pending may be the next
    /// of a zone transfer, which has many; the nameserver is the one the client chose.
    async fn response(&mut self, packet: &[u8]) -> io::Result<()> {
        if let Some(response) = Key::of(packet, MessageType::Response) {
            let answered = |pending: &Pending| pending.key.is_answered_by(&response);
            if let Some(position) = self.pending.iter().position(answered) {
                self.pending.remove(position);
            }
        }
        write_frame(&mut self.to_client, packet).await
    }

    /// Nothing more comes from the nameserver: what is pending has failed. The next question
    /// connects anew.
    async fn upstream_failed(&mut self) -> io::Result<()> {
        self.upstream = None;
        while let Some(pending) = self.pending.pop_front() {
            self.fail(&pending.packet, ResponseCode::ServFail).await?;
        }
        Ok(())
    }

    async fn fail(&mut self, packet: &[u8], code: ResponseCode) -> io::Result<()> {
        match message::error(packet, code) {
            Some(error) => write_frame(&mut self.to_client, &error).await,
            None => Ok(()),
        }
    }
}

async fn next_of(
    upstream: &mut Option<(Frames<OwnedReadHalf>, OwnedWriteHalf)>,
) -> io::Result<Option<Vec<u8>>> {
    match upstream {
        Some((frames, _)) => frames.next().await,
        None => std::future::pending().await,
    }
}

/// Messages with two bytes of length in front; a message has at most 65 535 bytes.
struct Frames<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
        }
    }

    /// The next message, `None` at the end. May be cancelled at any point: what was read is kept.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((head, rest)) = self.buffer.split_first_chunk() {
                let length = usize::from(u16::from_be_bytes(*head));
                if let Some(packet) = rest.get(..length) {
                    let packet = packet.to_vec();
                    self.buffer.advance(head.len() + length);
                    return Ok(Some(packet));
                }
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }
}

async fn write_frame(writer: &mut (impl AsyncWrite + Unpin), packet: &[u8]) -> io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let frame = [&length.to_be_bytes(), packet].concat();
    // A peer that does not read must not hold us.
    timeout(IDLE_TIMEOUT, writer.write_all(&frame)).await?
}
