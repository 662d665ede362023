//! `mesh-agent ca`: the certificate authority as a service, in Istio's API
//! `istio.v1.auth.IstioCertificateService`. Keys stay with those who ask: they
//! send a request, and get a certificate for an identity that they may have.

mod callers;
mod kubernetes;
mod server;
mod status;
mod tokens;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use http::Uri;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::identity::{Authority, authority};
pub use server::{Service, serve};

use callers::Callers;
use kubernetes::{ApiServer, ApiServerOptions};
use tokens::TokenFile;

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
    /// Who may ask with a token: a line for each, the token and then the identities it may have;
    /// read again when it changes.
    /// Without it only those who have a certificate already are served
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Kubernetes API server, https://host:port, that is asked whose a token is (TokenReview)
    #[arg(long, value_name = "URL")]
    pub kube_api: Option<Uri>,
    /// Roots that the API server's certificate is verified against
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub kube_ca: PathBuf,
    /// Our own token for the API server; read for each question
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub kube_token: PathBuf,
    /// For whom tokens of service accounts must have been made (may be repeated)
    #[arg(
        long = "token-audience",
        value_name = "NAME",
        default_value = "istio-ca"
    )]
    pub token_audiences: Vec<String>,
    /// Service account of a node's agent, which may ask for every service account that has a pod
    /// on its node (may be repeated)
    #[arg(long = "node-account", value_name = "NAMESPACE/NAME", value_parser = node_account)]
    pub node_accounts: Vec<(String, String)>,
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

fn node_account(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('/');
    let known = parts.filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let (namespace, name) = known.ok_or("not of the form namespace/name")?;
    Ok((namespace.to_owned(), name.to_owned()))
}

/// `mesh-agent ca`: until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, in one line.
pub async fn run(options: CaOptions) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let authority = Authority::load_or_create(&options.ca, options.trust_domain.as_str())?;
    let tokens = Arc::new(match &options.tokens {
        Some(path) => TokenFile::open(path.clone())?,
        None => TokenFile::default(),
    });
    let api_server = match &options.kube_api {
        Some(url) => Some(ApiServer::new(ApiServerOptions {
            url: url.clone(),
            roots: options.kube_ca.clone(),
            token: options.kube_token.clone(),
            audiences: options.token_audiences.clone(),
        })?),
        None => None,
    };
    let callers = Callers {
        tokens: tokens.clone(),
        api_server,
        node_accounts: options.node_accounts.clone(),
        trust_domain: options.trust_domain.clone(),
    };
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    tracing::info!(address = %options.listen, "certificate authority is running");
    let service = Arc::new(Service::new(
        authority,
        callers,
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
        stop.clone(),
    );
    tokio::select! {
        () = serve(listener, service.clone()) => {}
        () = renewed => {}
        () = tokens.watch(stop) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
