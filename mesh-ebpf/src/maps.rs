//! Every map, with BTF and a name that `bpftool` shows (at most 15 characters).

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, SkStorage, SockHash};
use aya_ebpf::macros::btf_map;
use mesh_common::{
    CgroupKey, Destination, Flow, Host, Ip, Layout, ListenerKey, ListeningPort, Nameserver, Origin,
    Socket, SocketIp, Tuple, Workload, WorkloadKey,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Enrolled workloads of the node, by namespace cookie. Written by the agent.
#[btf_map(name = "workloads")]
pub static WORKLOADS: HashMap<WorkloadKey, Workload, 4096, NO_PREALLOC> = HashMap::new();

/// Version of all that is pinned here. Written by the agent.
#[btf_map(name = "layout")]
pub static LAYOUT: Array<Layout, 1> = Array::new();

/// The host's own namespace, while it has workloads. Written by the agent.
#[btf_map(name = "host")]
pub static HOST: Array<Host, 1> = Array::new();

/// Workloads in the host's own namespace, by control group. Written by the agent.
#[btf_map(name = "host_workloads")]
pub static HOST_WORKLOADS: HashMap<CgroupKey, Workload, 1024, NO_PREALLOC> = HashMap::new();

/// Addresses and networks that the mesh knows. Written by the agent.
#[btf_map(name = "destinations")]
pub static DESTINATIONS: LpmTrie<Ip, Destination, 131072> = LpmTrie::new();

/// The agent's own sockets. Written by the agent, by file descriptor.
#[btf_map(name = "agent_sockets")]
pub static AGENT_SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Original destinations and true clients, per socket.
#[btf_map(name = "origins")]
pub static ORIGINS: SkStorage<Origin> = SkStorage::new();

/// Connections between SYN and accept. LRU: an entry whose connection never
/// came about goes by itself.
#[btf_map(name = "connecting")]
pub static CONNECTING: LruHashMap<Tuple, Origin, 65536> = LruHashMap::new();

/// The agent's listeners in the workloads' namespaces.
#[btf_map(name = "listeners")]
pub static LISTENERS: SockHash<ListenerKey, 16384> = SockHash::new();

/// Ports on which applications listen, with the number of their sockets.
#[btf_map(name = "listening")]
pub static LISTENING: HashMap<ListeningPort, u64, 65536, NO_PREALLOC> = HashMap::new();

/// Name servers behind the aliases that the agent is asked at.
#[btf_map(name = "nameservers")]
pub static NAMESERVERS: LruHashMap<Nameserver, SocketIp, 16384> = LruHashMap::new();

/// One record a connection, by socket cookie.
#[btf_map(name = "flows")]
pub static FLOWS: LruHashMap<u64, Flow, 65536> = LruHashMap::new();
