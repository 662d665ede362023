//! Two nodes, a wire between them, and the removal of everything.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::workload::{Node, Workload};
use crate::{cgroup, kernel};

/// First part of the name of everything that a lab makes.
const PREFIX: &str = "um-";

/// Search list of every workload, as Kubernetes writes it for `default`.
const SEARCH: &str = "default.svc.cluster.local svc.cluster.local cluster.local";

/// Number of the name server, which every workload's resolv.conf names. Nothing
/// is there unless a test puts a workload there ([`Lab::nameserver`]).
const NAMESERVER_HOST: u8 = 53;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Two nodes on one wire. Everything is removed when this is dropped.
pub struct Lab {
    name: String,
    folder: PathBuf,
    cgroup: PathBuf,
    next_host: AtomicU32,
}

impl Lab {
    /// Makes the nodes and the wire.
    ///
    /// # Panics
    ///
    /// With one line, where the machine does not let us: the caller's test then fails.
    pub fn new() -> Self {
        Self::create().unwrap_or_else(|error| panic!("no laboratory here: {error:#}"))
    }

    /// Makes the nodes and the wire.
    pub fn create() -> Result<Self> {
        kernel::check()?;
        kernel::end_with_parent();
        sweep()?;
        let name = format!(
            "{PREFIX}{}-{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let lab = Self {
            folder: std::env::temp_dir().join(&name),
            cgroup: cgroup::create(&kernel::cgroup2()?, &name)?,
            name,
            next_host: AtomicU32::new(1),
        };
        fs::create_dir_all(lab.config())?;
        fs::create_dir_all(lab.ca())?;
        for group in ["a", "b", "outside", "agent-a", "agent-b"] {
            cgroup::create(&lab.cgroup, group)?;
        }
        lab.wire()?;
        Ok(lab)
    }

    /// Name of the lab, with which the names of all its parts begin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder of the lab: logs, sockets, configuration.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The configuration directory of both agents.
    pub fn config(&self) -> PathBuf {
        self.folder.join("mesh")
    }

    /// The certificate authority's directory, which both agents share.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca")
    }

    /// The control group of a node's workloads.
    pub fn cgroup(&self, node: Node) -> PathBuf {
        self.cgroup.join(node.name())
    }

    /// The control group of a node's agent.
    pub fn agent_cgroup(&self, node: Node) -> PathBuf {
        self.cgroup.join(format!("agent-{}", node.name()))
    }

    /// Where a node's agent pins its programs and maps.
    pub fn bpffs(&self, node: Node) -> PathBuf {
        bpffs(&self.name).join(node.name())
    }

    /// Writes a file of the configuration, whole or not at all.
    ///
    /// # Panics
    ///
    /// Where it cannot be written.
    pub fn configure(&self, file: &str, text: &str) {
        let write = || -> std::io::Result<()> {
            let draft = self.folder.join("draft");
            fs::write(&draft, text)?;
            fs::rename(draft, self.config().join(file))
        };
        write().unwrap_or_else(|error| panic!("cannot write {file}: {error}"));
    }

    /// Removes a file of the configuration.
    ///
    /// # Panics
    ///
    /// Where it is not there.
    pub fn unconfigure(&self, file: &str) {
        fs::remove_file(self.config().join(file))
            .unwrap_or_else(|error| panic!("cannot remove {file}: {error}"));
    }

    /// Makes a workload with these labels. Its addresses are the next free ones.
    ///
    /// # Panics
    ///
    /// Where its namespace cannot be made.
    pub fn workload(&self, node: Node, name: &str, labels: &[(&str, &str)]) -> Workload {
        let mut host = self.next_host.fetch_add(1, Ordering::Relaxed);
        if host == u32::from(NAMESERVER_HOST) {
            host = self.next_host.fetch_add(1, Ordering::Relaxed);
        }
        let host = u8::try_from(host).expect("a lab has fewer than 255 workloads");
        self.workload_at(node, name, labels, host)
    }

    /// The machine, outside of the mesh, that the workloads' resolv.conf names.
    ///
    /// # Panics
    ///
    /// Where its namespace cannot be made.
    pub fn nameserver(&self) -> Workload {
        self.workload_at(Node::Outside, "nameserver", &[], NAMESERVER_HOST)
    }

    /// Makes a workload with the addresses 10.77.<node>.`host` and fd77::<node>:`host`.
    ///
    /// # Panics
    ///
    /// Where its namespace cannot be made.
    pub fn workload_at(
        &self,
        node: Node,
        name: &str,
        labels: &[(&str, &str)],
        host: u8,
    ) -> Workload {
        let netns = format!("{}-{name}", self.name);
        let (v4, v6) = addresses(node, host);
        self.namespace(&netns, node, host, v4, v6)
            .unwrap_or_else(|error| panic!("cannot make the workload {name}: {error:#}"));
        let labels: BTreeMap<_, _> = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Workload {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            node,
            netns,
            v4,
            v6,
            labels,
            annotations: BTreeMap::new(),
            cgroup: self.cgroup(node),
            folder: self.folder.clone(),
            files: vec![
                (self.folder.join("resolv.conf"), "/etc/resolv.conf"),
                (self.folder.join("nsswitch.conf"), "/etc/nsswitch.conf"),
            ],
        }
    }

    /// A cable of their own between two workloads, which all takes that they
    /// send to each other by IPv4: no bridge is on the way.
    pub fn cable(&self, one: &Workload, other: &Workload) -> Result<()> {
        ip_batch(
            &one.netns,
            &format!(
                "link add cable type veth peer name cable netns {}\n",
                other.netns
            ),
        )?;
        for (here, there) in [(one, other), (other, one)] {
            ip_batch(
                &here.netns,
                &format!(
                    "addr add {here}/32 dev cable\n\
                     link set cable up\n\
                     route add {there}/32 dev cable src {here}\n",
                    here = here.v4,
                    there = there.v4,
                ),
            )?;
        }
        Ok(())
    }

    /// Name of the namespace that holds the bridges and the wire between them.
    pub fn wire_netns(&self) -> String {
        format!("{}-wire", self.name)
    }

    /// Bridges `br-a`, `br-b` and `br-outside`, and the cables `a-b` (seen by
    /// all that passes between the nodes) and `a-outside`.
    fn wire(&self) -> Result<()> {
        let netns = self.wire_netns();
        let (v4, v6) = addresses(Node::Outside, 254);
        fs::write(
            self.folder.join("resolv.conf"),
            format!(
                "nameserver {}\nsearch {SEARCH}\noptions ndots:5 timeout:2 attempts:2\n",
                addresses(Node::Outside, NAMESERVER_HOST).0
            ),
        )?;
        fs::write(self.folder.join("nsswitch.conf"), "hosts: files dns\n")?;
        ip(&["netns", "add", &netns])?;
        ip_batch(
            &netns,
            &format!(
                "link set lo up\n\
                 link add br-a type bridge\n\
                 link add br-b type bridge\n\
                 link add br-outside type bridge\n\
                 link add a-b type veth peer name b-a\n\
                 link add a-outside type veth peer name outside-a\n\
                 link set a-b master br-a\n\
                 link set b-a master br-b\n\
                 link set a-outside master br-a\n\
                 link set outside-a master br-outside\n\
                 addr add {v4}/16 dev br-outside\n\
                 addr add {v6}/64 dev br-outside nodad\n\
                 link set br-a up\nlink set br-b up\nlink set br-outside up\n\
                 link set a-b up\nlink set b-a up\nlink set a-outside up\nlink set outside-a up\n"
            ),
        )
    }

    fn namespace(
        &self,
        netns: &str,
        node: Node,
        host: u8,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
    ) -> Result<()> {
        let (wire, port) = (self.wire_netns(), format!("p{}-{host}", node.name()));
        let (gateway4, gateway6) = addresses(Node::Outside, 254);
        ip(&["netns", "add", netns])?;
        ip_batch(
            &wire,
            &format!(
                "link add {port} type veth peer name eth0 netns {netns}\n\
                 link set {port} master br-{}\n\
                 link set {port} up\n",
                node.name()
            ),
        )?;
        ip_batch(
            netns,
            &format!(
                "link set lo up\n\
                 addr add {v4}/16 dev eth0\n\
                 addr add {v6}/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via {gateway4}\n\
                 route add ::/0 via {gateway6}\n"
            ),
        )
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = clean_up(&self.name) {
            eprintln!("cannot remove all of {}: {error:#}", self.name);
        }
    }
}

/// Removes labs whose process is gone without having done so.
pub fn sweep() -> Result<()> {
    // Tests begin at once, and all of them would find the same to remove.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut names: Vec<String> = Vec::new();
    let folders = [
        kernel::cgroup2()?,
        std::env::temp_dir(),
        kernel::BPFFS.into(),
        "/run/netns".into(),
    ];
    for entry in folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten()
    {
        if let Some(lab) = entry.file_name().to_str().and_then(abandoned) {
            names.push(lab);
        }
    }
    names.sort();
    names.dedup();
    names.iter().try_for_each(|name| clean_up(name))
}

/// The lab that a name belongs to, where the process that made it is gone.
fn abandoned(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (pid, number) = (
        parts.next()?.parse::<u32>().ok()?,
        parts.next()?.parse::<u32>().ok()?,
    );
    (!Path::new(&format!("/proc/{pid}")).exists()).then(|| format!("{PREFIX}{pid}-{number}"))
}

/// Ends everything that runs in the lab of this name and removes all of it.
fn clean_up(name: &str) -> Result<()> {
    cgroup::remove(&kernel::cgroup2()?.join(name)).context("cannot remove the control groups")?;
    for hierarchy in kernel::cgroup1()? {
        cgroup::remove_folders(&hierarchy.join(name))
            .context("cannot remove control groups of version 1")?;
    }
    let of_this_lab = format!("{name}-");
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let netns = entry.file_name().to_string_lossy().into_owned();
        if netns.starts_with(&of_this_lab) {
            ip(&["netns", "delete", &netns])?;
        }
    }
    for folder in [bpffs(name), std::env::temp_dir().join(name)] {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn bpffs(name: &str) -> PathBuf {
    Path::new(kernel::BPFFS).join(name)
}

/// 10.77.<node>.<host> and fd77::<node>:<host>, in the private ranges of RFC 1918 and RFC 4193.
fn addresses(node: Node, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let node = node.number();
    (
        Ipv4Addr::new(10, 77, node, host),
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, node.into(), host.into()),
    )
}

fn ip(arguments: &[&str]) -> Result<()> {
    succeed(Command::new("ip").args(arguments))
}

/// Runs many `ip` commands in a namespace at the price of one process.
fn ip_batch(netns: &str, lines: &str) -> Result<()> {
    let script = std::env::temp_dir().join(format!("{netns}.batch"));
    fs::write(&script, lines)?;
    let result = succeed(
        Command::new("ip")
            .args(["-netns", netns, "-batch"])
            .arg(&script),
    );
    fs::remove_file(script)?;
    result
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .context("cannot start ip (package iproute2)")?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labs_of_dead_processes_are_abandoned() {
        let own = format!("um-{}-3-sleep", process::id());
        assert_eq!(abandoned(&own), None);
        // Larger than any pid (PID_MAX_LIMIT is 4 million).
        assert_eq!(
            abandoned("um-99999999-3-reviews-v1").as_deref(),
            Some("um-99999999-3")
        );
        assert_eq!(abandoned("um-99999999"), None);
        assert_eq!(abandoned("um-web-1"), None);
        assert_eq!(abandoned("other"), None);
    }
}
