//! Istio `VirtualService` and `DestinationRule`, compiled to one small model
//! and matched without I/O.

/// All routes and destination rules, compiled.
#[derive(Debug, Default)]
pub struct Routes {}
