//! The set-up that most tests begin with: `sleep` on node a asks `reviews`,
//! whose two versions run on node b.

use std::time::Duration;

use mesh_tests::{
    Agent, Lab, Node, Process, ServicePort, Workload, eventually, service, workload_entries,
};

/// How long the mesh may take until the first request goes through.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// What `reviews` answers.
pub const V1: &str = "{\"id\": \"v1\", \"reviews\": [\"good\", \"average\"]}";
/// The same of the second version.
pub const V2: &str = "{\"id\": \"v2\", \"reviews\": [\"good\", \"average\"]}";

/// Addresses of the service `reviews`.
pub const VIP4: &str = "10.96.0.10";
pub const VIP6: &str = "fd96::a";

// Fields are dropped in this order: agents first, the lab last.
pub struct Bookinfo {
    pub a: Agent,
    pub b: Agent,
    pub servers: Vec<Process>,
    pub sleep: Workload,
    pub v1: Workload,
    pub v2: Workload,
    pub lab: Lab,
}

impl Bookinfo {
    /// Everything enrolled and reachable.
    pub fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// The same with an echo at port 7 of both versions, and a service of it: 10.96.0.40.
    pub fn start_with_echo() -> (Self, [Process; 2]) {
        let port = ServicePort {
            name: "tcp-echo",
            port: 7,
            target: 7,
        };
        let mesh = Self::start_with(|lab| {
            let service = service("reviews-echo", 40, &[port]);
            let service = service.replace("app: reviews-echo", "app: reviews");
            lab.configure("echo.yaml", &service);
        });
        let echoes = [&mesh.v1, &mesh.v2]
            .map(|version| version.serve(7, "bookinfo", &["echo", "--listen", "[::]:7"]));
        (mesh, echoes)
    }

    /// The same with more in the lab before the agents start.
    pub fn start_with(prepare: impl FnOnce(&Lab)) -> Self {
        let lab = Lab::new();
        let sleep = lab.workload(Node::A, "sleep", &[("app", "sleep")]);
        let version = |version| {
            lab.workload(
                Node::B,
                &format!("reviews-{version}"),
                &[("app", "reviews"), ("version", version)],
            )
        };
        let (v1, v2) = (version("v1"), version("v2"));
        let servers = vec![
            v1.serve(9080, "bookinfo", &["reviews", "--version", "v1"]),
            v2.serve(9080, "bookinfo", &["reviews", "--version", "v2"]),
        ];
        lab.configure("workloads.yaml", &workload_entries(&[&sleep, &v1, &v2]));
        lab.configure(
            "reviews.yaml",
            &service(
                "reviews",
                10,
                &[ServicePort {
                    name: "http",
                    port: 80,
                    target: 9080,
                }],
            ),
        );
        prepare(&lab);
        let a = Agent::start(&lab, Node::A);
        let b = Agent::start(&lab, Node::B);
        let bookinfo = Self {
            a,
            b,
            servers,
            sleep,
            v1,
            v2,
            lab,
        };
        bookinfo.until_reachable();
        bookinfo
    }

    /// Waits until `sleep` gets an answer of `reviews` through the mesh.
    pub fn until_reachable(&self) {
        eventually(READY_TIMEOUT, "sleep reaches reviews", || {
            let reply = self.sleep.curl(&["http://reviews/"]);
            if reply.status == 200 {
                Ok(())
            } else {
                Err(format!("{reply:?}"))
            }
        });
    }
}

/// A resource of `PeerAuthentication` for namespace `default`.
pub fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\n\
         kind: PeerAuthentication\n\
         metadata: {{name: default, namespace: default}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}
