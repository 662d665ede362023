//! A large configuration: how long it takes to come into force, how long a
//! change of it takes, and how much memory it keeps.

mod files;
mod peer;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Agent, Lab, Node, Workload, wait_until};

use super::envoy;
use super::figures::{Figures, Metric};
use super::process::{Memory, memory};
use super::scenario::{Mesh, Variant};
use crate::shell::step;

/// Services, each with a VirtualService and a DestinationRule.
const SERVICES: usize = 1000;
/// Workloads of the node. Every two are the two versions of one application.
const WORKLOADS: usize = 100;
/// Changes of one VirtualService, one after the other.
const CHANGES: usize = 20;
/// How long a change may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long memory is given to settle.
const SETTLE: Duration = Duration::from_secs(2);
/// Where Envoy listens.
const ENVOY_PORT: u16 = 15001;

const IN_FORCE: &str = "configuration is in force";

/// Measures all variants, in each round one after the other.
pub fn measure(
    scenario: &'static str,
    variants: &[&'static Variant],
    rounds: usize,
    figures: &mut Figures,
) -> Result<()> {
    for round in 0..rounds {
        // Each start is the first one: nothing is pinned, no memory is warm.
        let lab = Lab::create()?;
        for variant in variants {
            let mut shown = |metric, value| figures.add(scenario, variant.name, metric, value);
            match variant.mesh {
                Mesh::IdleEnvoy => envoy(&lab, &mut shown)?,
                _ => agent(&lab, &mut shown)?,
            }
        }
        step(format!("round {}/{rounds}", round + 1));
    }
    Ok(())
}

/// Takes what was measured.
type Shown<'a> = dyn FnMut(Metric, f64) + 'a;

fn agent(lab: &Lab, shown: &mut Shown<'_>) -> Result<()> {
    let workloads: Vec<Workload> = (0..WORKLOADS)
        .map(|number| {
            let (name, labels) = (format!("w{number}"), files::labels(number));
            let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
            lab.workload(Node::A, &name, &labels)
        })
        .collect();
    files::write(lab, &workloads)?;

    let began = now();
    let mut agent = Agent::try_start(lab, Node::A)?;
    let pid = agent.id();
    shown(START, since(began, &line(&agent, IN_FORCE)?)?);
    shown(ENROLLED, since(began, &line(&agent, "agent is running")?)?);
    std::thread::sleep(SETTLE);
    show_memory(pid, AT_START, shown)?;
    for change in 1..=CHANGES {
        let began = now();
        files::change(lab, change);
        // The first configuration is generation 1.
        let generation = format!("{IN_FORCE} generation={} ", change + 1);
        let came = wait_until(CHANGE_TIMEOUT, || agent.log().contains(&generation));
        ensure!(came, "a change is not in force within {CHANGE_TIMEOUT:?}");
        let line = line(&agent, &generation)?;
        shown(CHANGE, since(began, &line)?);
        shown(OF_IT, took(&line)?);
    }
    std::thread::sleep(SETTLE);
    show_memory(pid, AFTER_CHANGES, shown)?;
    agent.stop();
    agent.uninstall(&[]);
    Ok(())
}

fn envoy(lab: &Lab, shown: &mut Shown<'_>) -> Result<()> {
    let place = lab.workload(Node::Outside, "envoy", &[]);
    let configuration = peer::configuration(SERVICES, ENVOY_PORT);
    let began = now();
    let process = envoy::run(lab, &place, ENVOY_PORT, &configuration)?;
    let took = now().saturating_sub(began);
    shown(START, took.as_secs_f64() * 1e3);
    std::thread::sleep(SETTLE);
    show_memory(process.id(), AT_START, shown)
}

const START: Metric = Metric::new("start until in force", "ms");
const ENROLLED: Metric = Metric::new("start until 100 workloads are enrolled", "ms");
const CHANGE: Metric = Metric::new("one VirtualService renamed, until in force", "ms");
const OF_IT: Metric = Metric::new("of it, compiled and put in force", "ms");

const AT_START: [Metric; 3] = [
    Metric::new("memory", "MB"),
    Metric::new("memory, anonymous", "MB"),
    Metric::new("memory, of files", "MB"),
];
const AFTER_CHANGES: [Metric; 3] = [
    Metric::new("memory after 20 changes", "MB"),
    Metric::new("memory after 20 changes, anonymous", "MB"),
    Metric::new("memory after 20 changes, of files", "MB"),
];

fn show_memory(pid: u32, metrics: [Metric; 3], shown: &mut Shown<'_>) -> Result<()> {
    let Memory {
        resident,
        anonymous,
        files,
    } = memory(pid)?;
    for (metric, bytes) in metrics.into_iter().zip([resident, anonymous, files]) {
        shown(metric, bytes as f64 / 1e6);
    }
    Ok(())
}

/// The first line of the agent's log with this text.
fn line(agent: &Agent, text: &str) -> Result<String> {
    let log = agent.log();
    let line = log.lines().find(|line| line.contains(text));
    line.map(str::to_owned)
        .with_context(|| format!("the agent does not say {text:?}"))
}

/// The clock by which the agent's log is written.
fn now() -> Duration {
    (SystemTime::now().duration_since(UNIX_EPOCH)).unwrap_or_default()
}

/// Milliseconds from `began` to the time at the beginning of a line of the log.
fn since(began: Duration, line: &str) -> Result<f64> {
    const DAY: f64 = 86_400.0;
    let time = time_of_day(line).with_context(|| format!("no time in {line:?}"))?;
    let began = began.as_secs_f64() % DAY;
    Ok((time - began).rem_euclid(DAY) * 1e3)
}

/// Seconds since midnight of `2026-01-31T12:34:56.789012Z  INFO ...`.
fn time_of_day(line: &str) -> Option<f64> {
    let (_, time) = line.split_once('T')?;
    let (time, _) = time.split_once('Z')?;
    let mut seconds = 0.0;
    for part in time.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
    }
    Some(seconds)
}

/// What the agent itself has measured, milliseconds.
fn took(line: &str) -> Result<f64> {
    let mut fields = line.split_whitespace();
    let value = fields.find_map(|field| field.strip_prefix("took_ms="));
    value
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("no took_ms in {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_says_when_and_how_long() {
        let line = "2026-01-31T00:00:01.500000Z  INFO a: configuration is in force generation=2 took_ms=1.25";
        assert_eq!(time_of_day(line), Some(1.5));
        // Also over midnight.
        let began = Duration::from_secs(3 * 86_400 - 1);
        assert_eq!(since(began, line).unwrap(), 2500.0);
        assert_eq!(took(line).unwrap(), 1.25);
    }
}
