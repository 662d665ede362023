//! Every map, with BTF and a name that `bpftool` shows (at most 15 characters).

use crate::ring::EventRing;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, SockHash};
use aya_ebpf::macros::btf_map;
use mesh_common::{
    Bridge, COUNTERS, CgroupKey, Destination, Endpoint, EndpointKey, Flow, FlowPath, Heartbeat,
    Host, Identity, Ip, KNOBS, Layout, ListenerKey, ListeningPort, MAX_BRIDGES, Nameserver, Origin,
    Socket, SocketIp, Splice, SplicePeer, Tuple, Verdict, VerdictKey, Workload, WorkloadKey,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Enrolled workloads of the node, by namespace cookie. Written by the agent.
#[btf_map(name = "workloads")]
pub static WORKLOADS: HashMap<WorkloadKey, Workload, 4096, NO_PREALLOC> = HashMap::new();

/// Version of all that is pinned here. Written by the agent.
#[btf_map(name = "layout")]
pub static LAYOUT: Array<Layout, 1> = Array::new();

/// When the agent was last seen to work. Written by the agent.
#[btf_map(name = "heartbeat")]
pub static HEARTBEAT: Array<Heartbeat, 1> = Array::new();

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

/// The agent's decisions. Written by the agent.
#[btf_map(name = "verdicts")]
pub static VERDICTS: HashMap<VerdictKey, Verdict, 131072, NO_PREALLOC> = HashMap::new();

/// One number, which the agent raises at every change: verdicts of another one
/// do not count.
#[btf_map(name = "generation")]
pub static GENERATION: Array<u64, 1> = Array::new();

/// Endpoints of direct verdicts. Written by the agent.
#[btf_map(name = "endpoints")]
pub static ENDPOINTS: HashMap<EndpointKey, Endpoint, 65536, NO_PREALLOC> = HashMap::new();

/// Open direct connections, by namespace and port of the endpoint.
#[btf_map(name = "endpoint_load")]
pub static ENDPOINT_LOAD: LruHashMap<ListeningPort, u64, 16384> = LruHashMap::new();

/// One record a connection, by socket cookie. The agent removes those of closed ones.
#[btf_map(name = "flows")]
pub static FLOWS: HashMap<u64, Flow, 65536, NO_PREALLOC> = HashMap::new();

/// What the agent knows of the flows that it carries, by socket cookie. It removes them with
/// their records; not LRU, which would forget those that last.
#[btf_map(name = "flow_paths")]
pub static FLOW_PATHS: HashMap<u64, FlowPath, 65536, NO_PREALLOC> = HashMap::new();

/// Opened, closed, denied: hints for the agent.
#[btf_map(name = "flow_events")]
pub static FLOW_EVENTS: EventRing = EventRing::new();

/// What flows' identities stand for. Written by the agent.
#[btf_map(name = "identities")]
pub static IDENTITIES: HashMap<u32, Identity, 16384, NO_PREALLOC> = HashMap::new();

/// Counts by `Counter`.
#[btf_map(name = "counters")]
pub static COUNTS: PerCpuArray<u64, COUNTERS> = PerCpuArray::new();

/// Switches for the operator, by `Knob`.
#[btf_map(name = "knobs")]
pub static KNOB_VALUES: Array<u32, KNOBS> = Array::new();

/// Sockets whose other end is on this node, by socket cookie. An entry goes
/// when its socket is closed; nobody deletes one, since that would lose bytes.
#[btf_map(name = "spliced_sockets")]
pub static SPLICED_SOCKETS: SockHash<u64, 131072> = SockHash::new();

/// The two ends of a connection, as each knows them.
#[btf_map(name = "splices")]
pub static SPLICES: SkStorage<Splice> = SkStorage::new();

/// Accepted ends, until the connecting end has read them. LRU: an end that never
/// sends does not read it.
#[btf_map(name = "splice_peers")]
pub static SPLICE_PEERS: LruHashMap<u64, SplicePeer, 65536> = LruHashMap::new();

/// Ways past the agent, by `bridge_index` of the sender's cookie. The agent maps it into its
/// memory, and opens and closes them there.
#[btf_map(name = "bridges")]
pub static BRIDGES: Array<Bridge, { MAX_BRIDGES as usize }, MMAPABLE> = Array::new();
