//! YAML as people write it, for workloads whose names only the lab knows.

use std::fmt::Write;

use crate::workload::{Node, Workload};

/// A port of a service.
pub struct ServicePort<'a> {
    /// Name, whose prefix tells the protocol: `http`, `tcp-echo` ...
    pub name: &'a str,
    /// Port that clients use.
    pub port: u16,
    /// Port that the workloads listen on.
    pub target: u16,
}

/// One Istio `WorkloadEntry` for each.
pub fn workload_entries(workloads: &[&Workload]) -> String {
    let mut text = String::new();
    for workload in workloads {
        let Workload {
            name,
            netns,
            node,
            v4,
            v6,
            ..
        } = workload;
        let account = workload.service_account();
        let (label, node) = match node {
            Node::Outside => ("# outside of the mesh", "outside"),
            node => ("# enrolled", node.name()),
        };
        let _ = write!(
            text,
            "---\n\
             apiVersion: networking.istio.io/v1\n\
             kind: WorkloadEntry {label}\n\
             metadata:\n  \
               name: {name}\n  \
               annotations:\n    \
                 undermesh.io/netns: {netns}\n    \
                 undermesh.io/node: {node}\n    \
                 undermesh.io/addresses: \"{v6}\"\n\
             spec:\n  \
               address: {v4}\n  \
               serviceAccount: {account}\n  \
               labels:\n    \
                 workload: {name}\n"
        );
        for (key, value) in &workload.labels {
            let _ = writeln!(text, "    {key}: {value}");
        }
    }
    text
}

/// A Kubernetes `Service` named `name`, for workloads with the label
/// `app: <app>`, with the addresses 10.96.0.`host` and fd96::`host`.
pub fn service(name: &str, app: &str, host: u8, ports: &[ServicePort<'_>]) -> String {
    let mut text = format!(
        "---\n\
         apiVersion: v1\n\
         kind: Service\n\
         metadata:\n  \
           name: {name}\n\
         spec:\n  \
           clusterIP: 10.96.0.{host}\n  \
           clusterIPs: [10.96.0.{host}, \"fd96::{host:x}\"]\n  \
           selector:\n    \
             app: {app}\n  \
           ports:\n"
    );
    for ServicePort { name, port, target } in ports {
        let _ = writeln!(
            text,
            "    - {{name: {name}, port: {port}, targetPort: {target}}}"
        );
    }
    text
}
