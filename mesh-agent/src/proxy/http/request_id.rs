//! `x-request-id`: one name for a request in the logs of all that it passes.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives a request a random name, unless it has one already: whoever came first made it,
/// and applications hand it on.
pub(super) fn ensure(headers: &mut HeaderMap, random: &mut impl Rng) {
    if !headers.contains_key(REQUEST_ID) {
        let text = uuid(random.random());
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.insert(REQUEST_ID, value);
        }
    }
}

/// A random UUID (RFC 9562, version 4) as text.
fn uuid(random: u128) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    const VERSION: u128 = 0xf << 76;
    const VARIANT: u128 = 0b11 << 62;
    let value = (random & !VERSION & !VARIANT) | (4 << 76) | (0b10 << 62);
    let mut text = [b'-'; 36];
    let digits = (0..36).filter(|place| !matches!(place, 8 | 13 | 18 | 23));
    for (place, digit) in digits.zip((0..32).rev()) {
        text[place] = DIGITS[(value >> (4 * digit)) as usize & 0xf];
    }
    text
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_name_is_a_random_uuid() {
        let text = |random| String::from_utf8_lossy(&uuid(random)).into_owned();
        assert_eq!(text(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(text(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            text(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            "01234567-89ab-4def-8123-456789abcdef"
        );
    }

    #[test]
    fn a_name_that_is_there_is_kept() {
        let mut random = StdRng::seed_from_u64(1);
        let mut named = |headers: &mut HeaderMap| {
            ensure(headers, &mut random);
            headers[REQUEST_ID].clone()
        };
        let mut own = HeaderMap::new();
        own.insert(REQUEST_ID, HeaderValue::from_static("mine"));
        assert_eq!(named(&mut own), "mine");
        let (one, other) = (&mut HeaderMap::new(), &mut HeaderMap::new());
        assert_ne!(named(one), named(other));
    }
}
