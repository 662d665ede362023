//! Istio's API for certificates, `istio.v1.auth.IstioCertificateService`: its
//! messages, and a client.

mod answer;
mod client;
mod message;

pub use client::{ClientError, ServiceClient, ServiceOptions};
pub use message::{CertificateRequest, CertificateResponse, frame, unframe};

/// The only method.
pub const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
