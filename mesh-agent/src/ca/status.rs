//! Why there is no certificate.

/// gRPC's status code and a sentence.
#[derive(Debug)]
pub struct Status(pub u16, pub String);

impl Status {
    /// What is asked for makes no sense.
    pub const INVALID_ARGUMENT: u16 = 3;
    /// Who asks may not have it.
    pub const PERMISSION_DENIED: u16 = 7;
    /// There is no such method.
    pub const UNIMPLEMENTED: u16 = 12;
    /// The authority has failed.
    pub const INTERNAL: u16 = 13;
    /// It may be asked again.
    pub const UNAVAILABLE: u16 = 14;
    /// Nobody knows who asks.
    pub const UNAUTHENTICATED: u16 = 16;
}
