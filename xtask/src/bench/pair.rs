//! A client and a server in namespaces of their own, with a cable between them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use mesh_tests::{Lab, Node, Process, Workload, wait_until};

/// Where nginx listens.
pub const HTTP_PORT: u16 = 8080;
/// Where iperf3 listens.
pub const BULK_PORT: u16 = 5201;
/// The port of the service whose target is nginx.
pub const HTTP_SERVICE_PORT: u16 = 80;

/// Body of every answer, bytes.
const BODY_BYTES: usize = 128;
/// How long the way to the server may take to come up.
const LIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client, a server, and how the one reaches the other.
pub struct Pair {
    pub client: Workload,
    pub server: Workload,
    /// Where the client sends its requests.
    pub http: SocketAddr,
    /// Where the client sends a stream.
    pub bulk: SocketAddr,
    /// Pids of the proxies on the way.
    pub proxies: Vec<u32>,
    processes: Vec<Process>,
}

impl Pair {
    /// Makes both namespaces and starts nginx and iperf3. `name` becomes the
    /// first part of their names.
    pub fn new(lab: &Lab, name: &str, client: Node, server: Node) -> Result<Self> {
        let workload = |node, side: &str| {
            let name = format!("{name}-{side}");
            lab.workload(node, &name, &[("app", &name)])
        };
        let client = workload(client, "client");
        let server = workload(server, "server");
        lab.cable(&client, &server)?;
        for place in [&client, &server] {
            prepare(place)?;
        }
        let processes = vec![
            nginx(lab, &server)?,
            server.serve(BULK_PORT, "iperf3", &["--server"]),
        ];
        Ok(Self {
            http: SocketAddr::new(server.v4.into(), HTTP_PORT),
            bulk: SocketAddr::new(server.v4.into(), BULK_PORT),
            client,
            server,
            proxies: Vec::new(),
            processes,
        })
    }

    /// From now on the client goes by the address of a service.
    pub fn by_service(&mut self, vip: Ipv4Addr) {
        self.http = SocketAddr::new(vip.into(), HTTP_SERVICE_PORT);
        self.bulk = SocketAddr::new(vip.into(), BULK_PORT);
    }

    /// Proxies of its own, which end with it.
    pub fn with_proxies(&mut self, processes: Vec<Process>) {
        self.proxies = processes.iter().map(Process::id).collect();
        self.processes.extend(processes);
    }

    /// Waits until the server answers, as it must through whatever is on the way.
    pub fn warm_up(&self) -> Result<()> {
        let url = format!("http://{}/", self.http);
        let mut last = None;
        let answers = wait_until(LIVE_TIMEOUT, || {
            let reply = self.client.curl(&[&url]);
            let good = reply.status == 200 && reply.body.len() == BODY_BYTES;
            last = Some(reply);
            good
        });
        if !answers {
            bail!("{url} does not answer: {last:?}");
        }
        Ok(())
    }
}

/// Settings of a namespace that all variants share.
fn prepare(place: &Workload) -> Result<()> {
    let script = "cd /proc/sys/net/ipv4 && echo reno > tcp_congestion_control \
                  && echo 10240 65535 > ip_local_port_range";
    let said = place.run("sh", &["-c", script]);
    if said.code != 0 {
        bail!("cannot prepare {}: {}", place.name, said.stderr.trim());
    }
    Ok(())
}

fn nginx(lab: &Lab, place: &Workload) -> Result<Process> {
    let folder = lab.folder().join(format!("{}-nginx", place.name));
    std::fs::create_dir_all(&folder)?;
    let folder = folder.to_string_lossy().into_owned();
    let configuration = place.file(
        "nginx.conf",
        &format!(
            "daemon off; user root; worker_processes 1;\n\
             pid {folder}/pid; error_log stderr crit;\n\
             events {{ worker_connections 18000; }}\n\
             http {{\n  \
               access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;\n  \
               client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n  \
               fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n  \
               server {{ listen {HTTP_PORT} backlog=4096; location / {{ return 200 \"{}\"; }} }}\n\
             }}\n",
            "x".repeat(BODY_BYTES)
        ),
    );
    Ok(place.serve(
        HTTP_PORT,
        "nginx",
        &["-e", "stderr", "-c", &configuration.to_string_lossy()],
    ))
}
