//! Tells a protocol by the first bytes of a connection.

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// Too few bytes to tell.
    NeedMore,
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS ClientHello.
    Tls,
    /// Something else.
    Other,
}

/// Bytes after which `sniff` always has an answer.
pub const MAX_SNIFF: usize = MAX_REQUEST_LINE;

/// The client connection preface (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest method that is taken for one; registered ones have at most 17 letters.
const MAX_METHOD: usize = 32;
/// Longest request line that is waited for; what is longer so far is taken for HTTP.
const MAX_REQUEST_LINE: usize = 8 * 1024;

/// Tells the protocol. With more bytes of the same connection the answer stays
/// as it is, unless it was `NeedMore`.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let shared = bytes.len().min(PREFACE.len());
    if bytes[..shared] == PREFACE[..shared] {
        return if shared == PREFACE.len() {
            Sniffed::Http2
        } else {
            Sniffed::NeedMore
        };
    }
    if bytes[0] == 0x16 {
        return tls(bytes);
    }
    http1(bytes)
}

/// A handshake record of version 3.x that begins with a ClientHello (RFC 8446, sections 4 and 5.1).
fn tls(bytes: &[u8]) -> Sniffed {
    let expected: [fn(u8) -> bool; 6] = [
        |kind| kind == 0x16,
        |major| major == 3,
        |minor| minor <= 4,
        |_| true,
        |_| true,
        |handshake| handshake == 1,
    ];
    if !expected.iter().zip(bytes).all(|(holds, byte)| holds(*byte)) {
        Sniffed::Other
    } else if bytes.len() < expected.len() {
        Sniffed::NeedMore
    } else {
        Sniffed::Tls
    }
}

/// A request line: method, target, `HTTP/1.x` (RFC 9112, section 3). Empty
/// lines before it are let through, as servers are told to (section 2.2).
fn http1(bytes: &[u8]) -> Sniffed {
    let blank = bytes
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    if blank > 4 {
        return Sniffed::Other;
    }
    let bytes = &bytes[blank..];
    let method = bytes
        .iter()
        .take(MAX_METHOD + 1)
        .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        .count();
    if method > MAX_METHOD
        || bytes
            .first()
            .is_some_and(|first| !first.is_ascii_alphabetic())
    {
        return Sniffed::Other;
    }
    let Some(separator) = bytes.get(method) else {
        return Sniffed::NeedMore;
    };
    if *separator != b' ' {
        return Sniffed::Other;
    }
    let target = &bytes[method + 1..];
    match target.first() {
        None => return Sniffed::NeedMore,
        Some(first) if !first.is_ascii_graphic() => return Sniffed::Other,
        Some(_) => {}
    }
    let end = target
        .iter()
        .position(|byte| *byte <= b' ' || *byte == 0x7f)
        .unwrap_or(target.len());
    if end > MAX_REQUEST_LINE - MAX_METHOD - 16 {
        return Sniffed::Http1;
    }
    let Some((b' ', version)) = target[end..].split_first() else {
        return if end == target.len() {
            Sniffed::NeedMore
        } else {
            Sniffed::Other
        };
    };
    const VERSION: &[u8] = b"HTTP/1.";
    let shared = version.len().min(VERSION.len());
    if version[..shared] != VERSION[..shared] {
        Sniffed::Other
    } else if shared < VERSION.len() {
        Sniffed::NeedMore
    } else {
        Sniffed::Http1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn protocols_are_told_by_their_first_bytes() {
        for (bytes, expected) in [
            (&b""[..], Sniffed::NeedMore),
            (b"G", Sniffed::NeedMore),
            (b"GET / HTTP/1.1\r\n", Sniffed::Http1),
            (b"\r\nGET / HTTP/1.0\r\n", Sniffed::Http1),
            (b"VERSION-CONTROL /a%20b HTTP/1.1\r\n", Sniffed::Http1),
            (b"CONNECT a:443 HTTP/1.1\r\n", Sniffed::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", Sniffed::NeedMore),
            (PREFACE, Sniffed::Http2),
            (b"PRI * HTTP/1.1", Sniffed::Http1),
            (b"GET /\r\n", Sniffed::Other),
            (b"GET / HTTP/2.0\r\n", Sniffed::Other),
            (b"PING\r\n", Sniffed::Other),
            (b"*1\r\n$4\r\nPING\r\n", Sniffed::Other),
            (b"SSH-2.0-OpenSSH_9\r\n", Sniffed::Other),
            (b"EHLO example.com\r\n", Sniffed::Other),
            (b"\x16\x03\x01\x02\x00\x01\x00", Sniffed::Tls),
            (b"\x16\x03\x01", Sniffed::NeedMore),
            (b"\x16\x03\x01\x02\x00\x02", Sniffed::Other),
            (b"\x16GET", Sniffed::Other),
            (b"\x00", Sniffed::Other),
        ] {
            assert_eq!(
                sniff(bytes),
                expected,
                "{:?}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn a_long_target_is_not_waited_for() {
        let mut bytes = b"GET /".to_vec();
        bytes.resize(MAX_SNIFF, b'a');
        assert_eq!(sniff(&bytes), Sniffed::Http1);
    }

    /// Bytes that look like a protocol as often as not.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            Just(b"GET ".to_vec()),
            Just(b"/path".to_vec()),
            Just(b" HTTP/1.1\r\n".to_vec()),
            Just(PREFACE.to_vec()),
            Just(b"\x16\x03\x01\x00\x10\x01".to_vec()),
            Just(b"\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..8),
        ];
        proptest::collection::vec(pieces, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn an_answer_stays_with_more_bytes(bytes in bytes()) {
            let mut answer = Sniffed::NeedMore;
            for end in 0..=bytes.len() {
                let next = sniff(&bytes[..end]);
                if answer != Sniffed::NeedMore {
                    prop_assert_eq!(next, answer);
                }
                answer = next;
            }
        }

        #[test]
        fn enough_bytes_always_have_an_answer(
            bytes in proptest::collection::vec(any::<u8>(), MAX_SNIFF..MAX_SNIFF + 10)
        ) {
            prop_assert_ne!(sniff(&bytes), Sniffed::NeedMore);
        }
    }

    #[test]
    fn fuzz_sniff() {
        crate::fuzz::run("sniff", |bytes| {
            let told = sniff(bytes);
            if bytes.len() >= MAX_SNIFF {
                assert_ne!(told, Sniffed::NeedMore);
            }
        });
    }
}
