//! The agent's decisions, as the kernel caches them. The kernel interprets no
//! policy: it looks up what the agent has decided for a workload, a destination
//! and a port. What is not there goes to the agent.

use crate::{Ip, SocketIp, assert_layout};

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum VerdictKind {
    /// The socket is left alone.
    Pass = 0,
    /// To the agent.
    Proxy = 1,
    /// To an endpoint on this node, with no agent on the way.
    Direct = 2,
    /// Refused.
    Deny = 3,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Algorithm {
    /// Any of them.
    Random = 0,
    /// One after the other.
    RoundRobin = 1,
    /// Of two at random, the one with fewer open connections.
    LeastRequest = 2,
}

/// Key of the map `verdicts`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VerdictKey {
    /// Cookie of the workload's network namespace.
    pub netns_cookie: u64,
    /// Address that the application asks for.
    pub destination: Ip,
    /// Port, host order.
    pub port: u16,
    /// Explicit padding, zero.
    pub reserved: [u16; 3],
}

assert_layout!(VerdictKey, size = 32, align = 8);

/// Value of the map `verdicts`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Generation that it was decided in; of any other it does not count.
    pub generation: u64,
    /// A [`VerdictKind`].
    pub kind: u32,
    /// Direct: which set of `endpoints`.
    pub endpoint_set: u32,
    /// Direct: how many slots the set has.
    pub endpoint_count: u32,
    /// Direct: an [`Algorithm`].
    pub algorithm: u32,
    /// Direct: connections so far, for taking turns. Written by the kernel.
    pub turn: u64,
    /// Direct: how many there had been when one was last seen to last. Written by the kernel.
    pub lasting: u64,
    /// Direct: when, ns since boot, all that were [tried](try_joining) will be paid for. Written by the kernel.
    pub tried: u64,
}

assert_layout!(Verdict, size = 48, align = 8);

/// So many connections without one that lasts, and the next is taken for a short one, too.
const SHORT_IN_A_ROW: u64 = 4_096;
/// One of those taken for short takes part in the short-circuit all the same, each time so many ns have passed.
const TRIED_EVERY: u64 = 10_000_000;
/// So many at once, where none had to be for long: whoever opens connections to keep them opens them together.
const TRIED_AT_ONCE: u64 = 512;

/// Whether the connection after the first `turn` ones takes part in the short-circuit. To join it
/// costs as much as a handful of messages through TCP; so who only ever opens short connections
/// is better off without. `lasting` is how many there had been when one last turned out to last.
#[inline(always)]
pub const fn is_worth_joining(turn: u64, lasting: u64) -> bool {
    turn.wrapping_sub(lasting) < SHORT_IN_A_ROW
}

/// What becomes of [`Verdict::tried`] where one that is not worth joining joins nevertheless, to see whether it lasts.
#[inline(always)]
pub const fn try_joining(tried: u64, now: u64) -> Option<u64> {
    if tried >= now + TRIED_AT_ONCE * TRIED_EVERY {
        return None;
    }
    Some(if tried > now { tried } else { now } + TRIED_EVERY)
}

/// Key of the map `endpoints`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// Set of endpoints.
    pub set: u32,
    /// Slot, from 0. An endpoint has as many slots as its weight says.
    pub slot: u32,
}

assert_layout!(EndpointKey, size = 8, align = 4);

/// Value of the map `endpoints`: a workload of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its address and port.
    pub address: SocketIp,
    /// Its identity, as in the map `identities`.
    pub identity: u32,
    /// Bits of [`direction`](crate::direction): which ends may use the short-circuit.
    pub splice: u32,
    /// Explicit padding, zero.
    pub reserved: u32,
}

assert_layout!(Endpoint, size = 40, align = 8);

/// Which of `count` slots, given two random numbers, the number of connections
/// before this one, and the number of open connections of a slot's endpoint.
#[inline(always)]
pub fn choose(
    algorithm: u32,
    count: u32,
    random: u32,
    turn: u64,
    load: impl Fn(u32) -> u64,
) -> u32 {
    if count <= 1 {
        return 0;
    }
    if algorithm == Algorithm::RoundRobin as u32 {
        return (turn % count as u64) as u32;
    }
    let first = (random & 0xffff) % count;
    if algorithm != Algorithm::LeastRequest as u32 {
        return random % count;
    }
    // The second is another one: one of the `count - 1` that follow.
    let second = (first + 1 + (random >> 16) % (count - 1)) % count;
    if load(second) < load(first) {
        second
    } else {
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM: u32 = Algorithm::Random as u32;
    const ROUND_ROBIN: u32 = Algorithm::RoundRobin as u32;
    const LEAST_REQUEST: u32 = Algorithm::LeastRequest as u32;

    /// Numbers without a pattern (xorshift).
    fn numbers() -> impl Iterator<Item = u32> {
        let mut state = 0x9e37_79b9_u32;
        core::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        })
    }

    #[test]
    fn after_many_short_connections_none_takes_part_until_one_lasts() {
        let joins = |connections: core::ops::Range<u64>, lasting| {
            connections
                .filter(|turn| is_worth_joining(*turn, lasting))
                .count()
        };
        assert_eq!(joins(0..4_096, 0), 4_096);
        assert_eq!(joins(4_096..8_192, 0), 0);
        // The 5,000th has lasted.
        assert_eq!(joins(5_000..9_096, 5_000), 4_096);
        assert_eq!(joins(9_096..10_696, 5_000), 0);
    }

    #[test]
    fn of_short_connections_many_are_tried_at_once_and_then_a_hundred_a_second() {
        let mut tried = 0;
        let mut tried_of = |count: u32, now: u64| {
            (0..count)
                .filter(|_| try_joining(tried, now).map(|paid| tried = paid).is_some())
                .count()
        };
        const SECOND: u64 = 1_000_000_000;
        let begin = 100 * SECOND;
        assert_eq!(tried_of(10_000, begin), 512);
        assert_eq!(tried_of(10_000, begin), 0);
        assert_eq!(tried_of(10_000, begin + SECOND), 100);
        // None is left for later beyond what may be tried at once.
        assert_eq!(tried_of(10_000, begin + 100 * SECOND), 512);
    }

    #[test]
    fn one_endpoint_is_always_chosen() {
        for algorithm in [RANDOM, ROUND_ROBIN, LEAST_REQUEST] {
            assert_eq!(choose(algorithm, 1, u32::MAX, 9, |_| 3), 0);
        }
    }

    #[test]
    fn round_robin_takes_turns() {
        let turns = [0, 1, 2, 3, 4].map(|turn| choose(ROUND_ROBIN, 3, 77, turn, |_| 0));
        assert_eq!(turns, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn random_and_least_request_spread_over_all() {
        for algorithm in [RANDOM, LEAST_REQUEST] {
            let mut hits = [0; 5];
            for random in numbers().take(50_000) {
                hits[choose(algorithm, 5, random, 0, |_| 0) as usize] += 1;
            }
            assert!(
                hits.iter().all(|&n| (9_000..11_000).contains(&n)),
                "{hits:?}"
            );
        }
    }

    #[test]
    fn least_request_takes_the_less_loaded_of_two_different_ones() {
        for random in numbers().take(1_000) {
            // With two endpoints both are always compared.
            assert_eq!(
                choose(LEAST_REQUEST, 2, random, 0, |slot| [5, 1][slot as usize]),
                1
            );
            // The busiest of three is never chosen.
            assert_ne!(
                choose(LEAST_REQUEST, 3, random, 0, |slot| [1, 9, 1][slot as usize]),
                1
            );
        }
    }
}
