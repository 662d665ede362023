//! The stage: two nodes, the bookinfo application, an agent on each node.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_tests::{Agent, Lab, Node, Process, Workload, binary, wait_until};

use super::say;
use crate::shell;

/// How long the mesh may take until the first answer, or until a change is live.
const LIVE_TIMEOUT: Duration = Duration::from_secs(10);

const WORKLOADS: &str = "examples/bookinfo/mesh/workloads.yaml";
const SERVICES: &str = "examples/bookinfo/mesh/services.yaml";

// Fields are dropped in this order: agents first, the lab last.
pub struct Stage {
    pub a: Agent,
    pub b: Agent,
    _servers: Vec<Process>,
    pub sleep: Workload,
    pub reviews_v1: Workload,
    pub outside: Workload,
    pub lab: Lab,
}

/// Builds the stage, and returns when `sleep` reaches `reviews` by name.
pub fn set_up() -> Result<Stage> {
    say::title("Two nodes, and an application that knows nothing of a mesh");
    let lab = Lab::create()?;
    let sleep = lab.workload_at(Node::A, "sleep", &[], 1);
    let productpage = lab.workload_at(Node::A, "productpage-v1", &[], 2);
    let reviews_v1 = lab.workload_at(Node::B, "reviews-v1", &[], 3);
    let reviews_v2 = lab.workload_at(Node::B, "reviews-v2", &[], 4);
    let ratings = lab.workload_at(Node::B, "ratings-v1", &[], 5);
    let details = lab.workload_at(Node::B, "details-v1", &[], 6);
    let outside = lab.workload_at(Node::Outside, "outside", &[], 7);
    let servers = vec![
        productpage.serve(9080, "bookinfo", &["productpage"]),
        reviews_v1.serve(9080, "bookinfo", &["reviews", "--version", "v1"]),
        reviews_v2.serve(9080, "bookinfo", &["reviews", "--version", "v2"]),
        ratings.serve(9080, "bookinfo", &["ratings"]),
        details.serve(9080, "bookinfo", &["details"]),
    ];
    say::doing(
        "node a runs sleep and productpage; node b runs reviews v1 and v2, ratings and details",
    );
    say::doing("a machine outside of the mesh is on the same wire");

    // The example's namespaces are called as its workloads; ours begin with the lab's name.
    let workloads = read(WORKLOADS)?.replace(
        "undermesh.io/netns: ",
        &format!("undermesh.io/netns: {}-", lab.name()),
    );
    lab.configure("workloads.yaml", &workloads);
    lab.configure("services.yaml", &read(SERVICES)?);
    say::doing(&format!("configuration: {WORKLOADS} and {SERVICES}"));

    let start = Instant::now();
    let a = Agent::try_start(&lab, Node::A)?;
    let b = Agent::try_start(&lab, Node::B)?;
    let stage = Stage {
        a,
        b,
        _servers: servers,
        sleep,
        reviews_v1,
        outside,
        lab,
    };
    stage.until("sleep reaches reviews by name", || {
        stage.sleep.curl(&["http://reviews/"]).status == 200
    })?;
    let seconds = start.elapsed().as_secs_f32();
    say::shown(&format!(
        "both agents run and all workloads are enrolled, {seconds:.1} s after the start"
    ));
    Ok(stage)
}

impl Stage {
    /// Puts a file of the repository into the configuration directory.
    pub fn apply(&self, file: &str) -> Result<()> {
        say::command(&format!("cp {file} mesh/"));
        let name = Path::new(file).file_name().context("a file has a name")?;
        self.lab.configure(&name.to_string_lossy(), &read(file)?);
        Ok(())
    }

    /// Waits until `condition` holds; an error that says what did not come about.
    pub fn until(&self, what: &str, condition: impl FnMut() -> bool) -> Result<()> {
        if !wait_until(LIVE_TIMEOUT, condition) {
            bail!(
                "{what}: not within {LIVE_TIMEOUT:?}\nagent a: {}\nagent b: {}",
                self.a.log(),
                self.b.log()
            );
        }
        Ok(())
    }

    /// Says how to play, and waits to be ended.
    pub fn keep(&self) -> Result<()> {
        say::title("It stays, until you press Ctrl-C. In another terminal:");
        let enter = self.enter_script()?;
        let enter = enter.display();
        println!("   {enter} sleep curl http://reviews/                   as a workload");
        println!("   {enter} sleep curl http://productpage/");
        println!(
            "   {enter} outside curl http://{}:9080/           from outside",
            self.reviews_v1.v4
        );
        println!(
            "   {} --socket {} flows",
            binary_path("meshctl"),
            self.a.socket().display()
        );
        println!(
            "   {} --socket {} check",
            binary_path("meshctl"),
            self.b.socket().display()
        );
        println!(
            "   ls {}                        add, change and remove YAML",
            self.lab.config().display()
        );
        println!(
            "   bpftool map show; ls {}",
            self.lab.bpffs(Node::A).display()
        );
        println!("   tail -f {}/agent-*.log", self.lab.folder().display());
        loop {
            std::thread::park();
        }
    }

    /// A script that runs a command as a workload would: in its control group,
    /// its network namespace and with its resolv.conf.
    fn enter_script(&self) -> Result<PathBuf> {
        let path = self.lab.folder().join("as");
        let (name, folder) = (self.lab.name(), self.lab.folder().display());
        let [a, b, outside] = [Node::A, Node::B, Node::Outside]
            .map(|node| self.lab.cgroup(node).display().to_string());
        let text = format!(
            r#"#!/bin/sh
# as <workload> <command ...>
workload=$1; shift
case $workload in
  sleep|productpage-*) group={a} ;;
  outside) group={outside} ;;
  *) group={b} ;;
esac
echo $$ > "$group/cgroup.procs"
exec nsenter --net="/run/netns/{name}-$workload" unshare --mount sh -c '
  mount --bind {folder}/resolv.conf /etc/resolv.conf
  mount --bind {folder}/nsswitch.conf /etc/nsswitch.conf
  exec "$@"' sh "$@"
"#
        );
        fs::write(&path, text)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(path)
    }
}

fn binary_path(name: &str) -> String {
    let path = binary(name);
    path.canonicalize().unwrap_or(path).display().to_string()
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(shell::root().join(file)).with_context(|| format!("cannot read {file}"))
}
