//! Open loop: requests are due at a fixed rate. A request that is due while
//! its connection still waits for an answer is counted from when it was due,
//! so that a slow answer cannot hide the requests that it held up.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use clap::Args;

use super::Client;

/// Requests to where, and how many.
#[derive(Args)]
pub struct Arguments {
    /// The server.
    address: SocketAddr,
    /// Requests per second over all connections.
    #[arg(long)]
    rate: u32,
    /// Connections, each with a thread of its own.
    #[arg(long)]
    connections: u32,
    /// How long.
    #[arg(long)]
    seconds: u64,
}

/// Prints `{"requests": ..., "p50_us": ..., "p99_us": ..., "errors": ...}`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {
        address,
        rate,
        connections,
        seconds,
    } = *arguments;
    ensure!(rate > 0 && connections > 0, "no load was asked for");
    let interval = Duration::from_secs(1) * connections / rate;
    let clients = (0..connections)
        .map(|_| Client::connect(address))
        .collect::<Result<Vec<_>, _>>()?;
    let start = Instant::now() + Duration::from_millis(10);
    let end = start + Duration::from_secs(seconds);
    let threads: Vec<_> = (0..connections)
        .zip(clients)
        .map(|(number, client)| {
            let first = start + interval * number / connections;
            thread::spawn(move || paced(client, address, first, interval, end))
        })
        .collect();
    let (mut latencies, mut errors) = (Vec::new(), 0);
    for thread in threads {
        let (of_one, failed) = thread.join().map_err(|_| anyhow!("a client panicked"))?;
        latencies.extend(of_one);
        errors += failed;
    }
    ensure!(!latencies.is_empty(), "no request was answered");
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies[index.min(latencies.len() - 1)].as_nanos() as f64 / 1000.0
    };
    println!(
        r#"{{"requests": {}, "p50_us": {:.1}, "p99_us": {:.1}, "errors": {errors}}}"#,
        latencies.len(),
        at(0.5),
        at(0.99)
    );
    Ok(())
}

/// The latencies of one connection's requests, and how many failed.
fn paced(
    mut client: Client,
    address: SocketAddr,
    first: Instant,
    interval: Duration,
    end: Instant,
) -> (Vec<Duration>, u32) {
    precise_timers();
    let (mut latencies, mut errors) = (Vec::new(), 0);
    let mut due = first;
    while due < end {
        let now = Instant::now();
        let began = if now < due {
            thread::sleep(due - now);
            // That the timer fires late is not the server's doing.
            Instant::now()
        } else {
            due
        };
        match client.exchange() {
            Ok(answered) => latencies.push(answered - began),
            Err(error) => {
                errors += 1;
                eprintln!("{error}");
                match Client::connect(address) {
                    Ok(fresh) => client = fresh,
                    Err(_) => break,
                }
            }
        }
        due += interval;
    }
    (latencies, errors)
}

/// Timers of this thread fire without the usual slack of 50 µs (prctl(2)).
fn precise_timers() {
    // SAFETY: takes plain numbers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}
