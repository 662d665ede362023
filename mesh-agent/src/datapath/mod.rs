//! The kernel side as the agent sees it: programs, maps and links. Only this
//! module knows aya.

mod bpf;
mod cgroup;
mod flows;
mod inbound;
mod kernel_log;
mod layout;
mod listening;
mod maps;
mod marks;
mod mounts;
mod programs;
mod tune;

pub use cgroup::{cgroup2_mount, own_cgroup};
pub use flows::FlowRecord;
pub use marks::SocketMarks;
pub use mounts::mount_point;

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use mesh_common::{Ip, ListenerKind, Nameserver, Workload, workload_flag};

use crate::netns::Namespace;
use crate::registry::Served;
use maps::Maps;

/// The object with all programs, built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("UNDERMESH_BPF_OBJECT"));

/// Why the kernel side cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A file or folder of bpffs or cgroup2.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A pinned map has another layout.
    #[error(
        "{} has another layout than this version of the agent can use ({what} {found}, not \
         {wanted}): stop the agent that made it, then `mesh-agent uninstall --bpffs` removes it",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// In what it differs.
        what: String,
        /// What was found.
        found: String,
        /// What was wanted.
        wanted: String,
    },
    /// The object or one of its programs was refused.
    #[error("the kernel refused {what}: {reason}")]
    Refused {
        /// Program or map.
        what: String,
        /// Why; the verifier's last words.
        reason: String,
    },
}

/// Listeners of the agent in a workload's namespace; ports are 0 where a family is off.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenerPorts {
    /// Connections of the workload over IPv4.
    pub outbound4: u16,
    /// Over IPv6.
    pub outbound6: u16,
    /// DNS over UDP and IPv4.
    pub dns4: u16,
    /// DNS over UDP and IPv6.
    pub dns6: u16,
}

/// What the kernel is told of a workload.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// Its addresses; the kernel knows the first of each family.
    pub addresses: Vec<IpAddr>,
    /// Listeners for it.
    pub ports: ListenerPorts,
    /// Its connections are left alone while no agent serves it, instead of refused.
    pub fails_open: bool,
}

impl Enrolled {
    fn value(&self) -> Workload {
        let first = |is_v4: bool| {
            let mut addresses = self.addresses.iter();
            let address = addresses.find(|address| address.is_ipv4() == is_v4);
            address.map_or(Ip::UNSPECIFIED, |address| Ip::from(*address))
        };
        Workload {
            ip4: first(true),
            ip6: first(false),
            outbound4_port: self.ports.outbound4,
            outbound6_port: self.ports.outbound6,
            dns4_port: self.ports.dns4,
            dns6_port: self.ports.dns6,
            flags: if self.fails_open {
                workload_flag::FAIL_OPEN
            } else {
                0
            },
            device: 0,
            tcp_tw_reuse_before: 0,
        }
    }
}

/// The loaded programs and their maps.
pub struct Datapath {
    folder: PathBuf,
    maps: Maps,
    marks: Arc<SocketMarks>,
    attached: Vec<String>,
}

impl Datapath {
    /// Loads the programs, reuses what an earlier agent has pinned below
    /// `folder`, and attaches to `cgroup`. Where the agent itself runs outside
    /// of that cgroup, the programs for its own sockets are attached there.
    ///
    /// # Errors
    /// What the kernel refuses, and why.
    pub fn load(folder: &Path, cgroup: &Path) -> Result<Self, DatapathError> {
        let file = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DatapathError::File {
                action,
                path,
                source,
            }
        };
        fs::create_dir_all(folder.join(programs::LINKS)).map_err(file("create", folder))?;
        layout::check(folder)?;
        let mut object = maps::open_object(folder, None)?;
        kernel_log::start(&mut object);
        let (maps, marks) = Maps::take(&mut object, folder)?;
        let attached = programs::attach(&mut object, folder, cgroup)?;
        Ok(Self {
            folder: folder.to_owned(),
            maps,
            marks: Arc::new(marks),
            attached,
        })
    }

    /// Removes every pin below `folder`: programs are detached, maps forgotten.
    ///
    /// # Errors
    /// Where a pin cannot be removed.
    pub fn uninstall(folder: &Path) -> io::Result<()> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Marks for the agent's own sockets.
    pub fn marks(&self) -> &Arc<SocketMarks> {
        &self.marks
    }

    /// What is attached, for people: `connect4 at /sys/fs/cgroup`.
    pub fn attached(&self) -> &[String] {
        &self.attached
    }

    /// Where programs and maps are pinned.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the addresses of a configuration known to the kernel. Those of the
    /// configuration before that are gone are removed last, so that no
    /// connection is missed.
    ///
    /// # Errors
    /// Where the map is full or refused.
    pub fn set_destinations(
        &self,
        networks: &[(IpNet, Served)],
        generation: u32,
    ) -> Result<(), DatapathError> {
        self.maps.set_destinations(networks, generation)
    }

    /// Hands the connections of a workload to the agent.
    ///
    /// # Errors
    /// Where a map or the namespace refuses.
    pub fn enrol(&self, namespace: &Namespace, enrolled: &Enrolled) -> Result<(), DatapathError> {
        let cookie = namespace.cookie();
        let before = self.maps.workload(cookie);
        let value = Workload {
            device: namespace.device_of(&enrolled.addresses).unwrap_or(0),
            // An agent before this one may have changed it.
            tcp_tw_reuse_before: match before.map_or(0, |before| before.tcp_tw_reuse_before) {
                0 => tune::enter(namespace),
                before => before,
            },
            ..enrolled.value()
        };
        self.maps.set_workload(cookie, value)?;
        self.sync_listening(namespace, true)?;
        inbound::attach(&self.folder, namespace)
    }

    /// Makes a listener of the agent the one for connections from outside.
    ///
    /// # Errors
    /// Where the map refuses.
    pub fn set_listener(
        &self,
        namespace: &Namespace,
        kind: ListenerKind,
        listener: &tokio::net::TcpListener,
    ) -> Result<(), DatapathError> {
        let is_v4 = listener.local_addr().is_ok_and(|address| address.is_ipv4());
        self.maps
            .set_listener(namespace.cookie(), kind, is_v4, listener)
    }

    /// Leaves the workload's connections alone from now on; open ones go on.
    pub fn remove(&self, namespace: &Namespace) {
        inbound::detach(&self.folder, namespace.cookie());
        if let Some(workload) = self.maps.workload(namespace.cookie()) {
            tune::leave(namespace, workload.tcp_tw_reuse_before);
        }
        self.maps.remove_workload(namespace.cookie());
    }

    /// Reads the namespace's list of listening ports again. Ports that nobody
    /// listens on any more become closed for callers from outside.
    ///
    /// # Errors
    /// Where the list cannot be read or the map refuses.
    pub fn sync_listening(&self, namespace: &Namespace, add: bool) -> Result<(), DatapathError> {
        let ports = namespace
            .run(listening::ports)
            .map_err(|source| DatapathError::File {
                action: "read",
                path: "/proc/thread-self/net/tcp".into(),
                source,
            })?;
        self.maps.sync_listening(namespace.cookie(), &ports, add)
    }

    /// The name server that a question to `alias` was for.
    pub fn nameserver(&self, netns_cookie: u64, alias: std::net::Ipv4Addr) -> Option<SocketAddr> {
        self.maps.nameserver(&Nameserver::new(
            netns_cookie,
            u32::from_ne_bytes(alias.octets()),
        ))
    }

    /// All flows that the kernel remembers.
    pub fn flows(&self) -> Vec<FlowRecord> {
        self.maps.flows()
    }
}
