//! Programs that move what they receive by splice(2), as proxies do, never see bytes that were handed over:
//! by default they are none the wiser.

use std::time::Duration;

use mesh_tests::{Node, Process, ServicePort, Workload, service, wait_until, workload_entries};

use crate::short_circuit::{Pair, VIP, pair};

/// Moves bytes as Go's `io.Copy` does.
const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/short_circuit/proxy.py");
/// Where the proxy is.
const PROXY_VIP: &str = "10.96.0.41";
/// Where it listens.
const PORT: u16 = 7100;
/// How much goes each way.
const TEN_MEBIBYTES: u64 = 10 << 20;

/// `proxy` is behind a service, and the server of the pair behind the proxy.
struct Proxied {
    proxy: Workload,
    pair: Pair,
}

impl Proxied {
    fn start(direct: bool) -> Self {
        let pair = pair(direct, "auto");
        let proxy = pair
            .lab
            .workload(Node::A, "proxy", &[("app", "proxy")])
            .annotated("undermesh.io/direct", if direct { "true" } else { "false" });
        let port = ServicePort {
            name: "tcp",
            port: 80,
            target: PORT,
        };
        let proxied = service("proxy", 41, &[port]);
        pair.lab.configure("proxy.yaml", &proxied);
        let all = [&pair.client, &pair.server, &proxy];
        let entries = workload_entries(&all);
        pair.lab.configure("workloads.yaml", &entries);
        let enrolled = wait_until(Duration::from_secs(5), || {
            let workloads = pair.agent.meshctl_json(&["workloads"]);
            let all = workloads.as_array().cloned().unwrap_or_default();
            all.len() == 3 && all.iter().all(|workload| workload["state"] == "enrolled")
        });
        assert!(enrolled, "{}", pair.agent.log());
        Self { proxy, pair }
    }

    /// Ten mebibytes pass each way at once, over both hops, and are what was sent.
    fn carries(&self, direct: bool) {
        let said = self.pair.run("ten", PROXY_VIP).success();
        assert_eq!(said, "equal\n", "direct: {direct}");
        let flows = self.pair.agent.meshctl_json(&["flows"]);
        let flows = flows.as_array().cloned().unwrap_or_default();
        let verdict = if direct { "direct" } else { "proxy" };
        let large = flows.iter().filter(|flow| {
            flow["verdict"] == verdict && flow["bytes_sent"].as_u64() >= Some(TEN_MEBIBYTES)
        });
        // Both hops, at both ends.
        assert_eq!(large.count(), 4, "{flows:?}");
    }
}

#[test]
fn a_proxy_that_copies_as_go_does_works_by_default() {
    for direct in [false, true] {
        let proxied = Proxied::start(direct);
        let port = PORT.to_string();
        let _process = proxied.proxy.serve(PORT, "python3", &[COPY, &port, VIP]);
        proxied.carries(direct);
    }
}

#[test]
fn haproxy_that_splices_works_by_default() {
    // By the first alone it seldom does it: where it finds that one side streams.
    let options = ["splice-auto", "splice-request", "splice-response"];
    let options: String = options.map(|name| format!("  option {name}\n")).concat();
    for direct in [false, true] {
        let proxied = Proxied::start(direct);
        let (proxy, statistics) = (&proxied.proxy, proxied.proxy.file("haproxy.sock", ""));
        let settings = format!(
            "global\n  stats socket {}\n\
             defaults\n  mode tcp\n{options}  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\n\
             listen proxy\n  bind 0.0.0.0:{PORT}\n  server behind {VIP}:80\n",
            statistics.display()
        );
        let settings = proxy.file("haproxy.cfg", &settings).display().to_string();
        let _process: Process = proxy.serve(PORT, "haproxy", &["-db", "-f", &settings]);
        proxied.carries(direct);
        // It did what the options say.
        let spliced = spliced_bytes(proxy, &statistics.display().to_string());
        assert!(spliced > TEN_MEBIBYTES, "{spliced} bytes by splice(2)");
    }
}

/// Asks HAProxy at its statistics socket what it has sent by splice(2).
const SPLICED: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"show info\n")
lines = dict(line.split(": ", 1) for line in s.makefile().read().splitlines() if ": " in line)
# By this name in HAProxy 2.3 to 2.8.
print(next(value for name, value in lines.items() if name in ("TotalSplicedBytesOut", "TotalSplicdedBytesOut")))
"#;

fn spliced_bytes(proxy: &Workload, socket: &str) -> u64 {
    let said = proxy
        .run("/usr/bin/python3", &["-c", SPLICED, socket])
        .success();
    said.trim().parse().unwrap_or_else(|_| panic!("{said}"))
}

#[test]
fn an_application_that_reads_by_splice_gets_every_byte_by_default() {
    for direct in [false, true] {
        let pair = pair(direct, "auto");
        assert_eq!(pair.sees("ten-by-splice"), "equal\n", "direct: {direct}");
    }
}
