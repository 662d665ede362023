//! One DNS message in, one out, without I/O. The codec is hickory-proto's.

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::zone::{Answer, Zone};

/// How long a client may keep an answer, seconds (as Istio's and Kubernetes' DNS say).
pub const TTL_SECONDS: u32 = 30;
/// How long a client may keep the absence of a name, seconds: short, because services come.
pub const NEGATIVE_TTL_SECONDS: u32 = 5;
/// Largest datagram that is sent or received, bytes. Questions come over loopback, where nothing
/// is fragmented; a client that can take less says so.
pub const MAX_UDP_BYTES: u16 = 4096;

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers have to fit a datagram.
    Udp,
    /// Answers have up to 65 535 bytes.
    Tcp,
}

/// What to do with a message from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Send this.
    Answer(Vec<u8>),
    /// Hand the message as it is to the nameserver that the client asked.
    Forward,
    /// Nothing: it is no query.
    Ignore,
}

/// The reaction to `packet`.
pub fn react(zone: &Zone<'_>, packet: &[u8], transport: Transport) -> Reaction {
    let mut decoder = BinDecoder::new(packet);
    let header = match Header::read(&mut decoder) {
        Ok(header) if header.metadata.message_type == MessageType::Query => header,
        // An answer, or too short to have an id: replying could start a loop.
        _ => return Reaction::Ignore,
    };
    if header.metadata.op_code != OpCode::Query || header.counts.queries != 1 {
        return Reaction::Forward;
    }
    let Ok(question) = Query::read(&mut decoder) else {
        return answer_or_ignore(error(packet, ResponseCode::FormErr));
    };
    if !matches!(question.query_class, DNSClass::IN | DNSClass::ANY) {
        return Reaction::Forward;
    }
    let answer = zone.answer(&question.name, question.query_type);
    if answer == Answer::NotOurs {
        return Reaction::Forward;
    }
    // Only what is answered here has to be understood to its end.
    match Message::from_vec(packet) {
        Ok(query) => answer_or_ignore(respond(zone, &query, question, answer, transport)),
        Err(_) => answer_or_ignore(error(packet, ResponseCode::FormErr)),
    }
}

fn answer_or_ignore(bytes: Option<Vec<u8>>) -> Reaction {
    bytes.map_or(Reaction::Ignore, Reaction::Answer)
}

/// A response without records to the query in `packet`; `None` where it has no header.
pub fn error(packet: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let mut decoder = BinDecoder::new(packet);
    let header = Header::read(&mut decoder).ok()?;
    let mut response = Message::error_msg(header.metadata.id, header.metadata.op_code, code);
    response.metadata.recursion_desired = header.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    if header.counts.queries == 1
        && let Ok(question) = Query::read(&mut decoder)
    {
        response.add_query(question);
    }
    response.to_vec().ok()
}

/// Id and question of a message, by which a response is matched with its query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Id, as the client chose it.
    pub id: u16,
    /// Question; `None` where there is not exactly one.
    question: Option<Query>,
}

impl Key {
    /// The key of `packet`, if it is of this type.
    pub fn of(packet: &[u8], message_type: MessageType) -> Option<Self> {
        let mut decoder = BinDecoder::new(packet);
        let header = Header::read(&mut decoder).ok()?;
        if header.metadata.message_type != message_type {
            return None;
        }
        let question = (header.counts.queries == 1)
            .then(|| Query::read(&mut decoder).ok())
            .flatten();
        Some(Self {
            id: header.metadata.id,
            question,
        })
    }

    /// Whether a response with the key `response` answers this query. Names are compared
    /// without case; a response may leave the question out (some servers do in errors).
    pub fn is_answered_by(&self, response: &Self) -> bool {
        self.id == response.id
            && (response.question.is_none() || response.question == self.question)
    }
}

fn respond(
    zone: &Zone<'_>,
    query: &Message,
    question: Query,
    answer: Answer,
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.authoritative = true;
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.checking_disabled = query.metadata.checking_disabled;
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_BYTES);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        response.set_edns(edns);
    }
    match answer {
        // We speak version 0 only (RFC 6891, section 6.1.3).
        _ if query.version() > 0 => response.metadata.response_code = ResponseCode::BADVERS,
        Answer::Records(records) => {
            for data in records {
                // The name as it was asked, in its case: some resolvers check it.
                let record = Record::from_rdata(question.name.clone(), TTL_SECONDS, data);
                response.add_answer(record);
            }
        }
        Answer::NoData => {
            response.add_authority(start_of_authority(zone, &question.name));
        }
        Answer::NoSuchName => {
            response.metadata.response_code = ResponseCode::NXDomain;
            response.add_authority(start_of_authority(zone, &question.name));
        }
        Answer::NotOurs => return None,
    }
    response.add_query(question);
    let bytes = response.to_vec().ok()?;
    let room = match transport {
        Transport::Udp => usize::from(query.max_payload().min(MAX_UDP_BYTES)),
        Transport::Tcp => usize::from(u16::MAX),
    };
    if bytes.len() <= room {
        return Some(bytes);
    }
    response.truncate().to_vec().ok()
}

/// The SOA that tells how long an absence may be remembered (RFC 2308). Names outside of
/// the cluster's domain are zones of their own, so that nothing beside them is denied.
fn start_of_authority(zone: &Zone<'_>, asked: &Name) -> Record {
    let apex = if zone.is_in_domain(asked) {
        Name::from_ascii(zone.domain()).unwrap_or_else(|_| asked.clone())
    } else {
        asked.clone()
    };
    let below = |label: &str| apex.prepend_label(label).unwrap_or_else(|_| apex.clone());
    let soa = SOA::new(
        below("ns"),
        below("hostmaster"),
        1,
        7200,
        1800,
        86400,
        NEGATIVE_TTL_SECONDS,
    );
    let mut apex = apex.clone();
    apex.set_fqdn(true);
    Record::from_rdata(apex, NEGATIVE_TTL_SECONDS, RData::SOA(soa))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RecordType;
    use proptest::prelude::*;

    use super::*;
    use crate::registry::{Registry, samples};

    fn query(name: &str, record_type: RecordType) -> Message {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
        query
    }

    fn react_to(registry: &Registry, packet: &[u8], transport: Transport) -> Reaction {
        let zone = Zone {
            sees: &|_| true,
            registry,
            namespace: "default",
            rotation: 0,
        };
        react(&zone, packet, transport)
    }

    fn answered(query: &Message) -> Message {
        match react_to(
            &samples::bookinfo(),
            &query.to_vec().unwrap(),
            Transport::Udp,
        ) {
            Reaction::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// A headless service with this many endpoints.
    fn crowd(endpoints: u8) -> Registry {
        let workloads: Vec<_> = (0..endpoints)
            .map(|n| samples::workload(&format!("w{n}"), "default", &[&format!("10.1.0.{n}")]))
            .map(std::sync::Arc::new)
            .collect();
        let crowd = samples::service("crowd", "default", &[], &[(80, 80)], &workloads);
        samples::registry(workloads, vec![crowd])
    }

    #[test]
    fn an_answer_keeps_id_case_and_flags() {
        let query = query("ReViews.", RecordType::A);
        let answer = answered(&query);
        assert_eq!(answer.metadata.id, query.metadata.id);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
        assert!(answer.metadata.authoritative && !answer.metadata.truncation);
        assert!(answer.queries[0].name.eq_case(&query.queries[0].name));
        let record = &answer.answers[0];
        assert!(record.name.eq_case(&query.queries[0].name));
        assert_eq!(record.ttl, TTL_SECONDS);
        assert_eq!(record.data.to_string(), "10.96.0.1");
        assert!(answer.edns.is_none());
    }

    #[test]
    fn absences_carry_a_start_of_authority() {
        let missing = answered(&query("nope.default.svc.cluster.local.", RecordType::A));
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(missing.authorities[0].name.to_ascii(), "svc.cluster.local.");
        assert_eq!(missing.authorities[0].ttl, NEGATIVE_TTL_SECONDS);
        assert_eq!(missing.authorities[0].record_type(), RecordType::SOA);

        // No zone `example.com` may be denied because one host of it is ours.
        let empty = answered(&query("api.example.com.", RecordType::AAAA));
        assert_eq!(empty.metadata.response_code, ResponseCode::NoError);
        assert!(empty.answers.is_empty());
        assert_eq!(empty.authorities[0].name.to_ascii(), "api.example.com.");
    }

    #[test]
    fn answers_fit_what_the_client_can_take() {
        let registry = crowd(100);
        let ask = |payload: Option<u16>, transport| {
            let mut query = query("crowd.", RecordType::A);
            if let Some(payload) = payload {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                query.set_edns(edns);
            }
            match react_to(&registry, &query.to_vec().unwrap(), transport) {
                Reaction::Answer(bytes) => (bytes.len(), Message::from_vec(&bytes).unwrap()),
                other => panic!("{other:?}"),
            }
        };
        let (length, small) = ask(None, Transport::Udp);
        assert!(length <= 512 && small.metadata.truncation && small.answers.is_empty());
        assert!(small.edns.is_none());
        let (length, small) = ask(Some(600), Transport::Udp);
        assert!(length <= 600 && small.metadata.truncation);
        assert!(
            small.edns.is_some(),
            "an answer with EDNS to a question with EDNS"
        );
        let (_, all) = ask(Some(4096), Transport::Udp);
        assert!(!all.metadata.truncation);
        assert_eq!(all.answers.len(), 100);
        let (_, all) = ask(None, Transport::Tcp);
        assert_eq!(all.answers.len(), 100);
    }

    #[test]
    fn a_version_of_edns_that_we_do_not_speak_is_refused() {
        let mut query = query("reviews.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        query.set_edns(edns);
        let answer = answered(&query);
        assert_eq!(u16::from(answer.metadata.response_code), 16);
        assert!(answer.answers.is_empty());
    }

    #[test]
    fn what_is_not_a_question_about_the_mesh_is_forwarded_or_ignored() {
        let registry = samples::bookinfo();
        let react =
            |message: &Message| react_to(&registry, &message.to_vec().unwrap(), Transport::Udp);
        assert_eq!(
            react(&query("example.com.", RecordType::A)),
            Reaction::Forward
        );
        let mut chaos = query("reviews.", RecordType::A);
        chaos.queries[0].query_class = DNSClass::CH;
        assert_eq!(react(&chaos), Reaction::Forward);
        let mut update = query("reviews.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(react(&update), Reaction::Forward);
        let mut two = query("reviews.", RecordType::A);
        two.add_query(two.queries[0].clone());
        assert_eq!(react(&two), Reaction::Forward);
        assert_eq!(
            react(&query("reviews.", RecordType::A).into_response()),
            Reaction::Ignore
        );
        assert_eq!(
            react_to(&registry, b"short", Transport::Udp),
            Reaction::Ignore
        );
    }

    #[test]
    fn a_broken_question_is_a_format_error() {
        let mut packet = query("reviews.", RecordType::A).to_vec().unwrap();
        packet.truncate(packet.len() - 1);
        let Reaction::Answer(bytes) = react_to(&samples::bookinfo(), &packet, Transport::Udp)
        else {
            panic!("no answer");
        };
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(answer.metadata.id.to_be_bytes(), packet[..2]);
    }

    #[test]
    fn responses_are_matched_by_id_and_question() {
        let query = query("Example.com.", RecordType::A);
        let key =
            |message: &Message, message_type| Key::of(&message.to_vec().unwrap(), message_type);
        let asked = key(&query, MessageType::Query).unwrap();
        let accepts = |response: Message| {
            asked.is_answered_by(&key(&response, MessageType::Response).unwrap())
        };
        assert!(key(&query, MessageType::Response).is_none());
        let response = query.clone().into_response();
        assert!(accepts(response.clone()));
        let mut lower = response.clone();
        lower.queries[0].name = lower.queries[0].name.to_lowercase();
        assert!(accepts(lower));
        let mut without = response.clone();
        without.queries.clear();
        assert!(accepts(without));
        let mut other = response.clone();
        other.queries[0].query_type = RecordType::AAAA;
        assert!(!accepts(other));
        let mut other = response;
        other.metadata.id ^= 1;
        assert!(!accepts(other));
    }

    proptest! {
        #[test]
        fn no_packet_is_a_panic(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            let registry = samples::bookinfo();
            for transport in [Transport::Udp, Transport::Tcp] {
                if let Reaction::Answer(answer) = react_to(&registry, &packet, transport) {
                    prop_assert_eq!(&answer[..2], &packet[..2]);
                }
            }
            let _ = Key::of(&packet, MessageType::Response);
        }

        /// Queries about the mesh with bytes changed get deeper than random bytes do.
        #[test]
        fn no_damage_is_a_panic(
            name in prop::sample::select(vec![
                "reviews.", "db.data.", "1.0.96.10.in-addr.arpa.", "_http-80._tcp.reviews.", "x.svc.cluster.local.",
            ]),
            record_type in prop::sample::select(vec![
                RecordType::A, RecordType::AAAA, RecordType::PTR, RecordType::SRV, RecordType::ANY,
            ]),
            damage in proptest::collection::vec((0usize..80, any::<u8>()), 0..4),
            edns: bool,
        ) {
            let mut query = query(name, record_type);
            if edns {
                query.set_edns(Edns::new());
            }
            let mut packet = query.to_vec().unwrap();
            for (at, byte) in damage {
                let length = packet.len();
                packet[at % length] = byte;
            }
            if let Reaction::Answer(answer) =
                react_to(&samples::bookinfo(), &packet, Transport::Udp)
            {
                prop_assert_eq!(&answer[..2], &packet[..2]);
                prop_assert!(Message::from_vec(&answer).is_ok());
            }
        }
    }

    #[test]
    fn fuzz_dns() {
        let registry = samples::bookinfo();
        crate::fuzz::run("dns", |packet| {
            for transport in [Transport::Udp, Transport::Tcp] {
                if let Reaction::Answer(answer) = react_to(&registry, packet, transport) {
                    Message::from_vec(&answer).unwrap();
                }
            }
            error(packet, ResponseCode::ServFail);
        });
    }
}
