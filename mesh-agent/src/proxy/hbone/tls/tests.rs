//! The other end is rustls, as tokio-rustls drives it.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, HandshakeKind, RootCertStore,
    ServerConfig, SupportedCipherSuite,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::record::HEAD_BYTES;
use super::session::Key;
use super::*;
use crate::proxy::writes_to::writes_to;

const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Both configurations, which may be used again to resume.
#[derive(Clone)]
struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Configs {
    fn of(suite: SupportedCipherSuite) -> Self {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![suite],
            ..aws_lc_rs::default_provider()
        });
        let made = rcgen::generate_simple_self_signed(["server".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec()];
        server.enable_secret_extraction = true;
        client.enable_secret_extraction = true;
        Self {
            client: Arc::new(client),
            server: Arc::new(server),
        }
    }

    /// A client of ours, and a server of rustls.
    async fn client<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        near: S,
        far: DuplexStream,
    ) -> (TlsStream<S>, server::TlsStream<DuplexStream>) {
        let acceptor = TlsAcceptor::from(self.server.clone());
        let name = ServerName::try_from("server").unwrap();
        let (ours, theirs) = tokio::join!(
            connect(self.client.clone(), name, near),
            acceptor.accept(far)
        );
        let ours = ours.unwrap();
        assert_eq!(ours.alpn.as_deref(), Some(&b"h2"[..]));
        assert_eq!(ours.peer_certificates.len(), 1);
        (ours.stream, theirs.unwrap())
    }

    /// The other way round.
    async fn server<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        near: S,
        far: DuplexStream,
    ) -> (TlsStream<S>, client::TlsStream<DuplexStream>) {
        let connector = TlsConnector::from(self.client.clone());
        let name = ServerName::try_from("server").unwrap();
        let (ours, theirs) = tokio::join!(
            accept(self.server.clone(), near),
            connector.connect(name, far)
        );
        (ours.unwrap().stream, theirs.unwrap())
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

/// Writes these in such pieces, each cut in two, and then the end.
async fn write(stream: &mut (impl AsyncWrite + Unpin), sent: &[u8], pieces: &[usize]) {
    let mut rest = sent;
    for piece in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, _) = rest.split_at((*piece).min(rest.len()));
        let (first, second) = piece.split_at(piece.len() / 3);
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        let taken = stream.write_vectored(&slices).await.unwrap();
        assert!(taken > 0);
        rest = &rest[taken..];
        if taken % 2 == 0 {
            stream.flush().await.unwrap();
        }
    }
    stream.shutdown().await.unwrap();
}

/// Reads in such pieces until the end.
async fn read(stream: &mut (impl AsyncRead + Unpin), pieces: &[usize]) -> Vec<u8> {
    let mut got = Vec::new();
    for piece in pieces.iter().cycle() {
        let mut buffer = vec![0; *piece];
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            bytes => got.extend_from_slice(&buffer[..bytes]),
        }
    }
    got
}

/// Sends both ways at once, and back.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    ours: &mut TlsStream<S>,
    theirs: &mut (impl AsyncRead + AsyncWrite + Unpin),
    bytes: usize,
    writes: &[usize],
    reads: &[usize],
) {
    let sent = pattern(bytes);
    let (mut our_read, mut our_write) = tokio::io::split(ours);
    let (mut their_read, mut their_write) = tokio::io::split(theirs);
    let ((), (), at_ours, at_theirs) = tokio::join!(
        write(&mut our_write, &sent, writes),
        write(&mut their_write, &sent, writes),
        read(&mut our_read, reads),
        read(&mut their_read, reads),
    );
    assert!(at_ours == sent, "{} of {bytes} have come", at_ours.len());
    assert!(
        at_theirs == sent,
        "{} of {bytes} were sent",
        at_theirs.len()
    );
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().unwrap();
    runtime.block_on(async {
        let limit = Duration::from_secs(20);
        let result = tokio::time::timeout(limit, future).await;
        result.expect("nothing passes any more")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read_whoever_the_peer_is(
        suite in 0..SUITES.len(),
        is_client in any::<bool>(),
        bytes in 0_usize..300_000,
        writes in prop::collection::vec(1_usize..100_000, 1..5),
        reads in prop::collection::vec(1_usize..70_000, 1..5),
        // A handshake has to fit: both ends write theirs before they read on.
        pipe in 400_usize..200_000,
    ) {
        block_on(async {
            let configs = Configs::of(SUITES[suite]);
            let (near, far) = duplex(pipe);
            if is_client {
                let (mut ours, mut theirs) = configs.client(near, far).await;
                exchange(&mut ours, &mut theirs, bytes, &writes, &reads).await;
            } else {
                let (mut ours, mut theirs) = configs.server(near, far).await;
                exchange(&mut ours, &mut theirs, bytes, &writes, &reads).await;
            }
        });
    }
}

#[test]
fn a_key_is_changed_before_it_has_sealed_too_much() {
    block_on(async {
        let (near, far) = duplex(1 << 20);
        let (mut ours, mut theirs) = Configs::of(SUITES[0]).client(near, far).await;
        ours.sealing.limit_records_per_key(10);
        // More than a hundred records.
        exchange(&mut ours, &mut theirs, 2_000_000, &[10_000], &[60_000]).await;
        assert!(ours.sealing.used() <= 10, "{}", ours.sealing.used());
    });
}

#[test]
fn the_peer_changes_its_key_and_so_do_we() {
    block_on(async {
        let (near, far) = duplex(1 << 20);
        let (mut ours, mut theirs) = Configs::of(SUITES[0]).server(near, far).await;
        for round in 0..100_u8 {
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.write_all(&[round; 1000]).await.unwrap();
            theirs.flush().await.unwrap();
            let mut got = [0; 1000];
            ours.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [round; 1000]);
            // The peer counts with it, and cannot open what is sealed with another key.
            ours.write_all(&got).await.unwrap();
            ours.flush().await.unwrap();
            assert!(ours.sealing.used() <= 2, "the same key as before");
            theirs.read_exact(&mut got).await.unwrap();
        }
    });
}

#[test]
fn who_changes_keys_and_does_nothing_else_is_cut_off() {
    block_on(async {
        let (near, far) = duplex(1 << 20);
        let (mut ours, mut theirs) = Configs::of(SUITES[0]).server(near, far).await;
        for _ in 0..=MAX_IDLE {
            theirs.get_mut().1.refresh_traffic_keys().unwrap();
            theirs.flush().await.unwrap();
        }
        let error = ours.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(error.to_string(), Fault::Unexpected.to_string());
        let error = theirs.read(&mut [0; 10]).await.unwrap_err();
        assert!(error.to_string().contains("UnexpectedMessage"), "{error}");
    });
}

#[test]
fn a_session_is_resumed_with_a_ticket_of_either_side() {
    block_on(async {
        let configs = Configs::of(SUITES[0]);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (near, far) = duplex(1 << 20);
            let (mut ours, mut theirs) = configs.client(near, far).await;
            kinds.push(theirs.get_ref().1.handshake_kind());
            theirs.write_all(b"x").await.unwrap();
            theirs.flush().await.unwrap();
            ours.read_exact(&mut [0]).await.unwrap();
        }
        for _ in 0..2 {
            let (near, far) = duplex(1 << 20);
            let (mut ours, mut theirs) = configs.server(near, far).await;
            kinds.push(theirs.get_ref().1.handshake_kind());
            ours.write_all(b"x").await.unwrap();
            ours.flush().await.unwrap();
            theirs.read_exact(&mut [0]).await.unwrap();
        }
        let resumed = Some(HandshakeKind::Resumed);
        assert_eq!(kinds[0], Some(HandshakeKind::Full));
        assert_eq!(kinds[1..], [resumed; 3]);
    });
}

#[test]
fn an_end_is_told_from_a_connection_that_is_gone() {
    block_on(async {
        let configs = Configs::of(SUITES[0]);
        let (near, far) = duplex(1 << 20);
        let (mut ours, mut theirs) = configs.client(near, far).await;
        theirs.write_all(b"all").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut got = String::new();
        ours.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "all");
        // Nobody listens to what is written after our end.
        ours.shutdown().await.unwrap();
        let error = ours.write(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);

        let (near, far) = duplex(1 << 20);
        let (mut ours, theirs) = configs.client(near, far).await;
        drop(theirs);
        let error = ours.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    });
}

/// Changes one byte of what is read.
struct Spoiled<S> {
    stream: S,
    /// Where, counted from now on, and which of its bits.
    change: Option<(usize, u8)>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Spoiled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = &mut buffer.filled_mut()[before..];
        if let Some((at, bits)) = self.change.take() {
            match read.get_mut(at) {
                Some(byte) => *byte ^= bits,
                None => self.change = Some((at - read.len(), bits)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

writes_to!(Spoiled.stream);

#[test]
fn one_changed_byte_ends_the_connection_and_the_peer_is_told() {
    let sealed = HEAD_BYTES + 1000;
    for (change, fault, alert) in [
        ((0, 1), Fault::Unexpected, "UnexpectedMessage"),
        ((3, 0x80), Fault::TooLong, "RecordOverflow"),
        ((HEAD_BYTES, 1), Fault::BadRecord, "BadRecordMac"),
        ((sealed, 1), Fault::BadRecord, "BadRecordMac"),
        ((sealed + 1, 1), Fault::BadRecord, "BadRecordMac"),
    ] {
        // Whether it is opened where the reader wants it or where it lies.
        for room in [2000, 10] {
            block_on(async {
                let (near, far) = duplex(1 << 20);
                let near = Spoiled {
                    stream: near,
                    change: None,
                };
                let (mut ours, mut theirs) = Configs::of(SUITES[0]).server(near, far).await;
                ours.stream.change = Some(change);
                theirs.write_all(&[7; 1000]).await.unwrap();
                theirs.flush().await.unwrap();
                let mut got = vec![0; room];
                for _ in 0..2 {
                    let error = ours.read(&mut got).await.unwrap_err();
                    assert_eq!(error.to_string(), fault.to_string(), "{change:?}");
                }
                ours.write(b"more").await.unwrap_err();
                let error = theirs.read(&mut got).await.unwrap_err();
                assert!(error.to_string().contains(alert), "{change:?}: {error}");
            });
        }
    }
}

/// The key of both ends, where there is no handshake.
fn key() -> Key {
    let (key, iv) = (AeadKey::from([1; 32]), Iv::from([2; 12]));
    Key::new((0, ConnectionTrafficSecrets::Aes256Gcm { key, iv })).unwrap()
}

/// A record of each line, whose first byte says of what kind, and the reader has as much room as
/// the second says: whatever is inside, it is data, a message, an alert, or a fault.
#[test]
fn fuzz_records() {
    crate::fuzz::run("records", |bytes| {
        let mut opening = Opening::new(key(), Vec::new());
        let mut sealing = Sealing::new(key(), u64::MAX);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for line in bytes.split(|byte| *byte == b'\n').take(30) {
            let [kind, room, inside @ ..] = line else {
                continue;
            };
            let kind = match kind % 8 {
                0 => Kind::Alert,
                1 | 2 => Kind::Handshake,
                _ => Kind::Data,
            };
            sealing.short(kind, inside).unwrap();
            let record = sealing.sealed();
            opening.incoming.room(record.len())[..record.len()].copy_from_slice(&record);
            opening.incoming.add(record.len());
            if kind == Kind::Data {
                sent.extend_from_slice(inside);
            }
            loop {
                let mut buffer = vec![0; usize::from(*room) + 1];
                let mut reader = ReadBuf::new(&mut buffer);
                match opening.open(&mut reader) {
                    Ok(Opened::Nothing) => break,
                    Ok(Opened::Data) => got.extend_from_slice(reader.filled()),
                    Ok(Opened::Alert(number)) => assert_eq!([number], inside[1..]),
                    Ok(Opened::Handshake) => loop {
                        assert!(reader.filled().is_empty());
                        match record::message(&opening.message, true) {
                            Ok(Some((_, length))) => drop(opening.message.drain(..length)),
                            Ok(None) => break,
                            Err(_) => return,
                        }
                    },
                    Err(_) => return,
                }
            }
            assert!(got == sent);
        }
        // Not sealed at all.
        opening.incoming = bytes.to_vec().into();
        let mut buffer = vec![0; 100];
        let _ = opening.open(&mut ReadBuf::new(&mut buffer));
    });
}

#[test]
fn what_is_inside_a_record_has_its_kind_behind_it_and_then_padding() {
    assert_eq!(record::inside(b"data\x17"), Ok((Kind::Data, 4)));
    assert_eq!(record::inside(b"data\x17\0\0"), Ok((Kind::Data, 4)));
    assert_eq!(record::inside(b"\x15"), Ok((Kind::Alert, 0)));
    assert_eq!(record::inside(b"\0\0"), Err(Fault::Unexpected));
    assert_eq!(record::inside(b""), Err(Fault::Unexpected));
    // A change of ciphers, and one that does not exist.
    assert_eq!(record::inside(b"\x01\x14"), Err(Fault::Unexpected));
    assert_eq!(record::inside(b"\x01\x63"), Err(Fault::Unexpected));
    let mut long = vec![1; record::MAX_BYTES];
    long.push(23);
    assert_eq!(record::inside(&long), Ok((Kind::Data, record::MAX_BYTES)));
    long.push(0);
    assert_eq!(record::inside(&long), Err(Fault::TooLong));
}

#[test]
fn messages_after_the_handshake_are_tickets_and_key_updates() {
    let of_server = |bytes| record::message(bytes, true);
    assert_eq!(
        of_server(b"\x04\0\0\x03abcd"),
        Ok(Some((Message::Ticket(b"abc"), 7)))
    );
    assert_eq!(of_server(b"\x04\0\0\x03ab"), Ok(None));
    assert_eq!(of_server(b"\x04\0\0"), Ok(None));
    for asked in [0, 1] {
        let update = Message::KeyUpdate { asked: asked == 1 };
        let bytes = [24, 0, 0, 1, asked];
        assert_eq!(record::message(&bytes, true), Ok(Some((update, 5))));
    }
    assert_eq!(of_server(&record::KEY_UPDATE_MESSAGE[..4]), Ok(None));
    assert_eq!(of_server(b"\x18\0\0\x01\x02"), Err(Fault::Illegal));
    // None of these is waited for.
    assert_eq!(of_server(b"\x18\0\0\x02"), Err(Fault::Unreadable));
    assert_eq!(of_server(b"\x04\x01\0\x01"), Err(Fault::Unreadable));
    // A request for a certificate, and one for renegotiation.
    assert_eq!(of_server(b"\x0d\0\0\x09"), Err(Fault::Unexpected));
    assert_eq!(of_server(b"\0\0\0\0"), Err(Fault::Unexpected));
    let of_client = record::message(b"\x04\0\0\x03", false);
    assert_eq!(of_client, Err(Fault::Unexpected));
}

/// A client of rustls that is driven by hand, up to its last flight, which it has not sent.
async fn client_by_hand(configs: &Configs, far: &mut DuplexStream) -> ClientConnection {
    let name = ServerName::try_from("server").unwrap();
    let mut client = ClientConnection::new(configs.client.clone(), name).unwrap();
    far.write_all(&written(&mut client)).await.unwrap();
    while client.is_handshaking() {
        let mut buffer = vec![0; 20_000];
        let read = far.read(&mut buffer).await.unwrap();
        let mut read = &buffer[..read];
        while !read.is_empty() {
            client.read_tls(&mut read).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    client
}

fn written(client: &mut ClientConnection) -> Vec<u8> {
    let mut written = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut written).unwrap();
    }
    written
}

#[test]
fn what_comes_together_with_the_end_of_the_handshake_is_not_lost() {
    block_on(async {
        let configs = Configs::of(SUITES[0]);
        let (near, mut far) = duplex(1 << 20);
        let theirs = async {
            let mut client = client_by_hand(&configs, &mut far).await;
            client.refresh_traffic_keys().unwrap();
            client.writer().write_all(b"hello").unwrap();
            client.send_close_notify();
            far.write_all(&written(&mut client)).await.unwrap();
            client
        };
        let (ours, mut client) = tokio::join!(accept(configs.server.clone(), near), theirs);
        let mut ours = ours.unwrap().stream;
        let mut got = String::new();
        ours.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
        // The peer has asked for our next key, and learns that it is in use.
        ours.write_all(b"world").await.unwrap();
        ours.shutdown().await.unwrap();
        drop(ours);
        let mut answer = Vec::new();
        far.read_to_end(&mut answer).await.unwrap();
        let mut answer = &answer[..];
        while !answer.is_empty() {
            client.read_tls(&mut answer).unwrap();
            client.process_new_packets().unwrap();
        }
        let mut got = String::new();
        client.reader().read_to_string(&mut got).unwrap();
        assert_eq!(got, "world");
    });
}

/// Both ends, and what seals in the place of the peer.
async fn sealed_by_hand(is_client: bool) -> (TlsStream<DuplexStream>, DuplexStream, Sealing) {
    let configs = Configs::of(SUITES[0]);
    let (near, far) = duplex(1 << 24);
    let (ours, far, secrets) = if is_client {
        let (ours, theirs) = configs.client(near, far).await;
        let (far, session) = theirs.into_inner();
        (ours, far, session.dangerous_extract_secrets().unwrap())
    } else {
        let (ours, theirs) = configs.server(near, far).await;
        let (far, session) = theirs.into_inner();
        (ours, far, session.dangerous_extract_secrets().unwrap())
    };
    (
        ours,
        far,
        Sealing::new(Key::new(secrets.tx).unwrap(), u64::MAX),
    )
}

#[test]
fn who_sends_records_without_data_is_cut_off() {
    let ticket = [4, 0, 0, 14, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0];
    type Records<'a> = &'a [(Kind, &'a [u8])];
    let floods: [(Records<'_>, bool); 4] = [
        (&[(Kind::Data, b"")], false),
        (&[(Kind::Alert, &[WARNING, USER_CANCELED])], false),
        (
            &[(Kind::Alert, &[WARNING, USER_CANCELED]), (Kind::Data, b"")],
            false,
        ),
        (&[(Kind::Handshake, &ticket)], true),
    ];
    for (flood, is_client) in floods {
        block_on(async {
            let (mut ours, mut far, mut sealing) = sealed_by_hand(is_client).await;
            let mut send = async |times| {
                for _ in 0..times {
                    for (kind, bytes) in flood {
                        sealing.short(*kind, bytes).unwrap();
                    }
                    far.write_all(&sealing.sealed()).await.unwrap();
                }
                sealing.short(Kind::Data, b"x").unwrap();
                far.write_all(&sealing.sealed()).await.unwrap();
            };
            // As many as anybody needs.
            for _ in 0..3 {
                send(10).await;
                ours.read_exact(&mut [0]).await.unwrap();
            }
            send(40).await;
            let error = ours.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.to_string(), Fault::Unexpected.to_string());
        });
    }
}

#[test]
fn a_message_in_parts_is_put_together_and_nothing_may_come_between() {
    block_on(async {
        for between in [false, true] {
            let (mut ours, mut far, mut sealing) = sealed_by_hand(false).await;
            let (first, second) = record::KEY_UPDATE_MESSAGE.split_at(2);
            sealing.short(Kind::Handshake, first).unwrap();
            if between {
                sealing.short(Kind::Data, b"x").unwrap();
            }
            sealing.short(Kind::Handshake, second).unwrap();
            far.write_all(&sealing.sealed()).await.unwrap();
            drop(far);
            let error = ours.read(&mut [0; 10]).await.unwrap_err();
            match between {
                true => assert_eq!(error.to_string(), Fault::Unexpected.to_string()),
                // All was taken, and then the peer has gone.
                false => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
            }
        }
    });
}

#[test]
fn what_came_before_a_fault_is_read_before_it() {
    block_on(async {
        let (mut ours, mut far, mut sealing) = sealed_by_hand(false).await;
        sealing.short(Kind::Data, b"last words").unwrap();
        sealing.short(Kind::Alert, &[FATAL, 80]).unwrap();
        far.write_all(&sealing.sealed()).await.unwrap();
        let mut buffer = [0; 100];
        let read = ours.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..read], b"last words");
        let error = ours.read(&mut buffer).await.unwrap_err();
        assert_eq!(error.to_string(), Fault::Alert(80).to_string());
    });
}
