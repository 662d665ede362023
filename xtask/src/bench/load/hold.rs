//! Many connections at once, idle after one request each.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use super::Client;

/// Connections to where, and how many.
#[derive(Args)]
pub struct Arguments {
    /// The server.
    address: SocketAddr,
    /// Connections.
    #[arg(long)]
    connections: u32,
}

/// Prints `{"connections": ..., "seconds": ...}` when all are open, and holds
/// them until standard input ends.
pub fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let mut clients = Vec::new();
    for number in 0..arguments.connections {
        let mut client = Client::connect(arguments.address)
            .with_context(|| format!("connection {number} is refused"))?;
        client
            .exchange()
            .with_context(|| format!("connection {number} gets no answer"))?;
        clients.push(client);
    }
    println!(
        r#"{{"connections": {}, "seconds": {:.2}}}"#,
        clients.len(),
        start.elapsed().as_secs_f64()
    );
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
