//! One agent takes over from another, of the same node: it gets the open
//! listeners, so that no connection is refused, and tells the other to drain
//! when it is ready itself. Until then the other stays in charge.
//!
//! ```text
//! new agent                                old agent
//!   Hello {protocol, layout, bpffs}  ───▶   no more changes of its own
//!   Agent {pid}                      ◀───   + control socket, lock of the bpffs folder
//!   Workload {place, sockets}        ◀───   + its listeners; one message each
//!   Complete                         ◀───
//!   (starts, enrols, serves)
//!   Ready                            ───▶   accepts no more, drains, ends
//! ```
//!
//! While the other drains it is told of every configuration ([`Draining`]).

mod channel;
mod drained;
mod file;
mod handed;

pub(super) use drained::{DrainSocket, Draining};
pub(super) use file::TakeoverSocket;
pub(super) use handed::{Handed, ListenerRole, Sockets};

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mesh_common::LAYOUT_VERSION;
use serde::{Deserialize, Serialize};

use channel::{Channel, MAX_DESCRIPTORS};

use crate::netns::Place;

/// Version of this conversation.
const PROTOCOL: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
enum Message {
    Hello {
        protocol: u32,
        layout: u32,
        bpffs: PathBuf,
    },
    Refused {
        reason: String,
    },
    Agent {
        pid: u32,
    },
    Workload {
        place: Place,
        sockets: Vec<ListenerRole>,
    },
    Complete,
    Ready,
}

impl Message {
    fn unexpected<T>(self) -> anyhow::Result<T> {
        match self {
            Self::Refused { reason } => bail!("it refuses: {reason}"),
            other => bail!("it said what was not asked: {other:?}"),
        }
    }
}

/// What the agent before gives to the one that takes over.
pub(super) struct Estate {
    /// The listening control socket.
    pub(super) control: OwnedFd,
    /// The lock of the bpffs folder.
    pub(super) lock: OwnedFd,
    /// Listeners of its workloads.
    pub(super) handed: Handed,
    /// The agent before. It waits to be relieved.
    pub(super) predecessor: Predecessor,
}

impl Estate {
    /// Asks the agent that is heard at `path`, where there is one.
    ///
    /// # Errors
    /// Where there is one that does not hand over.
    pub(super) async fn claim(path: &Path, bpffs: &Path) -> anyhow::Result<Option<Self>> {
        let channel = match Channel::connect(path) {
            Ok(channel) => channel,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot connect to {}", path.display()));
            }
        };
        Self::receive(channel, bpffs)
            .await
            .map(Some)
            .with_context(|| {
                format!(
                    "cannot take over from the agent that is heard at {}, which stays in charge",
                    path.display()
                )
            })
    }

    async fn receive(channel: Channel, bpffs: &Path) -> anyhow::Result<Self> {
        let hello = Message::Hello {
            protocol: PROTOCOL,
            layout: LAYOUT_VERSION,
            bpffs: absolute(bpffs),
        };
        channel.send(&hello, &[]).await?;
        let (pid, [control, lock]) = match channel.receive().await? {
            (Message::Agent { pid }, descriptors) => {
                let descriptors = <[OwnedFd; 2]>::try_from(descriptors)
                    .map_err(|_| anyhow::anyhow!("its control socket or its lock is missing"))?;
                (pid, descriptors)
            }
            (other, _) => return other.unexpected(),
        };
        let mut handed = Handed::default();
        loop {
            match channel.receive().await? {
                (Message::Workload { place, sockets }, descriptors) => {
                    if sockets.len() != descriptors.len() {
                        bail!(
                            "{} sockets came with {} descriptors",
                            sockets.len(),
                            descriptors.len()
                        );
                    }
                    handed.add(place, sockets.into_iter().zip(descriptors));
                }
                (Message::Complete, _) => break,
                (other, _) => return other.unexpected(),
            }
        }
        Ok(Self {
            control,
            lock,
            handed,
            predecessor: Predecessor { pid, channel },
        })
    }
}

/// The agent before.
pub(super) struct Predecessor {
    pid: u32,
    channel: Channel,
}

impl Predecessor {
    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells it that its workloads are served: it drains, and ends.
    ///
    /// # Errors
    /// Where it is gone already.
    pub(super) async fn relieve(&self) -> io::Result<()> {
        self.channel.send(&Message::Ready, &[]).await
    }

    /// Returns when it has ended.
    pub(super) async fn gone(&self) {
        self.channel.closed().await;
    }
}

/// A workload and its sockets.
pub(super) type Offered = (Place, Vec<(ListenerRole, OwnedFd)>);

/// What an agent gives away; it keeps its own descriptors until the other is ready.
pub(super) struct Offer {
    pub(super) bpffs: PathBuf,
    pub(super) control: OwnedFd,
    pub(super) lock: OwnedFd,
    pub(super) workloads: Vec<Offered>,
}

/// A new agent that has asked.
pub(super) struct Successor {
    channel: Channel,
}

impl Successor {
    /// Gives it all, and returns when it is ready. The conversation's end is
    /// how it learns that this agent is gone: the value is to be kept until then.
    ///
    /// # Errors
    /// Where it does not become ready: this agent goes on.
    pub(super) async fn hand_over(self, offer: Offer) -> anyhow::Result<Self> {
        match self.channel.receive().await? {
            (
                Message::Hello {
                    protocol,
                    layout,
                    bpffs,
                },
                _,
            ) => {
                let reason = if protocol != PROTOCOL {
                    format!("it takes over by protocol {PROTOCOL}, not {protocol}")
                } else if layout != LAYOUT_VERSION {
                    format!(
                        "its maps have layout {LAYOUT_VERSION}, not {layout}: stop it, then \
                         `mesh-agent uninstall`, then start the other"
                    )
                } else if bpffs != absolute(&offer.bpffs) {
                    format!(
                        "it runs with --bpffs {}, not {}",
                        offer.bpffs.display(),
                        bpffs.display()
                    )
                } else {
                    String::new()
                };
                if !reason.is_empty() {
                    let refused = Message::Refused {
                        reason: reason.clone(),
                    };
                    self.channel.send(&refused, &[]).await?;
                    bail!(reason);
                }
            }
            (other, _) => return other.unexpected(),
        }
        let agent = Message::Agent {
            pid: std::process::id(),
        };
        self.channel
            .send(&agent, &[offer.control.as_fd(), offer.lock.as_fd()])
            .await?;
        for (place, sockets) in &offer.workloads {
            for sockets in sockets.chunks(MAX_DESCRIPTORS) {
                let message = Message::Workload {
                    place: place.clone(),
                    sockets: sockets.iter().map(|(role, _)| *role).collect(),
                };
                let descriptors: Vec<_> = sockets.iter().map(|(_, fd)| fd.as_fd()).collect();
                self.channel.send(&message, &descriptors).await?;
            }
        }
        self.channel.send(&Message::Complete, &[]).await?;
        match self.channel.receive().await {
            Ok((Message::Ready, _)) => Ok(self),
            Ok((other, _)) => other.unexpected(),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                bail!("it ended before it was ready")
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
