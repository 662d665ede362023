//! Small values that several resources share: durations, percentages, base64.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

/// A duration as Go and protobuf write it: `1h`, `1m30s`, `1.5s`, `10ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct GoDuration(pub Duration);

/// Longest duration that protobuf's JSON mapping knows (`google.protobuf.Duration`), in seconds.
const MAX_DURATION_SECONDS: u64 = 315_576_000_000;

/// A text that is not a duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a duration such as 1h, 1m, 1s or 1ms")]
pub struct ParseDurationError(pub String);

impl GoDuration {
    /// Reads a duration; a sum of numbers with units, or a plain `0`.
    pub fn parse(text: &str) -> Result<Self, ParseDurationError> {
        parse_duration(text)
            .filter(|duration| duration.as_secs() <= MAX_DURATION_SECONDS)
            .map(Self)
            .ok_or_else(|| ParseDurationError(text.to_owned()))
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        if tail.is_empty() {
            return Some(total);
        }
        rest = tail;
    }
}

impl TryFrom<String> for GoDuration {
    type Error = ParseDurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

/// `Percent` of Istio: `{value: 12.5}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Percent {
    /// 0 to 100.
    #[serde(default)]
    pub value: f64,
}

impl Percent {
    /// Why the value cannot be used, if so. Below 0.0001 the precision of the ecosystem's proxies ends.
    pub fn problem(self) -> Option<&'static str> {
        if !(0.0..=100.0).contains(&self.value) {
            Some("must be between 0 and 100")
        } else if self.value > 0.0 && self.value < 0.0001 {
            Some("is above 0 but below 0.0001, the smallest share that is applied")
        } else {
            None
        }
    }

    /// The share in millionths, as Envoy counts it.
    pub fn millionths(self) -> u32 {
        (self.value.clamp(0.0, 100.0) * 10_000.0).round() as u32
    }
}

/// Bytes that are written as base64 (RFC 4648, section 4; padding may be left out).
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Base64(pub Vec<u8>);

impl fmt::Debug for Base64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Base64({} bytes)", self.0.len())
    }
}

/// A text that is not base64.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("is not base64 (RFC 4648)")]
pub struct ParseBase64Error;

impl TryFrom<String> for Base64 {
    type Error = ParseBase64Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let text = text.trim_end_matches('=');
        if text.len() % 4 == 1 {
            return Err(ParseBase64Error);
        }
        let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
        let (mut bits, mut count) = (0u32, 0u32);
        for symbol in text.bytes() {
            let value = match symbol {
                b'A'..=b'Z' => symbol - b'A',
                b'a'..=b'z' => symbol - b'a' + 26,
                b'0'..=b'9' => symbol - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return Err(ParseBase64Error),
            };
            bits = (bits << 6) | u32::from(value);
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
                bits &= (1 << count) - 1;
            }
        }
        Ok(Self(bytes))
    }
}

/// An address with a prefix length, or a single address.
pub fn parse_subnet(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Number of a gRPC status by its name (gRPC, "Status codes and their use in gRPC").
pub fn grpc_status_code(name: &str) -> Option<u16> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let index = NAMES.iter().position(|known| *known == name)?;
    u16::try_from(index).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("1ms", 1),
            ("1.5s", 1500),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("0.25s", 250),
        ] {
            assert_eq!(
                GoDuration::parse(text).map(|duration| duration.0),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
    }

    #[test]
    fn other_texts_are_no_durations() {
        for text in [
            "",
            "1",
            "s",
            "-1s",
            "1d",
            "1 s",
            "1s ",
            ".s",
            "1..5s",
            "1e9s",
            "99999999999999h",
        ] {
            assert!(GoDuration::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_are_counted_in_millionths() {
        assert_eq!(Percent { value: 0.0001 }.millionths(), 1);
        assert_eq!(Percent { value: 100.0 }.millionths(), 1_000_000);
        assert!(Percent { value: 0.00001 }.problem().is_some());
        assert!(Percent { value: f64::NAN }.problem().is_some());
        assert!(Percent { value: 100.1 }.problem().is_some());
        assert!(Percent { value: 0.0 }.problem().is_none());
    }

    #[test]
    fn base64_reads_with_and_without_padding() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8", "fo"), ("Zm9v", "foo")] {
            assert_eq!(Base64::try_from(text.to_owned()), Ok(Base64(bytes.into())));
        }
        for text in ["Z", "Zm9v!", "Zm 9v"] {
            assert_eq!(Base64::try_from(text.to_owned()), Err(ParseBase64Error));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = GoDuration::parse(&text);
            let _ = Base64::try_from(text);
        }
    }
}
