//! Another agent has the workloads: what this one still carries runs to its end,
//! under the configurations that the other one puts in force.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use super::configuring::{Compiled, compile};
use super::takeover::{DrainSocket, Offer, Successor};
use crate::proxy::application;
use crate::proxy::http::Upstreams;
use crate::proxy::upstream::Upstream;
use crate::resource::Cache;
use crate::source::Loaded;

/// How long tunnels may take to end in order when nobody uses them any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Another agent is in charge.
pub(super) struct Relieved {
    /// Its end is how the other learns that this one is gone.
    _successor: Successor,
    socket: DrainSocket,
}

/// Waits until the last connection has ended, or their time has.
pub(super) async fn drain(agent: &Agent, upstreams: &Upstreams<Upstream>) {
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

impl Agent {
    /// Gives all to another agent, and returns when that one is in charge.
    ///
    /// # Errors
    /// Where it does not become ready: this agent goes on.
    pub(super) async fn hand_over(
        &self,
        successor: Successor,
        control: &OwnedFd,
    ) -> anyhow::Result<Relieved> {
        // It tells this one of its first configuration when it is in charge.
        let socket = DrainSocket::bind(&self.options.admin_socket())?;
        let offer = Offer {
            bpffs: self.options.bpffs.clone(),
            control: control.try_clone()?,
            lock: self.node.datapath.share_lock()?,
            workloads: self.enrolment.share()?,
        };
        Ok(Relieved {
            _successor: successor.hand_over(offer).await?,
            socket,
        })
    }

    /// Keeps the connections that are left under the configurations that the agent in
    /// charge puts in force. The kernel's maps and the workloads are the other one's.
    /// Returns where this agent cannot follow: it is to end.
    pub(super) async fn follow(&self, relieved: &Relieved) {
        let mut cache = Cache::default();
        loop {
            let told = match relieved.socket.next().await {
                Ok(told) => told,
                Err(error) => {
                    tracing::warn!(%error, "the agent in charge has not said all of a configuration");
                    continue;
                }
            };
            if !self.follow_one(told.texts.parse(&mut cache)) {
                // The agent in charge waits for an answer or for the end of this process.
                std::mem::forget(told);
                return;
            }
            if let Err(error) = told.in_force().await {
                tracing::warn!(%error, "the agent in charge is gone");
            }
        }
    }

    /// Puts a configuration in force for the connections that are left; whether that can be done.
    fn follow_one(&self, loaded: Loaded) -> bool {
        let generation = self.node.snapshot.load().generation + 1;
        let compiled = compile(&mut self.compiler.lock(), generation, loaded);
        let mut snapshot = match compiled {
            Ok(Compiled { snapshot, .. }) => snapshot,
            Err(errors) => {
                let error = errors.first().map(ToString::to_string).unwrap_or_default();
                tracing::error!(
                    error,
                    "this version cannot read the configuration that is in force now: open connections are cut"
                );
                return false;
            }
        };
        (snapshot.authorization).succeed(&self.node.snapshot.load().authorization, generation);
        let snapshot = Arc::new(snapshot);
        self.node.snapshot.store(snapshot.clone());
        application::recheck(&self.node, &snapshot);
        tracing::info!(
            generation,
            "configuration is in force for the connections that are left"
        );
        true
    }
}
