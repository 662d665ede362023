//! The agent as a whole: puts the parts together and takes them apart.

mod authz;
mod enrolment;
mod options;
mod view;

pub use options::{RunOptions, UninstallOptions};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, ControlSocket};
use crate::datapath::{Datapath, cgroup2_mount};
use crate::identity::{Authority, Certificates};
use crate::netns::NamespaceWatch;
use crate::proxy::Node;
use crate::proxy::application::{self, Reports};
use crate::proxy::hbone::TunnelPool;
use crate::proxy::http::Upstreams;
use crate::proxy::notes::Notes;
use crate::proxy::upstream::Upstream;
use crate::resource::Finding;
use crate::snapshot::{Options, Snapshot};
use crate::source::{Loaded, directory};
use enrolment::Enrolment;

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
    refused: Mutex<Option<Refused>>,
    resources: std::sync::atomic::AtomicUsize,
}

/// `mesh-agent run`: until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the agent from starting, in one line.
pub async fn run(options: RunOptions) -> anyhow::Result<()> {
    if !options.config.is_dir() {
        bail!("--config {}: not a directory", options.config.display());
    }
    let stop = CancellationToken::new();
    let authority = Authority::load_or_create(&options.ca, options.trust_domain.as_str())?;
    let certificates = Arc::new(Certificates::new(
        Arc::new(authority),
        options.cert_lifetime,
    ));
    let cgroup = cgroup(&options)?;
    let datapath = Arc::new(Datapath::load(&options.bpffs, &cgroup)?);
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
    });
    let tunnels = TunnelPool::new(certificates.clone());
    let upstreams = Arc::new(Upstreams::new(Upstream::new(node.clone(), tunnels)));
    let enrolment = Enrolment::new(
        options.node.clone(),
        node.clone(),
        upstreams,
        certificates.clone(),
        options.when_agent_is_down,
        stop.clone(),
    );
    let socket =
        ControlSocket::bind(&options.admin_socket(), options.admin_group.as_deref()).await?;
    let agent = Arc::new(Agent {
        started: Instant::now(),
        node,
        certificates: certificates.clone(),
        enrolment,
        refused: Mutex::default(),
        resources: 0.into(),
        options,
    });
    let renewal = tokio::spawn({
        let stop = stop.clone();
        async move { certificates.renew(stop).await }
    });
    // The first configuration is in force before anybody is told that the agent runs.
    let mut configurations = directory::watch(&agent.options.config)
        .await
        .with_context(|| format!("cannot watch {}", agent.options.config.display()))?;
    if let Some(first) = configurations.recv().await {
        agent.configure(first);
    }
    tracing::info!(
        node = agent.options.node,
        config = %agent.options.config.display(),
        cgroup = %cgroup.display(),
        workloads = agent.node.snapshot.load().registry.workloads.len(),
        "agent is running"
    );
    let admin = tokio::spawn(admin::serve(socket, agent.clone(), stop.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Namespaces that are not there yet may come, those of workloads may go.
    let mut namespaces = NamespaceWatch::start();
    loop {
        tokio::select! {
            Some(loaded) = configurations.recv() => agent.configure(loaded),
            () = namespaces.changed() => agent.enrol(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!(
        "agent stops; enrolled workloads are refused until it runs again, or `mesh-agent uninstall`"
    );
    stop.cancel();
    let _ = tokio::join!(admin, renewal);
    Ok(())
}

/// `mesh-agent uninstall`.
///
/// # Errors
/// Where a pin cannot be removed.
pub fn uninstall(options: &UninstallOptions) -> anyhow::Result<()> {
    Datapath::uninstall(&options.bpffs)
        .with_context(|| format!("cannot remove {}", options.bpffs.display()))
}

fn cgroup(options: &RunOptions) -> anyhow::Result<PathBuf> {
    match &options.cgroup {
        Some(path) if path.join("cgroup.procs").exists() => Ok(path.clone()),
        Some(path) => bail!("--cgroup {}: not a cgroup2 directory", path.display()),
        None => cgroup2_mount().context(
            "no cgroup2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
        ),
    }
}

impl Agent {
    /// Puts a configuration in force, or keeps the one before and says why.
    fn configure(&self, loaded: Loaded) {
        let generation = self.node.snapshot.load().generation + 1;
        let options = Options {
            trust_domain: self.options.trust_domain.clone(),
            cluster_domain: self.options.cluster_domain.clone(),
            root_namespace: self.options.root_namespace.clone(),
            trust_domain_aliases: self.options.trust_domain_aliases.clone(),
            path_normalization: self.options.path_normalization,
        };
        let compiled = loaded.and_then(|resources| {
            let snapshot = Snapshot::compile(generation, &resources, &options)?;
            Ok((snapshot, resources.len()))
        });
        match compiled {
            Ok((mut snapshot, resources)) => {
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
                let snapshot = Arc::new(snapshot);
                self.node.snapshot.store(snapshot.clone());
                application::recheck(&self.node, &snapshot);
                self.resources
                    .store(resources, std::sync::atomic::Ordering::Relaxed);
                *self.refused.lock() = None;
                tracing::info!(generation, resources, "configuration is in force");
                self.enrol();
            }
            Err(errors) => {
                for error in &errors {
                    tracing::error!("configuration refused: {error}");
                }
                *self.refused.lock() = Some(Refused {
                    at: Instant::now(),
                    errors,
                });
            }
        }
    }

    fn enrol(&self) {
        self.enrolment.reconcile();
        if self.node.notes.is_full() {
            let flows = self.node.datapath.flows();
            let ids: std::collections::HashSet<u64> = flows.iter().map(|flow| flow.id).collect();
            let ends: std::collections::HashSet<_> =
                flows.iter().map(|flow| (flow.remote, flow.local)).collect();
            self.node
                .notes
                .retain(|id| ids.contains(&id), |pair| ends.contains(pair));
        }
    }
}
