//! The agent as a whole: puts the parts together and takes them apart.

mod accepted_flows;
mod authz;
mod checks;
mod configuring;
mod direct_flows;
mod direct_traffic;
mod draining;
mod endpoints;
mod enrolment;
mod flow_keeper;
mod heartbeat;
mod inbound;
mod listeners;
mod live_flows;
mod memory;
mod nameless;
mod observing;
mod one_line;
mod options;
mod plaintext;
mod process;
mod rest;
mod routes;
mod starting;
mod supervisor;
mod takeover;
pub mod time_slice;
mod traffic;
mod uninstall;
mod verdicts;
mod view;

pub use one_line::one_line;
pub(crate) use options::cert_lifetime;
pub use options::{RunOptions, UninstallOptions};
pub use uninstall::uninstall;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, ControlSocket, host_checks};
use crate::datapath::{Datapath, cgroup2_mount};
use crate::health::Start;
use crate::identity::certificate_service::ServiceClient;
use crate::identity::{Authority, Certificates};
use crate::netns::{NamespaceWatch, SockDiag};
use crate::proxy::Node;
use crate::proxy::application::{Reports, Windows};
use crate::proxy::direct::DirectTraffic;
use crate::proxy::hbone::{Clients, TunnelMemory, TunnelPool};
use crate::proxy::http::Upstreams;
use crate::proxy::node_probes::NodeProbes;
use crate::proxy::notes::Notes;
use crate::proxy::sparse_log::SparseLog;
use crate::proxy::upstream::Upstream;
use crate::snapshot::{Compiler, Snapshot};
use crate::source::directory;
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::{AccessLog, Format};
use configuring::{Refused, compile};
use enrolment::{Enrolment, Settings};
use flow_keeper::{FlowCounts, FlowKeeper};
use observing::Observing;
use rest::Rest;
use starting::Starting;
use supervisor::Supervisor;
use takeover::{Draining, Estate, Handed, Predecessor, TakeoverSocket};

/// The running agent.
struct Agent {
    options: RunOptions,
    started: Instant,
    node: Arc<Node>,
    certificates: Arc<Certificates>,
    enrolment: Enrolment,
    upstreams: Arc<Upstreams<Upstream>>,
    observing: Observing,
    compiler: Mutex<Compiler>,
    refused: Mutex<Option<Refused>>,
    /// The configuration that is in force wherever connections are decided.
    acknowledged: std::sync::atomic::AtomicU64,
    /// Configurations that were refused.
    refusals: std::sync::atomic::AtomicU64,
    resources: std::sync::atomic::AtomicUsize,
    flows: Arc<FlowCounts>,
    /// What goes past it, in its metrics.
    direct: DirectTraffic,
    /// Who counts by the kernel's records, or removes some, does so alone: what is read before and
    /// counted after a removal would be counted twice.
    accounting: Mutex<()>,
    /// Whether somebody has been answered lately, which takes memory for a while.
    has_answered: AtomicBool,
    /// Whether the kernel ends connections that a new policy forbids.
    ends_connections: bool,
}

/// Lines about connections that are refused, in ten seconds.
const MAX_REFUSAL_LINES: u32 = 100;

/// `mesh-agent run`: until SIGTERM or SIGINT, or until another agent has taken over.
///
/// # Errors
/// What keeps the agent from starting, in one line. An agent that runs then
/// goes on as before.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    if !options.config.is_dir() {
        bail!("--config {}: not a directory", options.config.display());
    }
    if let Some(obstacle) = host_checks::obstacle() {
        bail!(obstacle);
    }
    process::raise_open_files();
    memory::tune_allocator();
    let control_path = options.admin_socket();
    let starting = Starting::with("asking for an agent that runs");
    let estate = Estate::claim(&TakeoverSocket::path(&control_path), &options.bpffs).await?;
    let (control, lock, handed, mut predecessor) = match estate {
        Some(estate) => (
            Some(estate.control),
            Some(estate.lock),
            estate.handed,
            Some(estate.predecessor),
        ),
        None => (None, None, Handed::default(), None),
    };
    let telemetry = Arc::new(telemetry(&options)?);
    starting.next("reading the configuration");
    let mut configurations = directory::watch(&options.config)
        .await
        .with_context(|| format!("cannot watch {}", options.config.display()))?;
    // Also the agent before, which is going to drain.
    let draining = Draining::find(&control_path);
    let mut compiler = Compiler::new(options.of_mesh());
    let first = configurations.recv().await.map(|state| {
        (
            compile(&mut compiler, 1, state.loaded),
            draining.with(state.texts),
        )
    });
    if let (Some(predecessor), Some((Err(errors), _))) = (&predecessor, &first) {
        let error = errors.first().map(ToString::to_string).unwrap_or_default();
        bail!(
            "the configuration is refused, and the agent that runs (process {}) stays in charge: {error}",
            predecessor.pid()
        );
    }
    let stop = CancellationToken::new();
    starting.next("opening the certificate authority");
    let certificates = Arc::new(certificates(&options)?);
    let cgroup2 = cgroup2_mount().context(
        "no cgroup2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
    )?;
    let cgroup = cgroup(&options, &cgroup2)?;
    starting.next("probing the kernel and attaching the programs");
    let datapath = Arc::new(Datapath::load(
        &options.bpffs,
        &cgroup,
        options.attach,
        lock,
    )?);
    for line in datapath.attached() {
        tracing::debug!(program = line, "attached");
    }
    let probes = NodeProbes::here(options.node_probes, &cgroup2).unwrap_or_else(|error| {
        tracing::warn!(%error, "probes of the node are connections like any other");
        NodeProbes::none()
    });
    let node = Arc::new(Node {
        snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
        datapath,
        locals: ArcSwap::default(),
        notes: Notes::default(),
        admissions: Arc::default(),
        reports: Reports::default(),
        probes,
        plaintext: Default::default(),
        connections: TaskTracker::new(),
        handshakes: Arc::default(),
        refusals: SparseLog::of(MAX_REFUSAL_LINES),
        clients: Arc::new(Clients::new(options.max_client_connections)),
        tunnel_memory: Arc::new(TunnelMemory::new(options.max_tunnel_memory)),
        windows: Arc::new(Windows::new(options.max_tunnel_memory)),
        telemetry: telemetry.clone(),
    });
    let tunnels = TunnelPool::new(
        certificates.clone(),
        node.handshakes.clone(),
        node.tunnel_memory.clone(),
    );
    let upstreams = Arc::new(Upstreams::new(Upstream::new(
        node.clone(),
        tunnels,
        certificates.clone(),
    )));
    let settings = Settings {
        node_name: options.node.clone(),
        when_agent_is_down: options.when_agent_is_down,
        short_circuit: options.short_circuit,
        cgroup2,
    };
    let enrolment = Enrolment::new(
        settings,
        node.clone(),
        upstreams.clone(),
        certificates.clone(),
        handed,
        stop.clone(),
    );
    starting.next("opening the control socket");
    let socket = match control {
        Some(control) => ControlSocket::inherit(&control_path, control)?,
        None => ControlSocket::bind(&control_path, options.admin_group.as_deref()).await?,
    };
    let shared = socket.share()?;
    let start = match &predecessor {
        Some(_) => Start::Trusting,
        None => Start::Doubtful,
    };
    let (observing, mut observations) = Observing::new(options.dns_refresh_rate, start);
    let agent = Arc::new(Agent {
        observing,
        compiler: Mutex::new(compiler),
        started: Instant::now(),
        node,
        certificates: certificates.clone(),
        enrolment,
        upstreams,
        refused: Mutex::default(),
        acknowledged: 0.into(),
        refusals: 0.into(),
        resources: 0.into(),
        flows: Arc::default(),
        direct: DirectTraffic::default(),
        accounting: Mutex::default(),
        has_answered: AtomicBool::default(),
        ends_connections: SockDiag::here().is_ok_and(|diag| diag.can_destroy()),
        options,
    });
    let last_beat_ns = agent.node.datapath.last_beat_ns();
    // From now on, and until it has given its workloads away.
    let heartbeat = heartbeat::start(&agent.node.datapath, agent.options.hung_after)?;
    let renewal = tokio::spawn({
        let (stop, ca) = (stop.clone(), agent.options.ca.clone());
        let certificates = certificates.clone();
        async move {
            tokio::join!(
                certificates.renew(stop.clone()),
                certificates.watch(ca, stop.clone())
            )
        }
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    starting.next("enrolling the workloads");
    let is_alone = || Draining::sockets(&control_path).is_empty();
    if predecessor.is_none() && is_alone() {
        // What the agent before has left may have filled the map.
        agent.node.datapath.give_back_identities();
    }
    // The first configuration is in force before anybody is told that the agent runs.
    let mut first = first.and_then(|(compiled, draining)| {
        let change = agent.put_in_force(compiled)?;
        let claimed = agent.enrolment.claimed();
        agent.node.datapath.leave_others(&claimed);
        Some((change, draining))
    });
    if predecessor.is_some()
        && let Some(reason) = agent.enrolment.failed_to_inherit()
    {
        bail!("cannot take over a workload, the agent that runs stays in charge: {reason}");
    }
    starting.next("waiting for certificates");
    // The agent before has certificates, also where the authority is away now.
    if predecessor.is_some()
        && let Err(error) = certificates.ready().await
    {
        bail!("the agent that runs stays in charge: {error}");
    }
    starting.next("telling agents that drain");
    let takeovers = TakeoverSocket::bind(&control_path)?;
    agent.enrolment.accept();
    if predecessor.is_none()
        && let Some((change, draining)) = first.take()
    {
        agent.acknowledge(change, draining).await;
    }
    let admin = tokio::spawn(admin::serve(socket, agent.clone(), stop.clone()));
    if let Some(predecessor) = &predecessor {
        tracing::info!(
            pid = predecessor.pid(),
            "took over, the agent before drains"
        );
        if let Err(error) = predecessor.relieve().await {
            tracing::warn!(%error, "the agent before is gone already");
        }
    }
    // The agent before is told of this configuration, too, if it is another one.
    if let Some((change, draining)) = first {
        agent.acknowledge(change, draining).await;
    }
    let metrics = tokio::spawn(admin::metrics::serve(
        agent.options.metrics_address,
        agent.clone(),
        stop.clone(),
    ));
    agent.enrolment.close_other_sockets();
    drop(starting);
    tracing::info!(
        node = agent.options.node,
        config = %agent.options.config.display(),
        cgroup = %cgroup.display(),
        workloads = agent.node.snapshot.load().registry.workloads.len(),
        "agent is running"
    );
    let mut supervisor = Supervisor::find();
    supervisor.ready();
    if predecessor.is_none() {
        agent.node.datapath.remove_other_links();
    }
    // Namespaces that are not there yet may come, those of workloads may go.
    let mut namespaces = NamespaceWatch::start();
    let mut keeper = FlowKeeper::new(agent.flows.clone());
    agent.inherit_direct(match &predecessor {
        Some(_) => agent.node.datapath.now_ns(),
        None => last_beat_ns,
    });
    // A point in time: whatever else happens all the time does not put it off.
    let mut tend = tokio::time::Instant::now();
    let mut generation = 0;
    let mut rest = Rest::new();
    let relieved = loop {
        tokio::select! {
            Some(state) = configurations.recv() => {
                agent.configure(state).await;
                rest.changed();
            }
            () = namespaces.changed() => {
                // It may well be that none has: then there is nothing to rest from.
                if agent.enrol() {
                    rest.changed();
                }
            }
            observation = observations.next() => agent.observe(observation),
            () = tokio::time::sleep_until(tend) => {
                supervisor.alive();
                let busy = agent.tend(&mut keeper, is_alone);
                if busy | agent.has_answered.swap(false, Relaxed) {
                    rest.busy();
                }
                rest.look();
                let pause = if busy { flow_keeper::BUSY } else { flow_keeper::IDLE };
                tend = tokio::time::Instant::now() + pause;
                if agent.node.datapath.kernel_log_is_to_change() {
                    let datapath = agent.node.datapath.clone();
                    // Nobody waits for the programs to be loaded.
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = datapath.follow_kernel_log() {
                            tracing::error!(%error, "the kernel programs' log keeps its level");
                        }
                    });
                }
                let current = agent.node.snapshot.load().generation;
                if current != generation {
                    generation = current;
                    // A call of connect(2) that was decided just before the change may have gone
                    // on just after: its record was not there yet.
                    agent.recheck_direct(false);
                }
            }
            () = gone(predecessor.as_ref()) => {
                tracing::info!("the agent before has ended");
                agent.node.datapath.remove_other_links();
                predecessor = None;
            }
            Ok(successor) = takeovers.accept() => {
                tracing::info!("another agent wants to take over");
                // Meanwhile this one changes nothing.
                tokio::select! {
                    handed = agent.hand_over(successor, &shared.0) => match handed {
                        Ok(relieved) => break Some(relieved),
                        Err(error) => tracing::warn!(
                            reason = one_line(&error),
                            "the other agent has not taken over, this one goes on"
                        ),
                    },
                    _ = terminate.recv() => break None,
                    _ = interrupt.recv() => break None,
                }
            }
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
        }
    };
    if relieved.is_some() {
        // Files and programs are the other agent's now. Whoever finds the control socket's file
        // after a crash of that one must not take this one for alive.
        shared.1.give_away();
        drop(shared);
        agent.node.datapath.give_away_lock();
        drop(heartbeat);
        agent.enrolment.give_away();
    } else {
        supervisor.stopping();
        tracing::info!(
            "agent stops; enrolled workloads are refused until it runs again, or `mesh-agent uninstall`"
        );
    }
    // What is to be read comes from the other agent now.
    drop(configurations);
    stop.cancel();
    if let Some(relieved) = &relieved {
        tokio::select! {
            () = draining::drain(&agent, &agent.upstreams) => {}
            () = agent.follow(relieved) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    let _ = tokio::join!(admin, metrics, renewal);
    telemetry.access_log.close();
    // Only now: the other agent takes the end of it for the end of all connections.
    drop(relieved);
    Ok(())
}

fn telemetry(options: &RunOptions) -> anyhow::Result<Telemetry> {
    let encoding = options.access_log_encoding;
    let format = match &options.access_log_format {
        None => Format::Default(encoding),
        Some(text) => Format::parse(text, encoding).context("--access-log-format")?,
    };
    let access_log = match &options.access_log_file {
        None => AccessLog::off(format),
        Some(file) => AccessLog::open(file, format)
            .with_context(|| format!("--access-log-file {}", file.display()))?,
    };
    Ok(Telemetry::new(access_log))
}

async fn gone(predecessor: Option<&Predecessor>) {
    match predecessor {
        Some(predecessor) => predecessor.gone().await,
        None => std::future::pending().await,
    }
}

/// From the authority elsewhere that is named, or one in here.
fn certificates(options: &RunOptions) -> anyhow::Result<Certificates> {
    let lifetime = options.cert_lifetime;
    let certificates = match options.ca_service.service()? {
        Some(service) => Certificates::from_service(ServiceClient::new(service)?, lifetime)?,
        None => {
            let authority = Authority::load_or_create(&options.ca, options.trust_domain.as_str())?;
            Certificates::new(Arc::new(authority), lifetime)
        }
    };
    Ok(certificates.with_aliases(&options.trust_domain_aliases))
}

fn cgroup(options: &RunOptions, mount: &Path) -> anyhow::Result<PathBuf> {
    match &options.cgroup {
        Some(path) if path.join("cgroup.procs").exists() => Ok(path.clone()),
        Some(path) => bail!("--cgroup {}: not a cgroup2 directory", path.display()),
        None => Ok(mount.to_owned()),
    }
}

impl Agent {
    /// Ends direct connections that the policies in force forbid.
    fn recheck_direct(&self, is_reported: bool) {
        let snapshot = self.node.snapshot.load();
        let locals = self.enrolment.by_cookie();
        let closed = direct_flows::recheck(&self.node, &snapshot, &locals, is_reported);
        if closed > 0 {
            tracing::info!(
                closed,
                "direct connections that the policies forbid are closed"
            );
        }
    }

    /// Whether workloads have come or gone.
    fn enrol(&self) -> bool {
        let changed = self.enrolment.reconcile();
        if changed {
            self.replace_verdicts(&self.node.snapshot.load_full());
        }
        self.observing.probe(&self.node.locals.load());
        changed
    }
}
