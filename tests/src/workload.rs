//! Workloads: network namespaces with an IPv4 and an IPv6 address.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, Outcome, Place, Process, binary, outcome};
use crate::wait::wait_until;

/// How long a server may take until it listens.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A node of the laboratory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// The first node.
    A,
    /// The second node.
    B,
    /// Neither: a machine on the same wire that has no agent.
    Outside,
}

impl Node {
    /// Name, as given to `mesh-agent --node`.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Outside => "outside",
        }
    }

    /// Number within addresses.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::Outside => 3,
        }
    }
}

/// A network namespace on a node, in which unmodified programs run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Name of the workload.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Its node.
    pub node: Node,
    /// Name of the network namespace, as `ip netns` lists it.
    pub netns: String,
    /// Address.
    pub v4: Ipv4Addr,
    /// Address.
    pub v6: Ipv6Addr,
    /// Labels of its WorkloadEntry.
    pub labels: BTreeMap<String, String>,
    /// Annotations of its WorkloadEntry, beside those that place it.
    pub annotations: BTreeMap<String, String>,
    pub(crate) cgroup: PathBuf,
    pub(crate) folder: PathBuf,
    /// Our resolv.conf and nsswitch.conf.
    pub(crate) files: Vec<(PathBuf, &'static str)>,
}

impl Workload {
    /// The same workload in another Kubernetes namespace than `default`.
    #[must_use]
    pub fn in_namespace(self, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            ..self
        }
    }

    /// The same workload with an annotation more.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The network namespace as a file.
    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }

    /// The same workload as seen by a process in a control group below that of
    /// the node: a container of a pod, a unit of the host.
    ///
    /// # Panics
    ///
    /// Where the group cannot be made.
    #[must_use]
    pub fn in_cgroup(&self, below: &str) -> Self {
        let cgroup = self.cgroup.join(below);
        std::fs::create_dir_all(&cgroup)
            .unwrap_or_else(|error| panic!("{}: {error}", cgroup.display()));
        Self {
            cgroup,
            ..self.clone()
        }
    }

    /// The control group of its processes.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Service account: the label `app`, or the name.
    pub fn service_account(&self) -> &str {
        self.labels.get("app").unwrap_or(&self.name)
    }

    /// A command in the workload. A name of the project's own programs
    /// (`bookinfo`) is looked for among them, any other in `PATH`.
    ///
    /// # Panics
    ///
    /// Where the workload's namespace is gone.
    pub fn command(&self, program: &str) -> Command {
        let own = binary(program);
        let program = if own.is_file() {
            own
        } else {
            PathBuf::from(program)
        };
        let place = Place {
            cgroup: &self.cgroup,
            netns: Some(&self.netns_path()),
            files: &self.files,
        };
        command::command(&program, &place)
            .unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    /// Runs a program in the workload and waits for it.
    ///
    /// # Panics
    ///
    /// Where it cannot be started.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Outcome {
        outcome(self.command(program).args(arguments))
            .unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    /// Starts a server in the workload, and waits until it listens on `port`.
    ///
    /// # Panics
    ///
    /// With what it said, where it does not listen in time.
    pub fn serve<S: AsRef<OsStr>>(&self, port: u16, program: &str, arguments: &[S]) -> Process {
        let log = self.folder.join(format!("{}-{port}.log", self.name));
        let mut process = Process::spawn(self.command(program).args(arguments), log)
            .unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
        let listens = wait_until(LISTEN_TIMEOUT, || {
            process.listens_on(port) || !process.is_running()
        });
        assert!(
            listens && process.is_running(),
            "{}: {program} does not listen on port {port}: {}",
            self.name,
            process.log()
        );
        process
    }

    /// Starts an HTTP server that speaks TLS itself, with a certificate of its own for the workload's
    /// address: the server, and the file of the certificate, whose subject is `CN = own`.
    ///
    /// # Panics
    ///
    /// Where openssl fails.
    pub fn serve_tls(&self, port: u16) -> (Process, String) {
        let [certificate, key] =
            ["own.pem", "own.key"].map(|name| self.file(name, "").display().to_string());
        let make = format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} \
             -out {certificate} -days 1 -subj /CN=own -addext subjectAltName=IP:{} 2>&1",
            self.v4
        );
        self.run("sh", &["-c", &make]).success();
        let port_text = port.to_string();
        let arguments = [
            "s_server",
            "-www",
            "-accept",
            &port_text,
            "-cert",
            &certificate,
            "-key",
            &key,
        ];
        (self.serve(port, "openssl", &arguments), certificate)
    }

    /// A file of the laboratory for this workload, with this content.
    ///
    /// # Panics
    ///
    /// Where it cannot be written.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.join(format!("{}-{name}", self.name));
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// The packet filter's rules: `iptables-save`, `ip6tables-save` and `nft list ruleset`.
    pub fn packet_filter(&self) -> String {
        ["iptables-save", "ip6tables-save", "nft"]
            .into_iter()
            .map(|program| {
                let arguments: &[&str] = if program == "nft" {
                    &["list", "ruleset"]
                } else {
                    &[]
                };
                // iptables-save dates its output in comments.
                self.run(program, arguments)
                    .success()
                    .lines()
                    .filter(|line| !line.starts_with('#'))
                    .collect::<Vec<_>>()
                    .join("\n")
            })
            .collect::<Vec<_>>()
            .join("\n--\n")
    }
}
