//! The small values of which specifications consist. Each is checked while it
//! is read, so that the message names the field that holds it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// Longest DNS name (RFC 1035, section 2.3.4), in bytes.
const MAX_NAME: usize = 253;
/// Longest part of a DNS name between two dots, in bytes.
const MAX_LABEL: usize = 63;

/// Whether `text` is one part of a DNS name as Kubernetes wants it: lower-case
/// letters, digits and `-`, neither starting nor ending with `-`.
pub fn is_dns_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= MAX_LABEL
        && bytes.first().is_some_and(|&c| inner(c))
        && bytes.last().is_some_and(|&c| inner(c))
        && bytes.iter().all(|&c| inner(c) || c == b'-')
}

/// Whether `text` consists of DNS labels with dots between them (the form of
/// Kubernetes' object names).
pub fn is_dns_name(text: &str) -> bool {
    text.len() <= MAX_NAME && text.split('.').all(is_dns_label)
}

/// A TCP or UDP port, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u16);

impl Port {
    fn new<E: Error>(number: i64) -> Result<Self, E> {
        match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(Self(port)),
            _ => Err(E::custom(format_args!(
                "{number} is not a port, which is a number from 1 to 65535"
            ))),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i64::deserialize(deserializer).and_then(Self::new)
    }
}

/// `targetPort`: a number, or the name of a port of the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The port itself.
    Number(u16),
    /// A key of `WorkloadEntry.ports`.
    Name(String),
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrName;
        impl Visitor<'_> for NumberOrName {
            type Value = TargetPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the number or the name of a port")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<TargetPort, E> {
                Port::new(number).map(|port| TargetPort::Number(port.0))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<TargetPort, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<TargetPort, E> {
                if name.bytes().any(|c| c.is_ascii_alphabetic()) && is_dns_label(name) {
                    Ok(TargetPort::Name(name.to_owned()))
                } else {
                    Err(E::invalid_value(
                        Unexpected::Str(name),
                        &"the name of a port, or its number without quotes",
                    ))
                }
            }
        }
        deserializer.deserialize_any(NumberOrName)
    }
}

/// An IP address or a range of addresses in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Network(pub IpNet);

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(address.into()));
        }
        text.parse::<IpNet>()
            .map(|net| Self(net.trunc()))
            .map_err(|_| {
                format!("{text:?} is neither an IP address nor a range such as 10.0.0.0/8")
            })
    }
}

impl Network {
    /// The address, where this is a single one.
    pub fn single(self) -> Option<IpAddr> {
        (self.0.prefix_len() == self.0.max_prefix_len()).then(|| self.0.addr())
    }
}

/// A host name in lower case, without a dot at the end; may start with `*.`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct HostName(String);

impl TryFrom<String> for HostName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // Underscores are no DNS letters, but Istio lets them pass.
        let label = |part: &str| {
            part.len() <= MAX_LABEL
                && !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
        };
        let name = text.strip_suffix('.').unwrap_or(&text);
        if name == "*" {
            return Err("\"*\" alone would be every host; write at least *.domain".to_owned());
        }
        if name.len() > MAX_NAME
            || !name
                .strip_prefix("*.")
                .unwrap_or(name)
                .split('.')
                .all(label)
        {
            return Err(format!(
                "{text:?} is not a host name, such as a.example.com or *.example.com"
            ));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it starts with `*.`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn ports_have_bounds() {
        assert_eq!(read::<Port>(json!(1)), Ok(Port(1)));
        assert_eq!(read::<Port>(json!(65535)), Ok(Port(65535)));
        for wrong in [json!(0), json!(65536), json!(-1), json!("80"), json!(80.5)] {
            assert!(read::<Port>(wrong.clone()).is_err(), "{wrong}");
        }
        assert_eq!(
            read::<Port>(json!(70000)).unwrap_err(),
            "70000 is not a port, which is a number from 1 to 65535"
        );
    }

    #[test]
    fn a_target_port_is_a_number_or_a_name() {
        assert_eq!(read(json!(8080)), Ok(TargetPort::Number(8080)));
        assert_eq!(read(json!("web")), Ok(TargetPort::Name("web".to_owned())));
        for wrong in [json!("8080"), json!("Web"), json!(""), json!(0), json!([])] {
            assert!(read::<TargetPort>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_network_is_an_address_or_a_range() {
        let network = |text: &str| read::<Network>(json!(text));
        assert_eq!(
            network("10.0.0.1").unwrap().single(),
            Some([10, 0, 0, 1].into())
        );
        assert_eq!(network("10.1.2.3/8").unwrap().0.to_string(), "10.0.0.0/8");
        assert_eq!(network("fd00::/64").unwrap().single(), None);
        for wrong in ["", "10.0.0", "10.0.0.0/33", "example.com"] {
            assert!(network(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_names_are_checked_and_normalised() {
        let host = |text: &str| read::<HostName>(json!(text));
        assert_eq!(
            host("API.Example.com.").unwrap().as_str(),
            "api.example.com"
        );
        assert!(host("*.example.com").unwrap().is_wildcard());
        for wrong in [
            "", ".", "*", "a..b", "*a.b", "a.*.b", "a b", "-a.b", "http://a",
        ] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dns_labels() {
        assert!(is_dns_label("a-1"));
        for wrong in ["", "-a", "a-", "A", "a.b", "a_b"] {
            assert!(!is_dns_label(wrong), "{wrong}");
        }
        assert!(is_dns_name("a.b-c.1"));
        assert!(!is_dns_name("a..b"));
    }
}
