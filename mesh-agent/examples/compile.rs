//! How long a large configuration takes to compile, and how much memory it keeps:
//! `cargo run --release -p mesh-agent --example compile [SERVICES]`.
//!
//! Each of the services (1,000 unless said) has a VirtualService, a DestinationRule
//! with two subsets, and two endpoints among 100 workloads.

use std::fmt::Write as _;
use std::time::Instant;

use mesh_agent::resource::Cache;
use mesh_agent::snapshot::{Options, Snapshot};

/// Workloads that serve everything.
const WORKLOADS: usize = 100;

fn main() {
    let argument = std::env::args().nth(1);
    let services: usize = argument.and_then(|text| text.parse().ok()).unwrap_or(1000);
    let yaml = configuration(services);
    let mut files: Vec<(String, String)> = (yaml.split_inclusive("\n---\n").enumerate())
        .map(|(number, text)| (format!("{number:06}.yaml"), text.to_owned()))
        .collect();
    let before_kb = resident_kb();

    let began = Instant::now();
    let mut cache = Cache::default();
    let resources = cache.parse(texts(&files)).unwrap_or_else(|findings| {
        panic!("{}", findings[0]);
    });
    let parsed = began.elapsed();

    let began = Instant::now();
    let snapshot =
        Snapshot::compile(1, &resources, &Options::default()).unwrap_or_else(|findings| {
            panic!("{}", findings[0]);
        });
    let compiled = began.elapsed();

    // A change of one resource, as the directory source makes it: one file is read anew, all
    // is compiled, and services that are as they were stay the same.
    if let Some((_, text)) = files.last_mut() {
        *text = text.replace("3s", "4s");
    }
    let began = Instant::now();
    let resources = cache.parse(texts(&files)).unwrap_or_default();
    let read_again = began.elapsed();
    let second = Snapshot::compile(2, &resources, &Options::default()).unwrap_or_default();
    let (registry, reused) = second.registry.reusing(&snapshot.registry);
    let again = began.elapsed();
    let reading = cache.last();
    drop((resources, second, registry, yaml));

    println!(
        "{services} services, {services} VirtualServices, {services} DestinationRules, {WORKLOADS} workloads"
    );
    println!("read      {parsed:>10.1?}");
    println!("compile   {compiled:>10.1?}");
    println!(
        "change    {again:>10.1?}  (read {read_again:.1?}: {} of {} files; {reused} services stay)",
        reading.read,
        reading.read + reading.reused
    );
    println!(
        "resident  {:>7} kB more than before, {} services in force",
        resident_kb().saturating_sub(before_kb),
        snapshot.registry.services.len()
    );
}

/// Names and texts.
fn texts(files: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    (files.iter()).map(|(name, text)| (name.as_str(), text.as_str()))
}

fn configuration(services: usize) -> String {
    let mut yaml = String::new();
    for i in 0..WORKLOADS {
        let _ = write!(
            yaml,
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: w{i}}}\n\
             spec: {{address: 10.1.{}.{}, labels: {{group: g{}, version: v{}}}}}\n",
            i / 250,
            i % 250 + 1,
            i / 2,
            i % 2 + 1
        );
    }
    for i in 0..services {
        let (high, low) = (i / 250, i % 250 + 1);
        let group = i % (WORKLOADS / 2);
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}}}\n\
             spec: {{clusterIP: 10.96.{high}.{low}, selector: {{group: g{group}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: s{i}}}\n\
             spec: {{host: s{i}, trafficPolicy: {{outlierDetection: {{maxEjectionPercent: 50}}}}, \
             subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: s{i}}}\n\
             spec: {{hosts: [s{i}], http: [{{match: [{{headers: {{end-user: {{exact: jason}}}}}}, {{uri: {{prefix: /v2}}}}], \
             route: [{{destination: {{host: s{i}, subset: v2}}}}]}}, \
             {{route: [{{destination: {{host: s{i}, subset: v1}}, weight: 90}}, {{destination: {{host: s{i}, subset: v2}}, weight: 10}}], timeout: 3s}}]}}\n"
        );
    }
    yaml
}

/// Resident memory of this process, in kB (proc(5), `VmRSS`).
fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.unwrap_or(0)
}
