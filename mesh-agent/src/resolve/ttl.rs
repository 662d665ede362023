//! For how long DNS says that an answer holds. The system's resolver does not tell it,
//! so the name servers of its `resolv.conf` are asked for that alone.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// As many as the system's resolver asks.
const MAX_SERVERS: usize = 3;
/// How long one may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Largest answer that is read.
const MAX_BYTES: usize = 4096;

/// The least time to live of the records that lead from a name to its addresses; `None`
/// where no name server says it, as for names of `/etc/hosts`.
pub(super) async fn of(name: &str) -> Option<Duration> {
    let settings = tokio::fs::read_to_string(RESOLV_CONF).await.ok()?;
    for server in servers(&settings).take(MAX_SERVERS) {
        for kind in [RecordType::A, RecordType::AAAA] {
            match tokio::time::timeout(TIMEOUT, ask(server, name, kind)).await {
                Ok(Ok(Some(ttl))) => return Some(ttl),
                // It has no address of this kind.
                Ok(Ok(None)) => {}
                // The next server.
                Ok(Err(_)) | Err(_) => break,
            }
        }
    }
    None
}

fn servers(settings: &str) -> impl Iterator<Item = SocketAddr> {
    settings.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver");
        let address: IpAddr = address.and_then(|_| words.next())?.parse().ok()?;
        Some(SocketAddr::new(address, PORT))
    })
}

async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> io::Result<Option<Duration>> {
    let mut name = Name::from_utf8(name).map_err(io::Error::other)?;
    name.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let own: IpAddr = match server {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(server).await?;
    socket
        .send(&message.to_vec().map_err(io::Error::other)?)
        .await?;
    let mut answer = [0; MAX_BYTES];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Somebody else's, or rubbish: ours may still come.
        if let Ok(answer) = Message::from_vec(&answer[..length])
            && answer.metadata.id == message.metadata.id
            && answer.metadata.message_type == MessageType::Response
        {
            return Ok(ttl(&answer, kind));
        }
    }
}

fn ttl(answer: &Message, kind: RecordType) -> Option<Duration> {
    let records = || answer.answers.iter();
    records().find(|record| record.record_type() == kind)?;
    let least = records().map(|record| record.ttl).min()?;
    Some(Duration::from_secs(least.into()))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::rr::rdata::{A, CNAME};
    use hickory_proto::rr::{RData, Record};

    use super::*;

    #[test]
    fn servers_are_those_of_the_system() {
        let settings = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1 # one\n\
                        nameserver 2001:db8::1\nnameserver nowhere\noptions ndots:5\n";
        let found: Vec<_> = servers(settings).map(|server| server.to_string()).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }

    #[tokio::test]
    async fn the_shortest_life_on_the_way_to_an_address_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = server.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            let mut bytes = [0; 512];
            for _ in 0..2 {
                let (length, client) = server.recv_from(&mut bytes).await.expect("a question");
                let question = Message::from_vec(&bytes[..length]).expect("a question");
                let asked = question.queries[0].clone();
                let mut answer = Message::new(
                    question.metadata.id,
                    MessageType::Response,
                    question.metadata.op_code,
                );
                let other = Name::from_str("edge.example.net.").expect("a name");
                if asked.query_type() == RecordType::A {
                    let alias = RData::CNAME(CNAME(other.clone()));
                    answer.add_answer(Record::from_rdata(asked.name().clone(), 20, alias));
                    let address = RData::A(A([192, 0, 2, 1].into()));
                    answer.add_answer(Record::from_rdata(other, 300, address));
                }
                answer.add_query(asked);
                // What is no answer to this question is not taken for one.
                server.send_to(b"?", client).await.expect("sent");
                let answer = answer.to_vec().expect("an answer");
                server.send_to(&answer, client).await.expect("sent");
            }
        });
        let ttl = |kind| ask(address, "api.example.com", kind);
        let expected = Some(Duration::from_secs(20));
        assert_eq!(ttl(RecordType::A).await.expect("an answer"), expected);
        assert_eq!(ttl(RecordType::AAAA).await.expect("an answer"), None);
        serving.await.expect("no panic");
    }
}
