//! Who a workload is, and how it proves it: SPIFFE identities, the
//! certificate authority, and the TLS configurations made from them.

pub mod authority;
pub mod certificate_service;
pub mod certificates;
mod leaf;
pub mod pem_files;
mod sessions;
mod spiffe;
mod tls;
mod trust;
pub mod verify;

#[cfg(test)]
mod tests;

pub use authority::{AUTHORITY_FILES, Authority, AuthorityError};
pub use certificates::{CertificateError, CertificateInfo, Certificates};
pub use leaf::{CaInfo, Leaf};
pub use spiffe::{Identity, ParseIdentityError};
pub use trust::{Trust, TrustWatch, is_revoked};
