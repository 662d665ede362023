//! Load and what it shows: wrk for requests and connections, iperf3 for one
//! stream, a client of our own for latency at a fixed rate.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::figures::Metric;
use super::pair::Pair;
use super::process::cpu_time;

/// Threads of wrk.
const THREADS: u32 = 2;
/// Connections for new connections and for latency, which are not about their number.
const CONNECTIONS: u32 = 16;
/// Requests per second at which latency is measured.
const RATE: u32 = 2000;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Requests over this many connections that stay open, as fast as they go.
    Requests(u32),
    /// Requests at a fixed rate, whatever the answers take.
    Latency,
    /// One stream from client to server.
    Stream,
    /// One request for each connection.
    NewConnections,
}

/// Latency of which the share beyond that of no mesh is a figure of its own.
pub const P99: Metric = Metric::new("p99 at 2,000 req/s", "µs");
/// That share.
pub const ADDED_P99: Metric = Metric::new("added p99 at 2,000 req/s", "µs");

impl Load {
    /// Every load.
    pub const ALL: [Self; 5] = [
        Self::Requests(16),
        Self::Requests(64),
        Self::Latency,
        Self::Stream,
        Self::NewConnections,
    ];

    /// What it is called on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests(16) => "requests-16",
            Self::Requests(_) => "requests-64",
            Self::Latency => "latency",
            Self::Stream => "stream",
            Self::NewConnections => "new-connections",
        }
    }

    /// Makes the load for a while and returns what it shows, the main figure first.
    pub fn run(self, pair: &Pair, seconds: u64) -> Result<Vec<(Metric, f64)>> {
        let before = cpu_time(&pair.proxies)?;
        let (mut figures, amount) = match self {
            Self::Requests(connections) => {
                let (per_second, count) = wrk(pair, connections, seconds, false)?;
                (vec![(requests(connections), per_second)], count)
            }
            Self::NewConnections => {
                let (per_second, count) = wrk(pair, CONNECTIONS, seconds, true)?;
                let metric = Metric::new("new connections", "conn/s");
                (vec![(metric, per_second)], count)
            }
            Self::Latency => latency(pair, seconds)?,
            Self::Stream => stream(pair, seconds)?,
        };
        if !pair.proxies.is_empty() {
            let used = cpu_time(&pair.proxies)?.saturating_sub(before);
            figures.push((self.cpu(), self.cost(used, amount)));
        }
        Ok(figures)
    }

    fn cpu(self) -> Metric {
        match self {
            Self::Requests(16) => Metric::new("proxy CPU per 1,000 requests, 16 connections", "ms"),
            Self::Requests(_) => Metric::new("proxy CPU per 1,000 requests, 64 connections", "ms"),
            Self::Latency => Metric::new("proxy CPU per 1,000 requests at 2,000 req/s", "ms"),
            Self::NewConnections => Metric::new("proxy CPU per 1,000 new connections", "ms"),
            Self::Stream => Metric::new("proxy CPU per GB", "ms"),
        }
    }

    /// Milliseconds for a thousand requests, or for a gigabyte.
    fn cost(self, used: Duration, amount: f64) -> f64 {
        let unit = if self == Self::Stream { 1e9 } else { 1000.0 };
        used.as_secs_f64() * 1000.0 * unit / amount
    }
}

fn requests(connections: u32) -> Metric {
    match connections {
        16 => Metric::new("requests, 16 connections", "req/s"),
        _ => Metric::new("requests, 64 connections", "req/s"),
    }
}

/// Requests per second, and how many there were.
fn wrk(pair: &Pair, connections: u32, seconds: u64, close: bool) -> Result<(f64, f64)> {
    let mut arguments = vec![
        format!("--threads={THREADS}"),
        format!("--connections={connections}"),
        format!("--duration={seconds}s"),
    ];
    if close {
        arguments.push("--header=Connection: close".to_owned());
    }
    arguments.push(format!("http://{}/", pair.http));
    let said = pair.client.run("wrk", &arguments);
    ensure!(said.code == 0, "wrk failed: {}{}", said.stdout, said.stderr);
    let report = wrk_report(&said.stdout)
        .with_context(|| format!("wrk says something else than expected: {}", said.stdout))?;
    if let Some(errors) = report.errors {
        bail!("wrk reports failures: {errors}");
    }
    Ok((report.per_second, report.requests))
}

#[derive(Debug, PartialEq)]
struct WrkReport<'a> {
    per_second: f64,
    requests: f64,
    errors: Option<&'a str>,
}

fn wrk_report(text: &str) -> Option<WrkReport<'_>> {
    let lines = || text.lines().map(str::trim);
    Some(WrkReport {
        per_second: lines()
            .find_map(|line| line.strip_prefix("Requests/sec:"))?
            .trim()
            .parse()
            .ok()?,
        requests: lines()
            .find_map(|line| line.split_once(" requests in "))?
            .0
            .parse()
            .ok()?,
        errors: lines().find(|line| {
            line.starts_with("Socket errors") || line.starts_with("Non-2xx or 3xx responses")
        }),
    })
}

fn latency(pair: &Pair, seconds: u64) -> Result<(Vec<(Metric, f64)>, f64)> {
    let program = std::env::current_exe()?;
    let arguments = [
        "load".to_owned(),
        "latency".to_owned(),
        format!("--rate={RATE}"),
        format!("--connections={CONNECTIONS}"),
        format!("--seconds={seconds}"),
        pair.http.to_string(),
    ];
    let said = pair.client.run(&program.to_string_lossy(), &arguments);
    ensure!(said.code == 0, "the client failed: {}", said.stderr.trim());
    let report: Value = serde_json::from_str(&said.stdout)?;
    let number = |name: &str| {
        report[name]
            .as_f64()
            .with_context(|| format!("the client does not say {name}: {report}"))
    };
    ensure!(
        number("errors")? == 0.0,
        "requests failed: {}",
        said.stderr.trim()
    );
    let figures = vec![
        (P99, number("p99_us")?),
        (Metric::new("p50 at 2,000 req/s", "µs"), number("p50_us")?),
    ];
    Ok((figures, number("requests")?))
}

fn stream(pair: &Pair, seconds: u64) -> Result<(Vec<(Metric, f64)>, f64)> {
    let said = pair.client.run(
        "iperf3",
        &[
            "--json",
            "--client",
            &pair.bulk.ip().to_string(),
            "--port",
            &pair.bulk.port().to_string(),
            "--time",
            &seconds.to_string(),
        ],
    );
    let report: Value = serde_json::from_str(&said.stdout)
        .with_context(|| format!("iperf3 failed: {}{}", said.stdout, said.stderr))?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let received = &report["end"]["sum_received"];
    let (rate, bytes) = received["bits_per_second"]
        .as_f64()
        .zip(received["bytes"].as_f64())
        .with_context(|| format!("iperf3 does not say what was received: {report}"))?;
    ensure!(bytes > 0.0, "iperf3 received nothing");
    Ok((
        vec![(Metric::new("one TCP stream", "Gbit/s"), rate / 1e9)],
        bytes,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "Running 3s test @ http://10.0.0.1/\n  2 threads and 16 connections\n  \
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n  237010 requests in 3.00s, 70.00MB read\n\
        Requests/sec:  79003.25\nTransfer/sec:     23.00MB\n";

    #[test]
    fn wrk_is_understood() {
        let report = wrk_report(REPORT).unwrap();
        assert_eq!((report.per_second, report.requests), (79003.25, 237010.0));
        assert_eq!(report.errors, None);
        let failed = format!("{REPORT}  Non-2xx or 3xx responses: 5\n");
        assert_eq!(
            wrk_report(&failed).unwrap().errors,
            Some("Non-2xx or 3xx responses: 5")
        );
        assert_eq!(wrk_report("unable to connect"), None);
    }
}
