//! The maps, pinned by name below the agent's bpffs folder.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapInfo, SkStorage, SockHash};
use aya::{Btf, Ebpf, EbpfLoader, Pod};
use ipnet::IpNet;
use mesh_common::{
    Destination, Flow, Ip, ListenerKey, ListenerKind, ListeningPort, Nameserver, Origin, Socket,
    SocketIp, Tuple, Workload, WorkloadKey,
};
use parking_lot::Mutex;

use super::flows::{FlowRecord, monotonic_ns};
use super::marks::SocketMarks;
use super::{DatapathError, ListenerPorts, OBJECT};

/// Name, size of key and of value in bytes. A pin of another size is another layout.
const LAYOUT: [(&str, usize, usize); 9] = [
    ("workloads", size_of::<WorkloadKey>(), size_of::<Workload>()),
    (
        "destinations",
        4 + size_of::<Ip>(),
        size_of::<Destination>(),
    ),
    ("agent_sockets", size_of::<i32>(), size_of::<Socket>()),
    ("origins", size_of::<i32>(), size_of::<Origin>()),
    ("connecting", size_of::<Tuple>(), size_of::<Origin>()),
    ("listeners", size_of::<ListenerKey>(), size_of::<u32>()),
    ("listening", size_of::<ListeningPort>(), size_of::<u64>()),
    (
        "nameservers",
        size_of::<Nameserver>(),
        size_of::<SocketIp>(),
    ),
    ("flows", size_of::<u64>(), size_of::<Flow>()),
];

/// Refuses pins that another version of the agent has left.
pub(super) fn check_layout(folder: &Path) -> Result<(), DatapathError> {
    for (name, key, value) in LAYOUT {
        let path = folder.join(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|error| refused(name, &error))?;
        let found = format!("{}/{} bytes", info.key_size(), info.value_size());
        let wanted = format!("{key}/{value} bytes");
        if found != wanted {
            return Err(DatapathError::Layout {
                path,
                found,
                wanted,
            });
        }
    }
    Ok(())
}

/// Reads the object with its maps pinned, or taken from their pins.
pub(super) fn open_object(folder: &Path, netns_cookie: Option<u64>) -> Result<Ebpf, DatapathError> {
    let btf = Btf::from_sys_fs().ok();
    let mut loader = EbpfLoader::new();
    loader.btf(btf.as_ref());
    for (name, _, _) in LAYOUT {
        loader.map_pin_path(name, folder.join(name));
    }
    if let Some(cookie) = &netns_cookie {
        loader.override_global("NETNS_COOKIE", cookie, true);
    }
    loader
        .load(OBJECT)
        .map_err(|error| super::programs::refused("maps", &error))
}

fn refused(name: &str, error: &dyn std::error::Error) -> DatapathError {
    let DatapathError::Refused { reason, .. } = super::programs::refused(name, error) else {
        unreachable!()
    };
    DatapathError::Refused {
        what: format!("map {name}"),
        reason,
    }
}

/// Maps that the agent reads and writes. aya asks for exclusive access to
/// write; all of these change rarely (a configuration, an enrolment).
pub(super) struct Maps {
    workloads: Mutex<HashMap<MapData, WorkloadKey, Workload>>,
    destinations: Mutex<LpmTrie<MapData, Ip, Destination>>,
    listeners: Mutex<SockHash<MapData, ListenerKey>>,
    listening: Mutex<HashMap<MapData, ListeningPort, u64>>,
    nameservers: HashMap<MapData, Nameserver, SocketIp>,
    flows: HashMap<MapData, u64, Flow>,
}

impl Maps {
    pub(super) fn take(object: &mut Ebpf) -> Result<(Self, SocketMarks), DatapathError> {
        fn take<T: TryFrom<Map, Error: std::error::Error>>(
            object: &mut Ebpf,
            name: &str,
        ) -> Result<T, DatapathError> {
            let map = object
                .take_map(name)
                .ok_or_else(|| DatapathError::Refused {
                    what: format!("map {name}"),
                    reason: "it is not in the object".to_owned(),
                })?;
            T::try_from(map).map_err(|error| refused(name, &error))
        }
        let agent_sockets: SkStorage<_, Socket> = take(object, "agent_sockets")?;
        let marks = SocketMarks::new(agent_sockets, take(object, "origins")?);
        let maps = Self {
            workloads: Mutex::new(take(object, "workloads")?),
            destinations: Mutex::new(take(object, "destinations")?),
            listeners: Mutex::new(take(object, "listeners")?),
            listening: Mutex::new(take(object, "listening")?),
            nameservers: take(object, "nameservers")?,
            flows: take(object, "flows")?,
        };
        Ok((maps, marks))
    }

    pub(super) fn set_destinations(
        &self,
        networks: &[IpNet],
        generation: u32,
    ) -> Result<(), DatapathError> {
        let failed = |error| refused("destinations", &error);
        let mut destinations = self.destinations.lock();
        let wanted: HashSet<(u32, Ip)> = networks.iter().map(prefix).collect();
        for (length, ip) in &wanted {
            destinations
                .insert(&Key::new(*length, *ip), Destination { generation }, 0)
                .map_err(failed)?;
        }
        let old: Vec<Key<Ip>> = destinations.keys().filter_map(Result::ok).collect();
        for key in old {
            if !wanted.contains(&(key.prefix_len(), key.data())) {
                destinations.remove(&key).map_err(failed)?;
            }
        }
        Ok(())
    }

    pub(super) fn set_workload(
        &self,
        cookie: u64,
        addresses: &[IpAddr],
        ports: ListenerPorts,
    ) -> Result<(), DatapathError> {
        let first = |is_v4: bool| {
            let address = addresses.iter().find(|address| address.is_ipv4() == is_v4);
            address.map_or(Ip::UNSPECIFIED, |address| Ip::from(*address))
        };
        let value = Workload {
            ip4: first(true),
            ip6: first(false),
            outbound4_port: ports.outbound4,
            outbound6_port: ports.outbound6,
            dns4_port: ports.dns4,
            dns6_port: ports.dns6,
        };
        let key = WorkloadKey {
            netns_cookie: cookie,
        };
        self.workloads
            .lock()
            .insert(key, value, 0)
            .map_err(|error| refused("workloads", &error))
    }

    pub(super) fn set_listener(
        &self,
        cookie: u64,
        kind: ListenerKind,
        is_v4: bool,
        listener: &impl AsRawFd,
    ) -> Result<(), DatapathError> {
        let ip_version = if is_v4 { 4 } else { 6 };
        let key = ListenerKey {
            netns_cookie: cookie,
            kind: kind as u16,
            ip_version,
            reserved: 0,
        };
        self.listeners
            .lock()
            .insert(key, listener.as_raw_fd(), 0)
            .map_err(|error| refused("listeners", &error))
    }

    pub(super) fn remove_workload(&self, cookie: u64) {
        // The listeners leave their map when they are closed.
        let _ = self.workloads.lock().remove(&WorkloadKey {
            netns_cookie: cookie,
        });
        let mut listening = self.listening.lock();
        for key in keys_of(&listening, |key| key.netns_cookie == cookie) {
            let _ = listening.remove(&key);
        }
    }

    pub(super) fn sync_listening(
        &self,
        cookie: u64,
        ports: &HashSet<u16>,
        add: bool,
    ) -> Result<(), DatapathError> {
        let mut listening = self.listening.lock();
        for key in keys_of(&listening, |key| {
            key.netns_cookie == cookie && !ports.contains(&key.port)
        }) {
            let _ = listening.remove(&key);
        }
        if add {
            for port in ports {
                let key = ListeningPort {
                    netns_cookie: cookie,
                    port: *port,
                    reserved: [0; 3],
                };
                if listening.get(&key, 0).is_ok_and(|count| count > 0) {
                    continue;
                }
                listening
                    .insert(key, 1, 0)
                    .map_err(|error| refused("listening", &error))?;
            }
        }
        Ok(())
    }

    pub(super) fn nameserver(&self, key: &Nameserver) -> Option<SocketAddr> {
        self.nameservers.get(key, 0).ok().map(Into::into)
    }

    pub(super) fn flows(&self) -> Vec<FlowRecord> {
        let now = monotonic_ns();
        self.flows
            .iter()
            .filter_map(Result::ok)
            .map(|(id, flow)| FlowRecord::new(id, flow, now))
            .collect()
    }
}

fn keys_of<V: Pod>(
    map: &HashMap<MapData, ListeningPort, V>,
    wanted: impl Fn(&ListeningPort) -> bool,
) -> Vec<ListeningPort> {
    map.keys().filter_map(Result::ok).filter(wanted).collect()
}

/// Length and address in canonical form: IPv4 prefixes are 96 bits longer.
fn prefix(network: &IpNet) -> (u32, Ip) {
    let length = u32::from(network.prefix_len()) + if network.addr().is_ipv4() { 96 } else { 0 };
    (length, Ip::from(network.network()))
}
