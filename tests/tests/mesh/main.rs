//! What Undermesh promises, shown with real kernel programs, real namespaces,
//! real TLS and unmodified clients and servers.

mod authorization;
mod beside_envoy;
mod bookinfo;
mod bpftool;
mod ca;
mod ca_client;
mod ca_kubernetes;
mod canary;
mod circuit_breaker;
mod configuration;
mod container;
mod direct;
mod dns;
mod edges;
mod egress;
mod envoy;
mod envoy_rbac;
mod flows;
mod guide_identity;
mod health;
mod held;
mod hosts;
mod identity;
mod interception;
mod laboratory;
mod leaving;
mod lifetime;
mod meshctl;
mod mtls;
mod outbound;
mod protocols;
mod routing;
mod short_circuit;
mod takeover;
mod traffic;
