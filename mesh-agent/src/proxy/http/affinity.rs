//! Consistent hashing: the hash of a request, and the cookie that makes the
//! next requests of a client have one.

use std::net::IpAddr;

use http::header::{COOKIE, HeaderMap, HeaderValue};
use rand::Rng;

use crate::balance::hash_of;
use crate::route::{Balancer, Cookie, HashKey};

/// What a request says about where it is to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Affinity {
    /// Hash of the property; `None` where nothing is hashed or the request lacks the property.
    pub(super) hash: Option<u64>,
    /// `Set-Cookie` of the answer.
    pub(super) set_cookie: Option<HeaderValue>,
}

/// The affinity of a request as it is sent.
pub(super) fn of(
    balancer: &Balancer,
    headers: &HeaderMap,
    query: &str,
    client: IpAddr,
    random: &mut impl Rng,
) -> Affinity {
    let Balancer::Hash(policy) = balancer else {
        return Affinity::default();
    };
    let hashed = |value: Option<&[u8]>| Affinity {
        hash: value.map(hash_of),
        set_cookie: None,
    };
    match &policy.key {
        HashKey::Header(name) => hashed(headers.get(name).map(HeaderValue::as_bytes)),
        HashKey::Query(name) => hashed(parameter(query, name).map(str::as_bytes)),
        HashKey::SourceIp => hashed(Some(client.to_string().as_bytes())),
        HashKey::Cookie(cookie) => match (value_of(headers, &cookie.name), cookie.ttl) {
            (None, Some(_)) => make(cookie, random),
            (value, _) => hashed(value.map(str::as_bytes)),
        },
    }
}

fn make(cookie: &Cookie, random: &mut impl Rng) -> Affinity {
    let value = format!("{:016x}", random.random::<u64>());
    let mut text = format!("{}=\"{value}\"", cookie.name);
    if let Some(ttl) = cookie.ttl.filter(|ttl| !ttl.is_zero()) {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if let Some(path) = cookie.path.as_deref().filter(|path| !path.is_empty()) {
        text.push_str(&format!("; Path={path}"));
    }
    for (name, value) in &cookie.attributes {
        text.push_str(&format!("; {name}"));
        if !value.is_empty() {
            text.push_str(&format!("={value}"));
        }
    }
    text.push_str("; HttpOnly");
    Affinity {
        hash: Some(hash_of(value.as_bytes())),
        set_cookie: HeaderValue::from_str(&text).ok(),
    }
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// The value of a cookie (RFC 6265, section 4.2), without its quotes.
fn value_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::route::{HashPolicy, HashTable};

    fn affinity(key: HashKey, headers: &[(&'static str, &str)], query: &str) -> Affinity {
        let balancer = Balancer::Hash(HashPolicy {
            key,
            table: HashTable::Ring(1024),
        });
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        let client = IpAddr::from([10, 0, 0, 1]);
        let mut random = StdRng::seed_from_u64(1);
        of(&balancer, &map, query, client, &mut random)
    }

    fn hash(text: &str) -> Affinity {
        Affinity {
            hash: Some(hash_of(text.as_bytes())),
            set_cookie: None,
        }
    }

    #[test]
    fn the_property_is_hashed() {
        let header = || HashKey::Header("x-user".parse().expect("a name"));
        assert_eq!(affinity(header(), &[("x-user", "ann")], ""), hash("ann"));
        assert_eq!(affinity(header(), &[], ""), Affinity::default());
        let query = || HashKey::Query("user".into());
        assert_eq!(affinity(query(), &[], "a=b&user=ann"), hash("ann"));
        assert_eq!(affinity(query(), &[], "a=b"), Affinity::default());
        let one = affinity(HashKey::SourceIp, &[], "");
        assert_eq!(one, affinity(HashKey::SourceIp, &[("x-user", "bob")], ""));
        assert!(one.hash.is_some());
    }

    #[test]
    fn a_cookie_is_made_where_there_is_none() {
        let cookie = |ttl: Option<u64>| {
            HashKey::Cookie(Cookie {
                name: "session".into(),
                path: Some("/".into()),
                ttl: ttl.map(Duration::from_secs),
                attributes: vec![
                    ("SameSite".into(), "Strict".into()),
                    ("Secure".into(), String::new()),
                ],
            })
        };
        assert_eq!(affinity(cookie(None), &[], ""), Affinity::default());
        let sent = [("cookie", "a=b; session=\"x1\"; c=d")];
        assert_eq!(affinity(cookie(Some(60)), &sent, ""), hash("x1"));
        let made = affinity(cookie(Some(60)), &[], "");
        let text = made.set_cookie.expect("a cookie");
        let text = text.to_str().expect("text");
        let (value, attributes) = text.split_once("\"; ").expect("a value");
        assert_eq!(
            attributes,
            "Max-Age=60; Path=/; SameSite=Strict; Secure; HttpOnly"
        );
        // The next request, which brings the cookie, goes to the same place.
        let back = value.replace('"', "");
        let sent = [("cookie", back.as_str())];
        assert_eq!(affinity(cookie(Some(60)), &sent, "").hash, made.hash);
        let session = affinity(cookie(Some(0)), &[], "").set_cookie;
        assert!(
            !session
                .expect("a cookie")
                .to_str()
                .expect("text")
                .contains("Max-Age")
        );
    }
}
