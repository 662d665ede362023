//! Names of endpoints, resolved again and again: what they lead to changes
//! without a change of the configuration.

mod ttl;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A name that could not be resolved is tried again after this time, or after the
/// refresh rate where that is shorter.
const RETRY: Duration = Duration::from_secs(5);
/// How long a resolver may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer holds at least, whatever DNS says of it, or as long as the refresh
/// rate where that is shorter.
const LEAST: Duration = Duration::from_secs(1);

/// A name's new addresses, sorted; at least one.
pub type Answer = (Arc<str>, Vec<IpAddr>);

/// Asks for the addresses of a name.
pub trait Lookup: Send + Sync + 'static {
    /// Its addresses, in any order.
    fn addresses(&self, name: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;

    /// How long they hold, where somebody says so.
    fn time_to_live(&self, name: &str) -> impl Future<Output = Option<Duration>> + Send;
}

/// The system's resolver.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Lookup for System {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }

    async fn time_to_live(&self, name: &str) -> Option<Duration> {
        ttl::of(name).await
    }
}

/// Follows the addresses of names.
pub struct Names<L> {
    lookup: Arc<L>,
    refresh_rate: Duration,
    answers: mpsc::UnboundedSender<Answer>,
    followed: Mutex<HashMap<Arc<str>, DropGuard>>,
}

impl<L: Lookup> Names<L> {
    /// No name is followed yet. Changes come by the receiver.
    pub fn new(lookup: L, refresh_rate: Duration) -> (Self, mpsc::UnboundedReceiver<Answer>) {
        let (answers, receiver) = mpsc::unbounded_channel();
        let names = Self {
            lookup: Arc::new(lookup),
            refresh_rate,
            answers,
            followed: Mutex::default(),
        };
        (names, receiver)
    }

    /// Follows these names from now on, and no others.
    pub fn follow<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) {
        let wanted: BTreeSet<&str> = wanted.into_iter().collect();
        let mut followed = self.followed.lock();
        followed.retain(|name, _| wanted.contains(&**name));
        for name in wanted {
            if followed.contains_key(name) {
                continue;
            }
            let stop = CancellationToken::new();
            let name: Arc<str> = name.into();
            followed.insert(name.clone(), stop.clone().drop_guard());
            let (lookup, answers) = (self.lookup.clone(), self.answers.clone());
            let refresh_rate = self.refresh_rate;
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = ask_again(&*lookup, name, refresh_rate, &answers) => {}
                }
            });
        }
    }
}

/// Asks for ever, and tells of changes. What was good last stays where nothing is answered.
async fn ask_again(
    lookup: &impl Lookup,
    name: Arc<str>,
    refresh_rate: Duration,
    answers: &mpsc::UnboundedSender<Answer>,
) {
    let mut last = Vec::new();
    loop {
        let asked = tokio::time::timeout(TIMEOUT, lookup.addresses(&name)).await;
        let answered = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let pause = match answered {
            Ok(mut addresses) if !addresses.is_empty() => {
                addresses.sort_unstable();
                addresses.dedup();
                if addresses != last {
                    tracing::debug!(%name, ?addresses, "endpoints by DNS");
                    last.clone_from(&addresses);
                    if answers.send((name.clone(), addresses)).is_err() {
                        return;
                    }
                }
                // Told before: whoever waits for an answer does not wait for how long it holds.
                pause(lookup.time_to_live(&name).await, refresh_rate)
            }
            Ok(_) => RETRY.min(refresh_rate),
            Err(error) => {
                tracing::warn!(%name, %error, "cannot be resolved; what was known stays in force");
                RETRY.min(refresh_rate)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Until a good answer is asked for again.
fn pause(holds: Option<Duration>, refresh_rate: Duration) -> Duration {
    holds.map_or(refresh_rate, |time| time.max(LEAST).min(refresh_rate))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const RATE: Duration = Duration::from_millis(5);

    /// Answers in turn; then the last for ever.
    struct Script(Mutex<VecDeque<Option<Vec<IpAddr>>>>, Option<Duration>);

    impl Lookup for Script {
        async fn addresses(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
            let mut script = self.0.lock();
            let next = match script.len() {
                0 | 1 => script.front().cloned().flatten(),
                _ => script.pop_front().flatten(),
            };
            next.ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        async fn time_to_live(&self, _name: &str) -> Option<Duration> {
            self.1
        }
    }

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test]
    async fn changes_are_told_and_failures_change_nothing() {
        let script = [
            Some(vec![ip(2), ip(1)]),
            // The same in another order.
            Some(vec![ip(1), ip(2)]),
            None,
            Some(Vec::new()),
            Some(vec![ip(3)]),
        ];
        let lookup = Script(Mutex::new(script.into()), None);
        let (names, mut answers) = Names::new(lookup, RATE);
        names.follow(["a.example.com"]);
        let first = answers.recv().await.expect("an answer");
        assert_eq!(first, ("a.example.com".into(), vec![ip(1), ip(2)]));
        let second = answers.recv().await.expect("an answer");
        assert_eq!(second, ("a.example.com".into(), vec![ip(3)]));
    }

    #[test]
    fn an_answer_is_asked_for_again_when_it_holds_no_longer() {
        let minute = Duration::from_secs(60);
        for (holds, expected) in [(Some(20), 20), (Some(0), 1), (Some(3600), 60), (None, 60)] {
            let pause = pause(holds.map(Duration::from_secs), minute);
            assert_eq!(pause.as_secs(), expected, "{holds:?}");
        }
        // Whoever wants it faster gets it faster.
        let rate = Duration::from_millis(500);
        assert_eq!(pause(Some(Duration::ZERO), rate), rate);
    }

    #[tokio::test]
    async fn names_that_nobody_wants_any_more_are_not_followed() {
        let lookup = Script(Mutex::new([Some(vec![ip(1)])].into()), None);
        let (names, mut answers) = Names::new(lookup, RATE);
        names.follow(["a", "b"]);
        let mut told = [answers.recv().await, answers.recv().await].map(|one| one.expect("told").0);
        told.sort();
        assert_eq!(told, ["a".into(), "b".into()]);
        names.follow(["b"]);
        assert_eq!(names.followed.lock().len(), 1);
        names.follow(["a", "b"]);
        assert_eq!(&*answers.recv().await.expect("told").0, "a");
    }
}
