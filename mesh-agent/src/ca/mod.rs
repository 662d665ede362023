//! `mesh-agent ca`: the certificate authority as a service, in Istio's API
//! `istio.v1.auth.IstioCertificateService`. Keys stay with those who ask: they
//! send a request, and get a certificate for an identity that they may have.

mod server;
mod tokens;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::identity::{Authority, authority};
pub use server::{Service, serve};
pub use tokens::Tokens;

/// Longest life of a certificate that is asked for.
pub const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// `mesh-agent ca`.
#[derive(Args, Clone, Debug)]
pub struct CaOptions {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15012")]
    pub listen: SocketAddr,
    /// Directory of the certificate authority, as for `run`
    #[arg(long, value_name = "DIR", default_value = "/var/lib/undermesh/ca")]
    pub ca: PathBuf,
    /// Trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Who may ask with a token: a line for each, the token and then the identities it may have.
    /// Without it only those who have a certificate already are served
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Name by which clients know this server (may be repeated)
    #[arg(
        long = "dns-name",
        value_name = "NAME",
        default_value = "istiod.istio-system.svc"
    )]
    pub dns_names: Vec<String>,
    /// Life of certificates whose life is not asked for
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = crate::agent::cert_lifetime)]
    pub cert_lifetime: Duration,
}

/// `mesh-agent ca`: until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, in one line.
pub async fn run(options: CaOptions) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let authority = Authority::load_or_create(&options.ca, options.trust_domain.as_str())?;
    let tokens = match &options.tokens {
        Some(path) => Tokens::load(path)?,
        None => Tokens::default(),
    };
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    tracing::info!(address = %options.listen, "certificate authority is running");
    let service = Arc::new(Service::new(
        authority,
        tokens,
        options.dns_names.clone(),
        options.cert_lifetime,
    ));
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let renewed = authority::watch(
        options.ca.clone(),
        options.trust_domain.as_str().into(),
        |authority| service.replace(authority),
        stop,
    );
    tokio::select! {
        () = serve(listener, service.clone()) => {}
        () = renewed => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
