//! The messages of `istio.v1.auth.IstioCertificateService`, and gRPC's frame
//! around one of them.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::identity::Identity;

/// Under which the identity stands that a node's agent wants for a workload.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateRequest {
    /// The request for a certificate, in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long it shall be valid, seconds; 0 leaves it to the authority.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Further wishes.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateResponse {
    /// In PEM: the certificate first, the root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`, as far as it is read here.
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    /// Values by name.
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`, as far as it is read here.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// The value, where it is a text.
    #[prost(string, optional, tag = "3")]
    pub string_value: Option<String>,
}

impl CertificateRequest {
    /// Asks for a certificate that is valid for `seconds`, on behalf of `identity`.
    pub fn new(csr: String, seconds: i64, identity: &Identity) -> Self {
        let value = Value {
            string_value: Some(identity.to_string()),
        };
        Self {
            csr,
            validity_duration: seconds,
            metadata: Some(Struct {
                fields: [(IMPERSONATED.to_owned(), value)].into(),
            }),
        }
    }

    /// The identity for which a node's agent asks on behalf of a workload.
    pub fn impersonated(&self) -> Option<&str> {
        let value = self.metadata.as_ref()?.fields.get(IMPERSONATED)?;
        value
            .string_value
            .as_deref()
            .filter(|text| !text.is_empty())
    }
}

/// One byte that says whether it is compressed, and four of length (gRPC over
/// HTTP/2, "Length-Prefixed-Message").
const FRAME_BYTES: usize = 5;

/// A message in its frame.
pub fn frame(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME_BYTES + message.encoded_len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    framed.put(message.encode_to_vec().as_slice());
    framed.freeze()
}

/// The only message of a request.
///
/// # Errors
/// What is wrong with it.
pub fn unframe<M: Message + Default>(body: &[u8]) -> Result<M, String> {
    let Some((head, message)) = body.split_at_checked(FRAME_BYTES) else {
        return Err("no message".to_owned());
    };
    if head[0] != 0 {
        return Err("compressed messages are not understood".to_owned());
    }
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if usize::try_from(length) != Ok(message.len()) {
        return Err(format!("{length} bytes announced, {} there", message.len()));
    }
    M::decode(message).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_on_the_wire() {
        let identity = "spiffe://a/ns/b/sa/c".parse().unwrap();
        let request = CertificateRequest::new("PEM".to_owned(), 60, &identity);
        let bytes = frame(&request);
        // Field 1, a text of three bytes; field 3, a number (protobuf's encoding).
        assert_eq!(&bytes[FRAME_BYTES..][..7], b"\x0a\x03PEM\x18\x3c");
        let read: CertificateRequest = unframe(&bytes).unwrap();
        assert_eq!(read.impersonated(), Some("spiffe://a/ns/b/sa/c"));
        assert_eq!(read, request);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = unframe::<CertificateRequest>(&bytes);
            let _ = CertificateRequest::decode(bytes.as_slice());
        }
    }

    #[test]
    fn fuzz_csr() {
        crate::fuzz::run("csr", |bytes| {
            if let Ok(request) = unframe::<CertificateRequest>(bytes) {
                let _ = request.impersonated();
                let _ = rcgen::CertificateSigningRequestParams::from_pem(&request.csr);
            }
        });
    }
}
