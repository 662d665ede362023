//! Memory: of many connections at once, at rest, and of tunnels at rest; and
//! whether the account of many connections is whole.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::{Node, wait_until, workload_entries};
use serde_json::Value;

use super::figures::{Figures, Metric};
use super::pair::Pair;
use super::process::resident;
use super::scenario::Mesh;
use super::stage::Stage;
use crate::shell::step;

/// Connections at once.
const FLOWS: usize = 10_000;
/// Tunnels at once, each from a workload of its own.
const TUNNELS: usize = 100;
/// How long the agents may take to enrol these.
const ENROL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long memory is given to settle.
const SETTLE: Duration = Duration::from_secs(2);
/// How long nothing happens until a proxy counts as at rest: an agent gives memory back five
/// seconds after the last connection.
const COME_TO_REST: Duration = Duration::from_secs(10);

/// What of a record must be there.
const COMPLETE: &[&str] = &[
    "source",
    "destination",
    "endpoint",
    "service",
    "source_identity",
    "destination_identity",
    "bytes_sent",
    "bytes_received",
];

/// Opens many connections on each variant.
pub fn flows(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let scenario = stage.scenario.name;
    for standing in &stage.standing {
        let (pair, variant) = (&standing.pair, standing.variant.name);
        let before = memory(&pair.proxies)?;
        let mut client = Held::open(pair, FLOWS)
            .with_context(|| format!("{FLOWS} connections through {variant}"))?;
        std::thread::sleep(SETTLE);
        let after = memory(&pair.proxies)?;
        for (place, grown) in places(&before, &after) {
            let metric = Metric::new(memory_per_flow(place), "bytes");
            figures.add(scenario, variant, metric, grown as f64 / FLOWS as f64);
        }
        if matches!(standing.variant.mesh, Mesh::Undermesh(_)) {
            let (open, complete) = records(stage, pair);
            let count = |name| Metric::new(name, "records");
            figures.add(
                scenario,
                variant,
                count("records of 10,000 open connections"),
                open as f64,
            );
            figures.add(
                scenario,
                variant,
                count("complete records of 10,000"),
                complete as f64,
            );
        }
        step(format!(
            "{variant}: {FLOWS} connections, memory {before:?} -> {after:?} bytes"
        ));
        client.close()?;
    }
    Ok(())
}

fn memory_per_flow(place: usize) -> &'static str {
    [
        "memory per connection, client's side",
        "memory per connection, server's side",
    ][place.min(1)]
}

/// Records of the client's open connections, and how many of them lack nothing.
fn records(stage: &Stage, pair: &Pair) -> (usize, usize) {
    let flows = stage.agents[0].meshctl_json(&["flows", "--workload", &pair.client.name]);
    let open: Vec<_> = flows
        .as_array()
        .into_iter()
        .flatten()
        .filter(|flow| {
            flow["state"] == "open"
                && flow["direction"] == "outbound"
                && flow["destination"] == pair.http.to_string()
        })
        .collect();
    let complete = open.iter().filter(|flow| is_complete(flow)).count();
    (open.len(), complete)
}

fn is_complete(flow: &Value) -> bool {
    COMPLETE
        .iter()
        .all(|field| !flow[field].is_null() && flow[field] != 0)
        && flow["security"] != "-"
}

/// Memory of proxies at rest, and what a tunnel at rest adds.
pub fn idle(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let scenario = stage.scenario.name;
    std::thread::sleep(COME_TO_REST);
    for standing in &stage.standing {
        let variant = standing.variant.name;
        for (pid, name) in standing
            .pair
            .proxies
            .iter()
            .zip(["at rest, client's side", "at rest, server's side"])
        {
            let metric = Metric::new(name, "MB");
            figures.add(scenario, variant, metric, resident(*pid)? as f64 / 1e6);
        }
        if matches!(standing.variant.mesh, Mesh::Undermesh(_)) {
            tunnels(stage, &standing.pair, variant, figures)?;
        }
    }
    Ok(())
}

/// Many workloads call the same server once: each leaves a tunnel at rest.
fn tunnels(stage: &Stage, pair: &Pair, variant: &'static str, figures: &mut Figures) -> Result<()> {
    let clients: Vec<_> = (0..TUNNELS)
        .map(|number| {
            // One service account: what a certificate takes is not a tunnel's.
            let name = format!("caller-{number}");
            stage.lab.workload(Node::A, &name, &[("app", "caller")])
        })
        .collect();
    let all: Vec<_> = clients.iter().collect();
    stage.lab.configure("callers.yaml", &workload_entries(&all));
    let enrolled = wait_until(ENROL_TIMEOUT, || {
        let workloads = stage.agents[0].meshctl_json(&["workloads"]);
        let count = workloads
            .as_array()
            .into_iter()
            .flatten()
            .filter(|workload| workload["state"] == "enrolled" && is_caller(workload))
            .count();
        count == TUNNELS
    });
    ensure!(
        enrolled,
        "not all callers are enrolled within {ENROL_TIMEOUT:?}"
    );
    let url = format!("http://{}/", pair.http);
    let call = |number: usize| {
        let reply = clients[number].curl(&[&url]);
        ensure!(reply.status == 200, "caller {number}: {reply:?}");
        Ok(())
    };
    // The first brings the certificate, and all that grows but once.
    call(0)?;
    std::thread::sleep(COME_TO_REST);
    let before = memory(&pair.proxies)?;
    (1..TUNNELS).try_for_each(call)?;
    std::thread::sleep(COME_TO_REST);
    let after = memory(&pair.proxies)?;
    for (place, grown) in places(&before, &after) {
        let name = [
            "tunnel at rest, client's side",
            "tunnel at rest, server's side",
        ][place.min(1)];
        let each = grown as f64 / (TUNNELS - 1) as f64;
        figures.add(
            stage.scenario.name,
            variant,
            Metric::new(name, "bytes"),
            each,
        );
    }
    Ok(())
}

fn is_caller(workload: &Value) -> bool {
    workload["name"]
        .as_str()
        .is_some_and(|name| name.starts_with("caller-"))
}

fn memory(pids: &[u32]) -> Result<Vec<u64>> {
    pids.iter().map(|pid| resident(*pid)).collect()
}

/// By how much each has grown, bytes.
fn places(before: &[u64], after: &[u64]) -> Vec<(usize, i64)> {
    before
        .iter()
        .zip(after)
        .map(|(before, after)| after.cast_signed() - before.cast_signed())
        .enumerate()
        .collect()
}

/// A client that holds connections.
struct Held {
    child: Child,
}

impl Held {
    fn open(pair: &Pair, connections: usize) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = pair
            .client
            .command(&program.to_string_lossy())
            .args(["load", "hold", &format!("--connections={connections}")])
            .arg(pair.http.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("the client's output is ours")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let mut held = Self { child };
        if line.is_empty() {
            held.close()?;
            bail!("the client has opened nothing");
        }
        Ok(held)
    }

    fn close(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the client ended with {status}");
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
