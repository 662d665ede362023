//! Envoy's response flags: in two or three letters, what happened to a request
//! beside its answer.

use std::fmt;

/// One flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flag {
    /// No endpoint is in service.
    NoHealthyUpstream,
    /// The answer did not come in time.
    UpstreamRequestTimeout,
    /// The endpoint reset the request's stream.
    UpstreamRemoteReset,
    /// No connection to an endpoint.
    UpstreamConnectionFailure,
    /// The endpoint ended the connection before its answer was whole.
    UpstreamConnectionTermination,
    /// A bound of the DestinationRule or of the route is reached.
    UpstreamOverflow,
    /// No rule matches.
    NoRouteFound,
    /// A delay was injected.
    DelayInjected,
    /// An answer was injected.
    FaultInjected,
    /// The client went before the answer was whole.
    DownstreamConnectionTermination,
    /// All retries are used up.
    UpstreamRetryLimitExceeded,
    /// The client's request is none.
    DownstreamProtocolError,
    /// The endpoint's answer is none.
    UpstreamProtocolError,
    /// The connection has lived as long as it may.
    DurationTimeout,
    /// The rule's destination does not exist.
    NoClusterFound,
    /// The node held too much that nobody took.
    Overload,
}

const ALL: [Flag; 16] = [
    Flag::NoHealthyUpstream,
    Flag::UpstreamRequestTimeout,
    Flag::UpstreamRemoteReset,
    Flag::UpstreamConnectionFailure,
    Flag::UpstreamConnectionTermination,
    Flag::UpstreamOverflow,
    Flag::NoRouteFound,
    Flag::DelayInjected,
    Flag::FaultInjected,
    Flag::DownstreamConnectionTermination,
    Flag::UpstreamRetryLimitExceeded,
    Flag::DownstreamProtocolError,
    Flag::UpstreamProtocolError,
    Flag::DurationTimeout,
    Flag::NoClusterFound,
    Flag::Overload,
];

impl Flag {
    /// As it is written.
    pub fn letters(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamRemoteReset => "UR",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamOverflow => "UO",
            Self::NoRouteFound => "NR",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::DownstreamConnectionTermination => "DC",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::DownstreamProtocolError => "DPE",
            Self::UpstreamProtocolError => "UPE",
            Self::DurationTimeout => "DT",
            Self::NoClusterFound => "NC",
            Self::Overload => "OM",
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.letters())
    }
}

/// What happened, in the order in which it did; written with commas between, `-` for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// A byte for each, from the lowest: its place among all flags, from 1.
    bytes: u64,
}

impl Flags {
    /// Adds one, unless it is there. More than eight do not happen to one request.
    pub fn add(&mut self, flag: Flag) {
        let count = self.iter().count() as u32;
        if count < u64::BITS / 8 && !self.has(flag) {
            self.bytes |= (flag as u64 + 1) << (8 * count);
        }
    }

    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        others.iter().for_each(|flag| self.add(flag));
    }

    /// Whether it is among them.
    pub fn has(self, flag: Flag) -> bool {
        self.iter().any(|other| other == flag)
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Flag> {
        let places = self.bytes.to_le_bytes().into_iter();
        places.map_while(|place| ALL.get(usize::from(place).checked_sub(1)?).copied())
    }
}

impl From<Flag> for Flags {
    fn from(flag: Flag) -> Self {
        let mut flags = Self::default();
        flags.add(flag);
        flags
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.iter();
        f.write_str(all.next().map_or("-", Flag::letters))?;
        all.try_for_each(|flag| write!(f, ",{flag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_in_the_order_of_what_happened() {
        let mut flags = Flags::default();
        assert_eq!(flags.to_string(), "-");
        for flag in [
            Flag::UpstreamRetryLimitExceeded,
            Flag::DelayInjected,
            Flag::UpstreamConnectionFailure,
            Flag::DelayInjected,
        ] {
            flags.add(flag);
        }
        assert_eq!(flags.to_string(), "URX,DI,UF");
    }

    #[test]
    fn every_flag_has_letters_and_a_place_of_its_own() {
        for (index, flag) in ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, index);
            assert_eq!(Flags::from(flag).to_string(), flag.letters());
        }
    }
}
