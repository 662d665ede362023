//! YAML as people write it, for workloads whose names only the lab knows.

use std::fmt::Write;

use crate::workload::Workload;

/// A port of a service.
pub struct ServicePort<'a> {
    /// Name, whose prefix tells the protocol: `http`, `tcp-echo` ...
    pub name: &'a str,
    /// Port that clients use.
    pub port: u16,
    /// Port that the workloads listen on.
    pub target: u16,
}

/// The same workloads, found by the ids of their containers.
pub fn container_entries(containers: &[(&Workload, &str)]) -> String {
    containers
        .iter()
        .map(|(workload, id)| {
            let netns = format!("undermesh.io/netns: {}", workload.netns);
            workload_entry(workload).replace(&netns, &format!("undermesh.io/container: \"{id}\""))
        })
        .collect()
}

/// One Istio `WorkloadEntry` for each.
pub fn workload_entries(workloads: &[&Workload]) -> String {
    workloads
        .iter()
        .map(|workload| workload_entry(workload))
        .collect()
}

fn workload_entry(workload: &Workload) -> String {
    let labels: String = workload
        .labels
        .iter()
        .map(|(key, value)| format!("    {key}: {value}\n"))
        .collect();
    let annotations: String = workload
        .annotations
        .iter()
        .map(|(key, value)| format!("    {key}: \"{value}\"\n"))
        .collect();
    format!(
        r#"---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: {name}
  namespace: {namespace}
  annotations:
    undermesh.io/netns: {netns}
    undermesh.io/node: {node}
    undermesh.io/addresses: "{v6}"
{annotations}spec:
  address: {v4}
  serviceAccount: {account}
  labels:
    workload: {name}
{labels}"#,
        name = workload.name,
        namespace = workload.namespace,
        netns = workload.netns,
        node = workload.node.name(),
        v4 = workload.v4,
        v6 = workload.v6,
        account = workload.service_account(),
    )
}

/// A Kubernetes `Service` for workloads with the label `app: <name>`, at the
/// addresses 10.96.0.`host` and fd96::`host`.
pub fn service(name: &str, host: u8, ports: &[ServicePort<'_>]) -> String {
    let mut text = format!(
        r#"---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: 10.96.0.{host}
  clusterIPs: [10.96.0.{host}, "fd96::{host:x}"]
  selector:
    app: {name}
  ports:
"#
    );
    for ServicePort { name, port, target } in ports {
        let _ = writeln!(
            text,
            "    - {{name: {name}, port: {port}, targetPort: {target}}}"
        );
    }
    text
}
