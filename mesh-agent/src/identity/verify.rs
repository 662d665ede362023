//! Who is at the other end: the chain by webpki, then the SPIFFE identity.

use std::fmt::{self, Write as _};
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientCertVerifierBuilder, WebPkiClientVerifier};
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Identity, ParseIdentityError, Trust};

/// How many expected identities an error spells out.
const MAX_NAMED: usize = 8;

/// A certificate whose chain is good, but that does not name whom it should.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Not exactly one URI among the subject's alternative names
    /// (X.509-SVID, section 2).
    #[error("the peer's certificate has {0} URI names, wanted one SPIFFE identity")]
    UriCount(usize),
    /// The URI is not an identity.
    #[error("the peer's certificate names no identity: {0}")]
    NotAnIdentity(#[from] ParseIdentityError),
    /// A valid identity, but of somebody else's trust domain.
    #[error("the peer is {got}, wanted one of trust domain {wanted}")]
    ForeignTrustDomain {
        /// What the certificate says.
        got: Identity,
        /// Ours and its aliases.
        wanted: String,
    },
    /// A valid identity, but not one that this peer may have.
    #[error("the peer is {got}, wanted {wanted}")]
    Unexpected {
        /// What the certificate says.
        got: Identity,
        /// What was expected, as text.
        wanted: String,
    },
}

impl From<IdentityError> for Error {
    fn from(error: IdentityError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// A failed handshake in words: rustls shows errors that are not its own in
/// the form for debugging.
pub fn explain(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(identity)))) => {
            io::Error::other(identity.clone())
        }
        _ => error,
    }
}

/// The identity in a certificate that was verified before.
///
/// # Errors
/// Where the certificate names none, or several.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, Error> {
    match &uris(certificate)?[..] {
        [uri] => Ok(uri.parse().map_err(IdentityError::NotAnIdentity)?),
        uris => Err(IdentityError::UriCount(uris.len()).into()),
    }
}

fn uris(certificate: &CertificateDer<'_>) -> Result<Vec<String>, Error> {
    let certificate = webpki::EndEntityCert::try_from(certificate)
        .map_err(|_| Error::from(CertificateError::BadEncoding))?;
    Ok(certificate.valid_uri_names().map(str::to_owned).collect())
}

/// The other end of a connection, as its certificate has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub identity: Identity,
    /// When its certificate ends, Unix seconds.
    pub not_after: u64,
}

/// The peer of a connection whose handshake is over, from the certificates that
/// rustls had verified in it, or in the one whose session was resumed.
///
/// # Errors
/// Where there was no certificate, it names no identity, or has expired since.
pub fn peer(verified: Option<&[CertificateDer<'_>]>) -> Result<Peer, Error> {
    let leaf = verified
        .and_then(<[_]>::first)
        .ok_or(Error::NoCertificatesPresented)?;
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|_| Error::from(CertificateError::BadEncoding))?;
    if !parsed.validity().is_valid() {
        return Err(CertificateError::Expired.into());
    }
    Ok(Peer {
        identity: identity_of(leaf)?,
        not_after: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0),
    })
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connects.
    Client,
    /// The one that accepts.
    Server,
}

/// Verifies the chain of this end, leaf first, as the other would at this moment.
pub(super) fn chain(trust: &Trust, chain: &[CertificateDer<'_>], of: Side) -> Result<(), Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    let now = UnixTime::now();
    match of {
        Side::Server => trust.verify_server(leaf, intermediates, now, &algorithms()),
        Side::Client => ClientVerifier::new(trust)?
            .verify_client_cert(leaf, intermediates, now)
            .map(drop),
    }
}

/// The provider of all of the mesh's cryptography. It prefers X25519MLKEM768, and AES-128 to AES-256:
/// that has the strength of the certificates' curve (P-256) and costs a fifth less of the processor.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    (provider.cipher_suites).sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        _ => 1,
    });
    Arc::new(provider)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// Whom a client wants to reach.
pub trait Wanted: fmt::Debug + Send + Sync {
    /// Whether it is this server, whose chain is good. `dialled` is the name by which it was called.
    ///
    /// # Errors
    /// Where it is somebody else.
    fn is(&self, server: &CertificateDer<'_>, dialled: &ServerName<'_>) -> Result<(), Error>;
}

/// One of these identities; where none is given, none is accepted. Peers are known by identity:
/// the name is only the address that was dialled.
impl Wanted for Arc<[Identity]> {
    fn is(&self, server: &CertificateDer<'_>, _dialled: &ServerName<'_>) -> Result<(), Error> {
        let got = identity_of(server)?;
        if self.contains(&got) {
            return Ok(());
        }
        let wanted = one_of(self);
        Err(IdentityError::Unexpected { got, wanted }.into())
    }
}

fn one_of(expected: &[Identity]) -> String {
    let mut text = match expected.len() {
        0 => return "nobody: the service has no identities".into(),
        1 => String::new(),
        _ => "one of ".into(),
    };
    for (index, identity) in expected.iter().take(MAX_NAMED).enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{identity}");
    }
    if let Some(more @ 1..) = expected.len().checked_sub(MAX_NAMED) {
        let _ = write!(text, " and {more} more");
    }
    text
}

/// A server outside of the mesh: it bears one of these names (DNS names, addresses or URIs), or,
/// where none is given, the one that was dialled.
#[derive(Debug)]
pub struct Names(pub Vec<String>);

impl Wanted for Names {
    fn is(&self, server: &CertificateDer<'_>, dialled: &ServerName<'_>) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(server)?;
        if self.0.is_empty() {
            return verify_server_name(&parsed, dialled);
        }
        let uris = uris(server)?;
        let bears = |name: &String| {
            uris.contains(name)
                || ServerName::try_from(name.as_str())
                    .is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
        };
        match self.0.iter().any(bears) {
            true => Ok(()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }
}

/// A client's view: the server proves by its chain that it is who is wanted.
#[derive(Debug)]
pub struct ServerVerifier<W> {
    /// `None` accepts everybody.
    trust: Option<Arc<Trust>>,
    algorithms: WebPkiSupportedAlgorithms,
    wanted: W,
}

impl<W: Wanted> ServerVerifier<W> {
    /// Accepts servers that `wanted` is and whose chain `trust` accepts.
    pub fn new(trust: Arc<Trust>, wanted: W) -> Self {
        Self {
            trust: Some(trust),
            algorithms: algorithms(),
            wanted,
        }
    }
}

impl ServerVerifier<Names> {
    /// Accepts everybody.
    pub fn blind() -> Self {
        Self {
            trust: None,
            algorithms: algorithms(),
            wanted: Names(Vec::new()),
        }
    }
}

impl<W: Wanted> ServerCertVerifier for ServerVerifier<W> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            trust.verify_server(leaf, intermediates, now, &self.algorithms)?;
            self.wanted.is(leaf, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A server's view: every client must prove some identity of the mesh; what it may do is
/// policy's business.
#[derive(Debug)]
pub struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    /// Trust domains of clients; any where it is empty.
    domains: Vec<Arc<str>>,
}

impl ClientVerifier {
    /// Accepts clients that prove an identity by a chain that `trust` accepts.
    ///
    /// # Errors
    /// Where there are no roots.
    pub fn new(trust: &Trust) -> Result<Self, Error> {
        Self::build(Self::builder(trust))
    }

    /// Those alone whose identity is of one of these trust domains: several meshes may have
    /// one root.
    #[must_use]
    pub fn of_domains(self, domains: Vec<Arc<str>>) -> Self {
        Self { domains, ..self }
    }

    /// The same, but clients need not prove anything.
    ///
    /// # Errors
    /// Where there are no roots.
    pub fn optional(trust: &Trust) -> Result<Self, Error> {
        Self::build(Self::builder(trust).allow_unauthenticated())
    }

    fn builder(trust: &Trust) -> ClientCertVerifierBuilder {
        WebPkiClientVerifier::builder_with_provider(trust.roots.clone(), provider())
            .with_crls(trust.crls.iter().cloned())
            .allow_unknown_revocation_status()
    }

    fn build(builder: ClientCertVerifierBuilder) -> Result<Self, Error> {
        builder
            .build()
            .map(|webpki| Self {
                webpki,
                domains: Vec::new(),
            })
            .map_err(|error| Error::General(error.to_string()))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.webpki.verify_client_cert(leaf, intermediates, now)?;
        let got = identity_of(leaf)?;
        if !self.domains.is_empty() && !self.domains.contains(&got.trust_domain) {
            let wanted = self.domains.join(" or ");
            return Err(IdentityError::ForeignTrustDomain { got, wanted }.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
