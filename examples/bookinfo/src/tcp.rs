//! Services that are not HTTP.

use anyhow::Context;
use tokio::io::{self, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::Listen;

/// What a greeter says before its client has said anything.
pub const GREETING: &str = "220 bookinfo ready\r\n";

/// Says `greeting`, then sends back every byte until the client has said all it has to say.
pub async fn serve(listen: Listen, greeting: &'static str) -> anyhow::Result<()> {
    let mut listeners = JoinSet::new();
    for address in listen.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        listeners.spawn(accept(listener, greeting));
    }
    listeners
        .join_next()
        .await
        .context("nothing to listen on")??
}

async fn accept(listener: TcpListener, greeting: &'static str) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = echo(stream, greeting).await {
                eprintln!("echo: {error}");
            }
        });
    }
}

async fn echo(mut stream: TcpStream, greeting: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.split();
    writer.write_all(greeting.as_bytes()).await?;
    io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}
