//! The agent as a whole: puts the parts together and takes them apart.

mod authz;
mod checks;
mod direct_flows;
mod endpoints;
mod enrolment;
mod flow_keeper;
mod listeners;
mod live_flows;
mod observing;
mod one_line;
mod options;
mod plaintext;
mod process;
mod routes;
mod supervisor;
mod takeover;
mod uninstall;
mod verdicts;
mod view;

pub use one_line::one_line;
pub(crate) use options::cert_lifetime;
pub use options::{RunOptions, UninstallOptions};
pub use uninstall::uninstall;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, ControlSocket, host_checks};
use crate::datapath::{Datapath, cgroup2_mount};
use crate::health::Start;
use crate::identity::certificate_service::ServiceClient;
use crate::identity::{Authority, Certificates};
use crate::netns::{NamespaceWatch, SockDiag};
use crate::proxy::Node;
use crate::proxy::application::{self, Reports};
use crate::proxy::hbone::TunnelPool;
use crate::proxy::http::Upstreams;
use crate::proxy::notes::Notes;
use crate::proxy::upstream::Upstream;
use crate::resource::Finding;
use crate::snapshot::{Options, Snapshot};
use crate::source::{Loaded, directory};
use enrolment::{Enrolment, Settings};
use flow_keeper::FlowKeeper;
use observing::Observing;
use supervisor::Supervisor;
use takeover::{Estate, Handed, Offer, Predecessor, Successor, TakeoverSocket};

/// How long tunnels may take to end in order when nobody uses them any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What was wrong with the configuration that was refused last.
struct Refused {
    at: Instant,
    errors: Vec<Finding>,
}

/// The running agent.
struct Agent {
    options: RunOptions,
    started: Instant,
    node: Arc<Node>,
    certificates: Arc<Certificates>,
    enrolment: Enrolment,
    upstreams: Arc<Upstreams<Upstream>>,
    observing: Observing,
    refused: Mutex<Option<Refused>>,
    /// Configurations that were refused.
    refusals: std::sync::atomic::AtomicU64,
    resources: std::sync::atomic::AtomicUsize,
    /// Whether the kernel ends connections that a new policy forbids.
    ends_connections: bool,
}

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
    process::return_large_blocks();
    let control_path = options.admin_socket();
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
    let mut configurations = directory::watch(&options.config)
        .await
        .with_context(|| format!("cannot watch {}", options.config.display()))?;
    let first = configurations
        .recv()
        .await
        .map(|loaded| compile(&options, 1, loaded));
    if let (Some(predecessor), Some(Err(errors))) = (&predecessor, &first) {
        let error = errors.first().map(ToString::to_string).unwrap_or_default();
        bail!(
            "the configuration is refused, and the agent that runs (process {}) stays in charge: {error}",
            predecessor.pid()
        );
    }
    let stop = CancellationToken::new();
    let certificates = Arc::new(certificates(&options)?);
    let cgroup2 = cgroup2_mount().context(
        "no cgroup2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
    )?;
    let cgroup = cgroup(&options, &cgroup2)?;
    let datapath = Arc::new(Datapath::load(
        &options.bpffs,
        &cgroup,
        options.attach,
        lock,
    )?);
    for line in datapath.attached() {
        tracing::debug!(program = line, "attached");
    }
    let node = Arc::new(Node {
        snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
        datapath,
        locals: ArcSwap::default(),
        notes: Notes::default(),
        admissions: Arc::default(),
        reports: Reports::default(),
        plaintext: Default::default(),
        connections: TaskTracker::new(),
        handshakes: Arc::default(),
    });
    let tunnels = TunnelPool::new(certificates.clone(), node.handshakes.clone());
    let upstreams = Arc::new(Upstreams::new(Upstream::new(node.clone(), tunnels)));
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
        started: Instant::now(),
        node,
        certificates: certificates.clone(),
        enrolment,
        upstreams,
        refused: Mutex::default(),
        refusals: 0.into(),
        resources: 0.into(),
        ends_connections: SockDiag::here().is_ok_and(|diag| diag.can_destroy()),
        options,
    });
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
    // The first configuration is in force before anybody is told that the agent runs.
    if let Some(first) = first {
        let is_known = first.is_ok();
        agent.put_in_force(first);
        if is_known {
            let claimed = agent.enrolment.claimed();
            agent.node.datapath.leave_others(&claimed);
        }
    }
    if predecessor.is_some()
        && let Some(reason) = agent.enrolment.failed_to_inherit()
    {
        bail!("cannot take over a workload, the agent that runs stays in charge: {reason}");
    }
    // The agent before has certificates, also where the authority is away now.
    if predecessor.is_some()
        && let Err(error) = certificates.ready().await
    {
        bail!("the agent that runs stays in charge: {error}");
    }
    let takeovers = TakeoverSocket::bind(&control_path)?;
    agent.enrolment.accept();
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
    let metrics = tokio::spawn(admin::metrics::serve(
        agent.options.metrics_address,
        agent.clone(),
        stop.clone(),
    ));
    agent.enrolment.close_other_sockets();
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
    process::give_back_memory();
    // Namespaces that are not there yet may come, those of workloads may go.
    let mut namespaces = NamespaceWatch::start();
    let mut keeper = FlowKeeper::default();
    // A point in time: whatever else happens all the time does not put it off.
    let mut tend = tokio::time::Instant::now();
    let mut generation = 0;
    let successor = loop {
        tokio::select! {
            Some(loaded) = configurations.recv() => agent.configure(loaded),
            () = namespaces.changed() => agent.enrol(),
            observation = observations.next() => agent.observe(observation),
            () = tokio::time::sleep_until(tend) => {
                supervisor.alive();
                let busy = keeper.tend(&agent.node.datapath);
                let pause = if busy { flow_keeper::BUSY } else { flow_keeper::IDLE };
                tend = tokio::time::Instant::now() + pause;
                if let Err(error) = agent.node.datapath.follow_kernel_log() {
                    tracing::error!(%error, "the kernel programs' log keeps its level");
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
                        Ok(successor) => break Some(successor),
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
    if successor.is_some() {
        // Files and programs are the other agent's now.
        shared.1.give_away();
        agent.node.datapath.give_away_lock();
        agent.enrolment.give_away();
    } else {
        supervisor.stopping();
        tracing::info!(
            "agent stops; enrolled workloads are refused until it runs again, or `mesh-agent uninstall`"
        );
    }
    stop.cancel();
    if successor.is_some() {
        tokio::select! {
            () = drain(&agent, &agent.upstreams) => {}
            () = follow(&agent, &mut configurations) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    let _ = tokio::join!(admin, metrics, renewal);
    Ok(())
}

/// Waits until the last connection has ended, or their time has.
async fn drain(agent: &Agent, upstreams: &Upstreams<Upstream>) {
    let connections = &agent.node.connections;
    connections.close();
    let limit = agent.options.drain_timeout;
    tracing::info!(
        open = connections.len(),
        "another agent has taken over: this one drains"
    );
    let ended = async {
        connections.wait().await;
        // Connections that wait for further requests hold tunnels; and what the last ones have
        // written may still be on its way into theirs.
        for name in agent.node.locals.load().names() {
            upstreams.forget(name);
        }
        let closed = upstreams.connector().close_tunnels();
        if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::debug!("tunnels are closed by force");
        }
    };
    match tokio::time::timeout(limit, ended).await {
        Ok(()) => tracing::info!("drained"),
        Err(_) => tracing::warn!(
            open = connections.len(),
            "--drain-timeout has passed: open connections are cut"
        ),
    }
}

/// Keeps the connections that an agent still carries under the configuration in
/// force. Files are watched by both agents; the kernel's maps and the workloads
/// are the other one's.
async fn follow(agent: &Agent, configurations: &mut mpsc::Receiver<Loaded>) {
    while let Some(loaded) = configurations.recv().await {
        agent.follow(loaded);
    }
    std::future::pending().await
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
        Some(service) => Certificates::from_service(ServiceClient::new(service)?, lifetime),
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

/// A configuration that can be put in force.
struct Compiled {
    snapshot: Snapshot,
    /// How many resources it is made of.
    resources: usize,
    /// How long that took.
    took: Duration,
}

fn compile(
    options: &RunOptions,
    generation: u64,
    loaded: Loaded,
) -> Result<Compiled, Vec<Finding>> {
    let began = Instant::now();
    let options = Options {
        trust_domain: options.trust_domain.clone(),
        cluster_domain: options.cluster_domain.clone(),
        root_namespace: options.root_namespace.clone(),
        trust_domain_aliases: options.trust_domain_aliases.clone(),
        path_normalization: options.path_normalization,
        same_node: options.same_node,
        outbound_traffic_policy: options.outbound_traffic_policy,
    };
    let resources = loaded?;
    let snapshot = Snapshot::compile(generation, &resources, &options)?;
    Ok(Compiled {
        snapshot,
        resources: resources.len(),
        took: began.elapsed(),
    })
}

impl Agent {
    fn configure(&self, loaded: Loaded) {
        let generation = self.node.snapshot.load().generation + 1;
        self.put_in_force(compile(&self.options, generation, loaded));
    }

    /// Puts a configuration in force, or keeps the one before and says why.
    fn put_in_force(&self, compiled: Result<Compiled, Vec<Finding>>) {
        let began = Instant::now();
        match compiled {
            Ok(Compiled {
                mut snapshot,
                resources,
                took,
            }) => {
                let generation = snapshot.generation;
                let destinations = snapshot.destinations();
                if let Err(error) = self
                    .node
                    .datapath
                    .set_destinations(&destinations, generation as u32)
                {
                    tracing::error!(%error, "the kernel does not know all addresses of the mesh");
                }
                for warning in &snapshot.warnings {
                    tracing::warn!("{warning}");
                }
                (snapshot.authorization)
                    .succeed(&self.node.snapshot.load().authorization, generation);
                let is_here = |name: &_| self.enrolment.is_to_be_here(&snapshot.registry, name);
                snapshot.registry = self.observing.over(&snapshot.registry, is_here);
                let snapshot = Arc::new(snapshot);
                self.replace_verdicts(&snapshot);
                application::recheck(&self.node, &snapshot);
                let is_new = snapshot.authorization.epoch == snapshot.generation;
                self.recheck_direct(is_new);
                self.resources
                    .store(resources, std::sync::atomic::Ordering::Relaxed);
                *self.refused.lock() = None;
                let took_ms = (took + began.elapsed()).as_micros() as f64 / 1e3;
                tracing::info!(generation, resources, took_ms, "configuration is in force");
                self.enrol();
            }
            Err(errors) => {
                for error in &errors {
                    tracing::error!("configuration refused: {error}");
                }
                self.refusals
                    .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                *self.refused.lock() = Some(Refused {
                    at: Instant::now(),
                    errors,
                });
            }
        }
        process::give_back_memory();
    }

    /// Puts a configuration in force for the connections that are left. What is
    /// wrong with it the agent says that has taken over.
    fn follow(&self, loaded: Loaded) {
        let generation = self.node.snapshot.load().generation + 1;
        let Ok(Compiled { mut snapshot, .. }) = compile(&self.options, generation, loaded) else {
            return;
        };
        (snapshot.authorization).succeed(&self.node.snapshot.load().authorization, generation);
        let snapshot = Arc::new(snapshot);
        self.node.snapshot.store(snapshot.clone());
        application::recheck(&self.node, &snapshot);
        tracing::info!(
            generation,
            "configuration is in force for the connections that are left"
        );
    }

    async fn hand_over(
        &self,
        successor: Successor,
        control: &OwnedFd,
    ) -> anyhow::Result<Successor> {
        let offer = Offer {
            bpffs: self.options.bpffs.clone(),
            control: control.try_clone()?,
            lock: self.node.datapath.share_lock()?,
            workloads: self.enrolment.share()?,
        };
        successor.hand_over(offer).await
    }

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

    fn enrol(&self) {
        if self.enrolment.reconcile() {
            self.replace_verdicts(&self.node.snapshot.load_full());
        }
        self.observing.probe(&self.node.locals.load());
    }

    /// Puts a configuration in force together with the verdicts that follow
    /// from it: none of an older one counts afterwards.
    fn replace_verdicts(&self, snapshot: &Arc<Snapshot>) {
        let locals = self.enrolment.locals();
        let verdicts = verdicts::Verdicts {
            snapshot,
            locals: &locals,
            tiers: self.node.datapath.tiers(),
            ends_connections: self.ends_connections,
            short_circuit: self.options.short_circuit,
        };
        let store = || self.node.snapshot.store(snapshot.clone());
        let result = self.node.datapath.replace_verdicts(&verdicts.all(), store);
        if let Err(error) = result {
            // The snapshot counts in any case: every connection goes to the agent.
            self.node.snapshot.store(snapshot.clone());
            tracing::error!(%error, "no connection goes past the agent");
        }
    }
}
