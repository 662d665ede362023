//! A CONNECT that was answered with no: the status, and the reason in a
//! `proxy-status` header (RFC 9209).

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

/// RFC 9209, section 2.
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// Our name in that header.
const PROXY: &str = "undermesh";
/// Longer reasons are cut.
const MAX_REASON_BYTES: usize = 1024;

/// Why a tunnel is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct Refusal {
    /// The answer to the CONNECT, such as 403 or 503; not 2xx.
    pub status: StatusCode,
    /// For the log and the peer's log; visible ASCII arrives as it is.
    pub reason: String,
}

impl Refusal {
    /// A refusal with a reason.
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }

    pub(super) fn to_response(&self) -> Response<()> {
        let mut details = String::new();
        for character in self.reason.chars() {
            if details.len() >= MAX_REASON_BYTES {
                break;
            }
            match character {
                '"' | '\\' => details.extend(['\\', character]),
                ' '..='~' => details.push(character),
                _ => details.push('?'),
            }
        }
        let mut response = Response::new(());
        // An answer of success would open a tunnel that nobody serves.
        *response.status_mut() = if self.status.is_success() {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            self.status
        };
        if let Ok(value) = HeaderValue::try_from(format!("{PROXY}; details=\"{details}\"")) {
            response.headers_mut().insert(PROXY_STATUS, value);
        }
        response
    }

    pub(super) fn from_response(status: StatusCode, headers: &HeaderMap) -> Self {
        let reason = headers
            .get(PROXY_STATUS)
            .and_then(|value| value.to_str().ok())
            .map(|text| details(text).unwrap_or_else(|| text.to_owned()))
            .unwrap_or_else(|| "the peer gave no reason".into());
        Self { status, reason }
    }
}

/// The string after `details=`, unescaped.
fn details(text: &str) -> Option<String> {
    let (_, quoted) = text.split_once("details=\"")?;
    let mut details = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some(details),
            '\\' => details.push(characters.next()?),
            character => details.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through(refusal: &Refusal) -> Refusal {
        let response = refusal.to_response();
        Refusal::from_response(response.status(), response.headers())
    }

    proptest! {
        #[test]
        fn visible_reasons_arrive(reason in "[ -~]{0,200}") {
            let refusal = Refusal::new(StatusCode::FORBIDDEN, reason);
            prop_assert_eq!(through(&refusal), refusal);
        }

        #[test]
        fn no_reason_panics(reason in "\\PC*", header in "\\PC*") {
            through(&Refusal::new(StatusCode::FORBIDDEN, reason));
            let _ = details(&header);
        }
    }

    #[test]
    fn a_refusal_is_never_a_success() {
        let refusal = through(&Refusal::new(StatusCode::OK, "?"));
        assert_eq!(refusal.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
