//! The DNS server over real sockets: an application, the server, and a
//! nameserver that does what the test says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::netns::HostSockets;
use crate::registry::samples;

/// Local addresses that stand for a nameserver that answers, one that is not there, and one
/// that is silent. Any other stands for none.
struct Aliases {
    answering: SocketAddr,
    silent: SocketAddr,
}

const ANSWERING: &str = "127.77.0.1";
const REFUSING: &str = "127.77.0.2";
const SILENT: &str = "127.77.0.3";
const UNKNOWN: &str = "127.77.0.4";

impl Nameservers for Aliases {
    fn original(&self, alias: IpAddr, client: SocketAddr) -> Option<SocketAddr> {
        assert!(client.ip().is_loopback());
        match alias.to_string().as_str() {
            ANSWERING => Some(self.answering),
            // Nothing listens on port 1.
            REFUSING => Some(([127, 0, 0, 1], 1).into()),
            SILENT => Some(self.silent),
            _ => None,
        }
    }
}

fn query(name: &str, record_type: RecordType) -> Message {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    query
}

/// How long the server waits for nameservers.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the nameserver of the tests says to every question.
fn world(query: &[u8]) -> Vec<u8> {
    let mut response = Message::from_vec(query).unwrap().into_response();
    let name = response.queries[0].name.clone();
    response.add_answer(Record::from_rdata(
        name,
        60,
        RData::A("192.0.2.1".parse().unwrap()),
    ));
    response.to_vec().unwrap()
}

fn first_address(message: &Message) -> String {
    message.answers[0].data.to_string()
}

/// Answers each question, after an answer with another id, which must not be believed.
async fn nameserver_udp() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1024];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let mut forged = Message::from_vec(&world(&buffer[..length])).unwrap();
            forged.metadata.id ^= 0x5555;
            forged.answers.clear();
            let forged = forged.to_vec().unwrap();
            socket.send_to(&forged, client).await.unwrap();
            let answer = world(&buffer[..length]);
            socket.send_to(&answer, client).await.unwrap();
        }
    });
    address
}

/// Starts the server; the port that it has on every local address.
async fn start_udp() -> (u16, CancellationToken) {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let aliases = Aliases {
        answering: nameserver_udp().await,
        silent: silent.local_addr().unwrap(),
    };
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let ended = stop.clone();
    let server = Arc::new(server());
    tokio::spawn(async move {
        let _silent = silent;
        server
            .serve_udp(socket, Arc::new(aliases), ended)
            .await
            .unwrap();
    });
    (port, stop)
}

fn server() -> DnsServer {
    let registry = Arc::new(samples::bookinfo());
    DnsServer::new("default", move || registry.clone(), Arc::new(HostSockets))
        .with_query_timeout(PATIENCE)
}

/// Asks `alias` over UDP, from a connected socket: only an answer from that address arrives.
async fn ask_udp(alias: &str, port: u16, query: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect((alias, port)).await.unwrap();
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(2 * QUERY_TIMEOUT, socket.recv(&mut buffer))
        .await
        .expect("no answer")
        .unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, query.metadata.id);
    answer
}

#[tokio::test]
async fn udp_answers_ours_and_forwards_the_rest_from_the_address_that_was_asked() {
    let (port, stop) = start_udp().await;
    let ours = ask_udp(UNKNOWN, port, &query("reviews.", RecordType::A)).await;
    assert_eq!(first_address(&ours), "10.96.0.1");
    let theirs = ask_udp(ANSWERING, port, &query("example.com.", RecordType::A)).await;
    assert_eq!(first_address(&theirs), "192.0.2.1");
    stop.cancel();
}

#[tokio::test]
async fn udp_failures_are_told_at_once() {
    let (port, _stop) = start_udp().await;
    for alias in [REFUSING, UNKNOWN] {
        let asked = query("example.com.", RecordType::A);
        let answer = timeout(Duration::from_secs(1), ask_udp(alias, port, &asked));
        let answer = answer.await.expect("told at once");
        assert_eq!(
            answer.metadata.response_code,
            ResponseCode::ServFail,
            "{alias}"
        );
        assert_eq!(answer.queries, asked.queries);
    }
}

#[tokio::test]
async fn udp_questions_beyond_the_bound_are_refused_and_the_others_time_out() {
    let (port, _stop) = start_udp().await;
    let asked = query("example.com.", RecordType::A).to_vec().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect((SILENT, port)).await.unwrap();
    // The failures come all at once.
    let room = socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20);
    room.unwrap();
    let mut buffer = [0; 1024];
    let mut refused = 0;
    for _ in 0..MAX_QUERIES_IN_FLIGHT + 10 {
        socket.send(&asked).await.unwrap();
        // Give the server its turn, so that no datagram is lost to a full buffer.
        tokio::task::yield_now().await;
    }
    // Ours are answered also at the bound.
    let ours = ask_udp(SILENT, port, &query("reviews.", RecordType::A)).await;
    assert_eq!(first_address(&ours), "10.96.0.1");
    let mut failed = 0;
    while refused + failed < MAX_QUERIES_IN_FLIGHT + 10 {
        let received = timeout(2 * QUERY_TIMEOUT, socket.recv(&mut buffer)).await;
        let length = received.expect("every question is answered").unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        match answer.metadata.response_code {
            ResponseCode::Refused => refused += 1,
            ResponseCode::ServFail => failed += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((refused, failed), (10, MAX_QUERIES_IN_FLIGHT));
}

async fn write_message(stream: &mut TcpStream, packet: &[u8]) {
    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, packet].concat()).await.unwrap();
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

async fn read_answer(stream: &mut TcpStream) -> Message {
    let packet = timeout(2 * QUERY_TIMEOUT, read_message(stream)).await;
    Message::from_vec(&packet.expect("no answer").unwrap()).unwrap()
}

/// A connection to a server of its own, whose nameserver is `original`.
async fn connect(original: SocketAddr) -> TcpStream {
    connect_to(&Arc::new(server()), original).await
}

async fn connect_to(server: &Arc<DnsServer>, original: SocketAddr) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(server.clone().serve_tcp(stream, original, stop));
    client
}

/// Answers two questions together, the later one first, then one, then closes.
async fn nameserver_tcp() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let first = read_message(&mut stream).await.unwrap();
            let second = read_message(&mut stream).await.unwrap();
            write_message(&mut stream, &world(&second)).await;
            write_message(&mut stream, &world(&first)).await;
            let third = read_message(&mut stream).await.unwrap();
            write_message(&mut stream, &world(&third)).await;
            // A question that is cut off.
            let _ = read_message(&mut stream).await;
        }
    });
    address
}

#[tokio::test]
async fn tcp_takes_several_questions_and_answers_in_any_order() {
    let mut client = connect(nameserver_tcp().await).await;
    let (one, two) = (
        query("one.example.", RecordType::A),
        query("two.example.", RecordType::A),
    );
    write_message(&mut client, &one.to_vec().unwrap()).await;
    write_message(
        &mut client,
        &query("reviews.", RecordType::A).to_vec().unwrap(),
    )
    .await;
    write_message(&mut client, &two.to_vec().unwrap()).await;
    assert_eq!(first_address(&read_answer(&mut client).await), "10.96.0.1");
    assert_eq!(read_answer(&mut client).await.metadata.id, two.metadata.id);
    assert_eq!(read_answer(&mut client).await.metadata.id, one.metadata.id);

    let three = query("three.example.", RecordType::A);
    write_message(&mut client, &three.to_vec().unwrap()).await;
    assert_eq!(first_address(&read_answer(&mut client).await), "192.0.2.1");

    // The nameserver closes: what is asked of it fails, and the next question connects anew.
    let four = query("four.example.", RecordType::A);
    write_message(&mut client, &four.to_vec().unwrap()).await;
    let answer = read_answer(&mut client).await;
    assert_eq!(answer.metadata.id, four.metadata.id);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    write_message(&mut client, &one.to_vec().unwrap()).await;
    write_message(&mut client, &two.to_vec().unwrap()).await;
    assert_eq!(read_answer(&mut client).await.metadata.id, two.metadata.id);
    assert_eq!(read_answer(&mut client).await.metadata.id, one.metadata.id);

    // A client may close its side and still be answered.
    write_message(&mut client, &three.to_vec().unwrap()).await;
    client.shutdown().await.unwrap();
    assert_eq!(
        read_answer(&mut client).await.metadata.id,
        three.metadata.id
    );
    assert!(read_message(&mut client).await.is_err());
}

#[tokio::test]
async fn tcp_failures_are_told() {
    let mut client = connect(([127, 0, 0, 1], 1).into()).await;
    let asked = query("example.com.", RecordType::A);
    write_message(&mut client, &asked.to_vec().unwrap()).await;
    let answer = timeout(Duration::from_secs(1), read_answer(&mut client)).await;
    let answer = answer.expect("told at once");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    // What is not DNS ends the connection.
    client.write_all(b"\0\x03xyz").await.unwrap();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn tcp_connections_have_a_bound() {
    let (server, nobody) = (Arc::new(server()), ([127, 0, 0, 1], 1).into());
    let mut open = Vec::new();
    let asked = query("reviews.", RecordType::A).to_vec().unwrap();
    for _ in 0..server::MAX_TCP_CONNECTIONS {
        let mut client = connect_to(&server, nobody).await;
        write_message(&mut client, &asked).await;
        read_answer(&mut client).await;
        open.push(client);
    }
    let mut further = connect_to(&server, nobody).await;
    assert_eq!(further.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed");

    // One that ends makes room for another.
    let mut first = open.swap_remove(0);
    first.shutdown().await.unwrap();
    assert_eq!(first.read(&mut [0; 8]).await.unwrap(), 0);
    let room = async {
        loop {
            let mut client = connect_to(&server, nobody).await;
            write_message(&mut client, &asked).await;
            if read_message(&mut client).await.is_ok() {
                return;
            }
        }
    };
    timeout(Duration::from_secs(5), room).await.expect("room");
}
