//! How the two sides of a tunnel talk TLS: 1.3 only, HTTP/2 only; and how a server talks to sidecars.
//!
//! A resumed session carries the proof of an earlier handshake. It is short: each side's
//! certificate had half of its life before it then, and a new authority or revocation list
//! makes new configurations, without sessions.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::ResolvesServerCert;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use super::certificates::ALPN;
use super::sessions::Sessions;
use super::verify::{ClientVerifier, ServerVerifier, provider};
use super::{Identity, Trust};

/// A session may be resumed for this part of a certificate's life.
const RESUMPTIONS_PER_LIFE: u32 = 4;
/// Tickets that a server gives with each handshake; one serves once.
const TICKETS: usize = 2;
/// Servers whose sessions a client of one configuration keeps.
const MAX_CLIENT_SESSIONS: usize = 256;

pub(super) fn server(
    trust: &Trust,
    domains: Vec<Arc<str>>,
    current: Arc<dyn ResolvesServerCert>,
    lifetime: Duration,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let verifier = ClientVerifier::new(trust)?.of_domains(domains);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(current);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(Sessions::new(lifetime / RESUMPTIONS_PER_LIFE));
    config.send_tls13_tickets = TICKETS;
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// How the same server talks TLS to sidecars of Istio, which name a protocol of theirs (ALPN): with
/// any of these the bytes are the application's. `istio-peer-exchange` would begin otherwise.
pub(super) fn to_sidecars(server: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = server.clone();
    config.alpn_protocols = ["istio-http/1.1", "istio-http/1.0", "istio-h2", "istio"]
        .map(Vec::from)
        .to_vec();
    Arc::new(config)
}

/// How the same client talks TLS to a sidecar of Istio: it says what is inside.
pub(super) fn from_sidecar(client: &ClientConfig, inside: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = client.clone();
    let as_istio = inside
        .iter()
        .map(|protocol| [b"istio-", *protocol].concat());
    config.alpn_protocols = as_istio
        .chain([b"istio".to_vec()])
        .chain(inside.iter().map(|protocol| protocol.to_vec()))
        .collect();
    config.enable_sni = true;
    Arc::new(config)
}

pub(super) fn client(
    trust: Arc<Trust>,
    current: Arc<dyn ResolvesClientCert>,
    expected: Arc<[Identity]>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = ServerVerifier::new(trust, expected);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        // "Dangerous" to rustls because it is not the web's check of a DNS name.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(current);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::in_memory_sessions(MAX_CLIENT_SESSIONS);
    config.enable_sni = false;
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}
