//! How many probes have succeeded or failed in a row, and what follows.

use crate::resource::workload_group::ProbeSpec;

/// What is known of a workload.
pub(super) struct Tally {
    successes: u32,
    failures: u32,
    needed: u32,
    allowed: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Well,
    Unwell,
}

/// A change of what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Well,
    /// And why.
    Unwell(String),
}

impl Tally {
    /// Of a workload of which nothing is known, or which is taken for well.
    pub(super) fn new(probe: &ProbeSpec, is_trusted: bool) -> Self {
        Self {
            successes: 0,
            failures: 0,
            needed: probe.successes(),
            allowed: probe.failures(),
            state: if is_trusted {
                State::Well
            } else {
                State::Unknown
            },
        }
    }

    /// Counts a probe.
    pub(super) fn take(&mut self, result: Result<(), String>) -> Option<Change> {
        match result {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                let is_news = self.state != State::Well && self.successes >= self.needed;
                is_news.then(|| {
                    self.state = State::Well;
                    Change::Well
                })
            }
            Err(reason) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                let is_news = self.state != State::Unwell && self.failures >= self.allowed;
                is_news.then(|| {
                    self.state = State::Unwell;
                    Change::Unwell(reason)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` for a success, `-` for a failure; `W` and `U` where that changes what is known.
    fn changes(results: &str, is_trusted: bool) -> String {
        let probe = ProbeSpec {
            success_threshold: 2,
            failure_threshold: 3,
            ..ProbeSpec::default()
        };
        let mut tally = Tally::new(&probe, is_trusted);
        let each = results.chars().map(|result| {
            match tally.take(if result == '+' {
                Ok(())
            } else {
                Err("no".to_owned())
            }) {
                None => '.',
                Some(Change::Well) => 'W',
                Some(Change::Unwell(_)) => 'U',
            }
        });
        each.collect()
    }

    #[test]
    fn only_so_many_in_a_row_count() {
        for (results, is_trusted, expected) in [
            ("++++", false, ".W.."),
            ("-+-+-+", false, "......"),
            ("---", false, "..U"),
            ("++--+---++", false, ".W.....U.W"),
            ("+++", true, "..."),
            ("--+---", true, ".....U"),
        ] {
            assert_eq!(changes(results, is_trusted), expected, "{results}");
        }
    }
}
