//! Questions about AuthorizationPolicy and their answers, as the control
//! socket carries them.

use serde::{Deserialize, Serialize};

/// `meshctl authz check`: may this connection, or this request, reach a workload?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthzQuestion {
    /// The workload that is to be reached, `<name>[.<namespace>]`.
    pub workload: String,
    /// Its port.
    pub port: u16,
    /// Who asks: `<name>[.<namespace>]` of a workload, a SPIFFE identity, or
    /// the address of somebody without one.
    pub from: String,
    /// The client's address, where it is not that of `from`.
    pub from_ip: Option<std::net::IpAddr>,
    /// Whether it asks in the clear, so that nobody knows who it is.
    pub plaintext: bool,
    /// Method of an HTTP request; a question without it is about a connection.
    pub method: Option<String>,
    /// Path and query of the request.
    pub path: String,
    /// Host of the request.
    pub host: String,
    /// Header fields of the request, `name: value`.
    pub headers: Vec<String>,
}

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthzVerdict {
    /// It may pass.
    Allowed,
    /// It may not.
    Denied,
    /// It depends on what the HTTP requests say.
    DependsOnRequests,
}

/// The answer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthzAnswer {
    /// `<name>.<namespace>` of the workload.
    pub workload: String,
    /// Its port.
    pub port: u16,
    /// The identity that policies see; `None` for plaintext.
    pub source: Option<String>,
    /// The address that policies see.
    pub source_ip: std::net::IpAddr,
    /// What is decided.
    pub verdict: AuthzVerdict,
    /// What decided, in one sentence.
    pub reason: String,
    /// The policies that apply to the workload, in the order in which they are asked.
    pub policies: Vec<AuthzOpinion>,
}

/// What one policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthzOpinion {
    /// `<namespace>/<name>`.
    pub policy: String,
    /// `ALLOW`, `DENY`, `AUDIT` or `CUSTOM`.
    pub action: String,
    /// Whether it only reports.
    pub dry_run: bool,
    /// The rule that matches, from 0; `None` where none does.
    pub rule: Option<usize>,
    /// Whether that depends on what an HTTP request says.
    pub depends: bool,
}

/// One line of `meshctl authz report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthzReport {
    /// What happened.
    pub event: AuthzEvent,
    /// `<name>.<namespace>` of the workload.
    pub workload: String,
    /// Its port.
    pub port: u16,
    /// The client's identity, or its address where it has none.
    pub source: String,
    /// The policy, or the reason.
    pub by: String,
    /// How many connections or requests.
    pub count: u64,
    /// Seconds since the last of them.
    pub last_seen_s: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthzEvent {
    /// It was denied.
    Denied,
    /// It passed, and a dry run would have denied it.
    WouldBeDenied,
    /// An AUDIT policy matched.
    Audited,
}

/// A question as part of a query: its JSON, every byte in hexadecimal, so that
/// paths and header fields need no escapes.
pub fn encode(question: &AuthzQuestion) -> String {
    let json = serde_json::to_vec(question).unwrap_or_default();
    json.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The question in a query.
///
/// # Errors
/// What is wrong with it.
pub fn decode(text: &str) -> Result<AuthzQuestion, String> {
    let bytes: Option<Vec<u8>> = text
        .as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect();
    let bytes = bytes.ok_or("not hexadecimal")?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_arrives_as_it_was_asked() {
        let question = AuthzQuestion {
            workload: "a.b".to_owned(),
            path: "/x?y=%20&z".to_owned(),
            headers: vec!["x: \"ä\"".to_owned()],
            ..AuthzQuestion::default()
        };
        assert_eq!(decode(&encode(&question)).unwrap(), question);
        for wrong in ["", "7", "zz", "7b", "é"] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
    }
}
