//! The configuration as an operator's folder has it: a file for each object.

use std::fs;

use anyhow::{Context, Result};
use mesh_tests::{Lab, Workload, workload_entries};

use super::{SERVICES, WORKLOADS};

/// Labels of a workload: its application, and its version.
pub fn labels(workload: usize) -> [(&'static str, String); 2] {
    [
        ("app", format!("g{}", workload / 2)),
        ("version", format!("v{}", workload % 2 + 1)),
    ]
}

/// Writes all of it.
pub fn write(lab: &Lab, workloads: &[Workload]) -> Result<()> {
    let workloads: Vec<_> = workloads.iter().collect();
    let folder = lab.config();
    let write = |name: String, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("workloads.yaml".to_owned(), workload_entries(&workloads))?;
    for number in 0..SERVICES {
        write(format!("s{number}-service.yaml"), service(number))?;
        write(format!("s{number}-rule.yaml"), destination_rule(number))?;
        write(route_file(number), virtual_service(number, 3))?;
    }
    Ok(())
}

/// Changes one VirtualService; every change is another.
pub fn change(lab: &Lab, change: usize) {
    let number = change * 37 % SERVICES;
    lab.configure(&route_file(number), &virtual_service(number, 3 + change));
}

fn route_file(number: usize) -> String {
    format!("s{number}-route.yaml")
}

fn service(number: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\n\
         spec:\n  clusterIP: 10.96.{high}.{low}\n  selector: {{app: g{group}}}\n  \
         ports:\n    - {{name: http, port: 80, targetPort: 8080}}\n",
        high = number / 250,
        low = number % 250 + 1,
        group = number % (WORKLOADS / 2),
    )
}

fn destination_rule(number: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: s{number}}}\n\
         spec:\n  host: s{number}\n  \
         trafficPolicy: {{outlierDetection: {{maxEjectionPercent: 50}}}}\n  \
         subsets:\n    - {{name: v1, labels: {{version: v1}}}}\n    - {{name: v2, labels: {{version: v2}}}}\n"
    )
}

/// Two rules: one by header and one by path for the second version, and shares for the rest.
fn virtual_service(number: usize, timeout_s: usize) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{number}}}\n\
         spec:\n  hosts: [s{number}]\n  http:\n    \
         - match:\n        - headers: {{end-user: {{exact: jason}}}}\n        - uri: {{prefix: /v2}}\n      \
           route:\n        - destination: {{host: s{number}, subset: v2}}\n    \
         - route:\n        - {{destination: {{host: s{number}, subset: v1}}, weight: 90}}\n        \
           - {{destination: {{host: s{number}, subset: v2}}, weight: 10}}\n      \
           timeout: {timeout_s}s\n"
    )
}
