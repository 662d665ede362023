//! gRPC's standard interoperability cases, on one node and between two, in the
//! service's declared protocol and in a recognised one.

use std::time::Duration;

use mesh_tests::{Agent, Lab, Node, ServicePort, eventually, service, workload_entries};

const SERVER: &str = concat!(
    include_str!("../../data/grpc/messages.py"),
    include_str!("../../data/grpc/server.py")
);
const CLIENT: &str = concat!(
    include_str!("../../data/grpc/messages.py"),
    include_str!("../../data/grpc/client.py")
);
const PYTHON: &str = "/usr/bin/python3";
/// Cases of the client.
const CASES: usize = 15;

#[test]
fn the_standard_cases_of_grpc_pass() {
    let lab = Lab::new();
    let server = lab.workload(Node::B, "server", &[("app", "server")]);
    let near = lab.workload(Node::B, "near", &[]);
    let far = lab.workload(Node::A, "far", &[]);
    let script = server.file("server.py", SERVER);
    let _server = server.serve(50051, PYTHON, &[&*script.to_string_lossy(), "[::]:50051"]);
    lab.configure("workloads.yaml", &workload_entries(&[&near, &far, &server]));
    let ports = [("grpc", 50051), ("anything", 50052)].map(|(name, port)| ServicePort {
        name,
        port,
        target: 50051,
    });
    lab.configure("services.yaml", &service("server", 30, &ports));
    let _agents = [Agent::start(&lab, Node::A), Agent::start(&lab, Node::B)];
    for client in [&near, &far] {
        let script = client.file("client.py", CLIENT);
        let script = script.to_string_lossy();
        eventually(Duration::from_secs(10), "the mesh is there", || {
            let said = client.run(
                "curl",
                &["-s", "--http2-prior-knowledge", "http://server:50051/"],
            );
            if said.code == 0 {
                Ok(())
            } else {
                Err(format!("{said:?}"))
            }
        });
        for target in ["server:50051", "server:50052"] {
            let said = client.run(PYTHON, &[&*script, target]).success();
            let passed = said.lines().filter(|line| line.ends_with(" passed"));
            assert_eq!(
                passed.count(),
                CASES,
                "{} to {target}:\n{said}",
                client.name
            );
        }
    }
}
