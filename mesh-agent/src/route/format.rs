//! Values of header fields that depend on the request.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Version};

use super::view::RequestView;
use crate::resource::format::{Part, Piece, TimePiece};

/// The value for a request; `None` where nothing is left of it.
pub(super) fn value(
    pieces: &[Piece],
    request: &RequestView<'_>,
    route_name: &str,
) -> Option<HeaderValue> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => bytes.extend_from_slice(text.as_bytes()),
            Piece::Request { name, or, limit } => {
                let found = field(request, name)
                    .or_else(|| field(request, or.as_deref()?))
                    .unwrap_or_default();
                let end = limit.unwrap_or(usize::MAX).min(found.len());
                bytes.extend_from_slice(&found[..end]);
            }
            Piece::Client(part) => bytes.extend(address(request.facts.client, *part).bytes()),
            Piece::Destination(part) => {
                bytes.extend(address(request.facts.destination, *part).bytes());
            }
            Piece::Protocol => bytes.extend(protocol(request.facts.version).bytes()),
            Piece::RouteName => bytes.extend(route_name.bytes()),
            Piece::StartTime(format) => bytes.extend(time(format, (request.facts.now)()).bytes()),
        }
    }
    HeaderValue::from_bytes(&bytes)
        .ok()
        .filter(|value| !value.is_empty())
}

fn field<'r>(request: &RequestView<'r>, name: &str) -> Option<&'r [u8]> {
    let text = match name {
        ":path" => request.path_and_query,
        ":authority" | "host" => request.authority,
        ":method" => request.method.as_str(),
        ":scheme" => request.scheme,
        name => return request.headers.get(name).map(HeaderValue::as_bytes),
    };
    Some(text.as_bytes())
}

fn address(address: SocketAddr, part: Part) -> String {
    match part {
        Part::All => address.to_string(),
        Part::Address => address.ip().to_string(),
        Part::Port => address.port().to_string(),
    }
}

/// As it is told, such as `HTTP/1.1`.
pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// A time, in UTC.
pub(crate) fn time(format: &[TimePiece], at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanoseconds) = (since.as_secs(), since.subsec_nanos());
    let (year, month, day) = date(seconds / 86_400);
    let mut text = String::new();
    for piece in format {
        // Writing to a string does not fail.
        let _ = match piece {
            TimePiece::Text(plain) => text.write_str(plain),
            TimePiece::Epoch => write!(text, "{seconds}"),
            TimePiece::Fraction(digits) => {
                let width = *digits as usize;
                write!(text, "{:0width$}", nanoseconds / 10u32.pow(9 - digits))
            }
            TimePiece::Part('Y') => write!(text, "{year:04}"),
            TimePiece::Part('m') => write!(text, "{month:02}"),
            TimePiece::Part('d') => write!(text, "{day:02}"),
            TimePiece::Part('H') => write!(text, "{:02}", seconds / 3600 % 24),
            TimePiece::Part('M') => write!(text, "{:02}", seconds / 60 % 60),
            TimePiece::Part(_) => write!(text, "{:02}", seconds % 60),
        };
    }
    text
}

/// Year, month and day of a day since 1970-01-01. Years begin in March, so that the
/// day that leap years have more is the last.
pub(crate) fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    /// From 0000-03-01.
    const DAYS_TO_1970: u64 = 719_468;
    let day = days + DAYS_TO_1970;
    let (era, day) = (day / DAYS_OF_400_YEARS, day % DAYS_OF_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year + u64::from(month >= 10);
    (year, if month < 10 { month + 3 } else { month - 9 }, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, Method};

    use super::super::view::Facts;
    use super::*;
    use crate::resource::format::parse;

    fn formatted(text: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("jason"));
        let request = RequestView {
            authority: "reviews:80",
            method: &Method::PUT,
            path_and_query: "/a?b",
            scheme: "http",
            headers: &headers,
            facts: Facts {
                client: "10.0.0.1:4000".parse().unwrap(),
                destination: "[fd00::2]:80".parse().unwrap(),
                version: Version::HTTP_2,
                now: || UNIX_EPOCH + Duration::from_millis(1_709_251_199_045),
            },
        };
        let value = value(&parse(text).unwrap(), &request, "my-route")?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn values_say_what_they_are_asked_for() {
        for (format, expected) in [
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:4000"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1"),
            ("%DOWNSTREAM_LOCAL_ADDRESS%", "[fd00::2]:80"),
            ("%DOWNSTREAM_LOCAL_PORT%", "80"),
            ("%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%", "PUT /a?b HTTP/2"),
            (
                "%REQ(X-Missing?X-User)%@%REQ(:AUTHORITY):7%",
                "jason@reviews",
            ),
            ("%ROUTE_NAME%", "my-route"),
            ("%START_TIME%", "2024-02-29T23:59:59.045Z"),
            ("%START_TIME(%s.%6f)%", "1709251199.045000"),
            ("%START_TIME(%F %T)%", "2024-02-29 23:59:59"),
        ] {
            assert_eq!(formatted(format).as_deref(), Some(expected), "{format}");
        }
        assert_eq!(formatted("%REQ(x-missing)%"), None);
    }

    #[test]
    fn days_have_dates() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (10_956, (1999, 12, 31)),
            (11_016, (2000, 2, 29)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(days), expected);
        }
    }
}
