//! What a node must have before an agent can run on it. `mesh-agent run`
//! asks before it starts, `meshctl check` also without an agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::api::{CheckItem, CheckStatus};
use crate::datapath::mount_point;

/// Oldest kernel with all helpers that the programs call (`bpf_set_retval`).
const OLDEST_KERNEL: (u32, u32) = (5, 18);

/// Capabilities by name and bit (linux/capability.h).
const CAPABILITIES: [(&str, u32); 3] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_BPF", 39),
];

const SECTION: &str = "kernel";

/// All checks, for this process on this node.
pub fn run() -> Vec<CheckItem> {
    Host::default().checks()
}

/// What is missing so that an agent cannot even begin, in one line. A BPF file
/// system is not asked for: the agent mounts it.
pub fn obstacle() -> Option<String> {
    let host = Host::default();
    let needs = [
        host.kernel(),
        host.btf(),
        host.cgroup2(),
        host.capabilities(),
    ];
    let missing = needs
        .into_iter()
        .find(|item| item.status == CheckStatus::Failed)?;
    let hint = missing.hint.unwrap_or_default();
    Some(format!(
        "check failed: {}: {}; {hint}",
        missing.name, missing.detail
    ))
}

/// Where the kernel shows itself.
struct Host {
    proc: PathBuf,
    sys: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
        }
    }
}

impl Host {
    fn checks(&self) -> Vec<CheckItem> {
        vec![
            self.kernel(),
            self.btf(),
            self.bpffs(),
            self.cgroup2(),
            self.capabilities(),
        ]
    }

    fn kernel(&self) -> CheckItem {
        let name = format!("kernel is {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1);
        let path = self.proc.join("sys/kernel/osrelease");
        let release = match fs::read_to_string(&path) {
            Ok(release) => release.trim().to_owned(),
            Err(error) => return unreadable(&name, &path, &error),
        };
        match parse_release(&release) {
            Some(version) if version >= OLDEST_KERNEL => CheckItem::ok(SECTION, &name, release),
            Some(_) => CheckItem::failed(
                SECTION,
                &name,
                format!("this is {release}"),
                "boot a newer kernel: the hooks that the mesh needs are not in this one",
            ),
            None => CheckItem::warning(
                SECTION,
                &name,
                format!("cannot tell from {release:?}"),
                "compare `uname -r` by hand",
            ),
        }
    }

    fn btf(&self) -> CheckItem {
        const NAME: &str = "kernel has BTF";
        let path = self.sys.join("kernel/btf/vmlinux");
        if path.exists() {
            CheckItem::ok(SECTION, NAME, path.display().to_string())
        } else {
            CheckItem::failed(
                SECTION,
                NAME,
                format!("{} is missing", path.display()),
                "use a kernel with CONFIG_DEBUG_INFO_BTF=y (every current distribution has it)",
            )
        }
    }

    fn bpffs(&self) -> CheckItem {
        const NAME: &str = "BPF file system is mounted";
        match self.mount("bpf") {
            Ok(Some(path)) => CheckItem::ok(SECTION, NAME, path.display().to_string()),
            Ok(None) => CheckItem::failed(
                SECTION,
                NAME,
                "no mount of type bpf",
                "mount -t bpf bpf /sys/fs/bpf",
            ),
            Err(error) => unreadable(NAME, &self.mounts(), &error),
        }
    }

    fn cgroup2(&self) -> CheckItem {
        const NAME: &str = "cgroup2 is mounted";
        match self.mount("cgroup2") {
            Ok(Some(path)) => CheckItem::ok(SECTION, NAME, path.display().to_string()),
            Ok(None) => CheckItem::failed(
                SECTION,
                NAME,
                "no mount of type cgroup2",
                "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
            ),
            Err(error) => unreadable(NAME, &self.mounts(), &error),
        }
    }

    fn capabilities(&self) -> CheckItem {
        const NAME: &str = "process has its capabilities";
        let path = self.proc.join("self/status");
        let status = match fs::read_to_string(&path) {
            Ok(status) => status,
            Err(error) => return unreadable(NAME, &path, &error),
        };
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
            .unwrap_or(0);
        let (held, missing): (Vec<_>, Vec<_>) = CAPABILITIES
            .iter()
            .partition(|(_, bit)| effective & (1 << bit) != 0);
        let names = |of: &[&(&str, u32)]| {
            of.iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(" ")
        };
        if missing.is_empty() {
            CheckItem::ok(SECTION, NAME, names(&held))
        } else {
            CheckItem::failed(
                SECTION,
                NAME,
                format!("missing: {}", names(&missing)),
                "run as root, or give these capabilities to the process",
            )
        }
    }

    fn mounts(&self) -> PathBuf {
        self.proc.join("mounts")
    }

    /// The first mount point of this type of file system.
    fn mount(&self, kind: &str) -> io::Result<Option<PathBuf>> {
        let mounts = fs::read_to_string(self.mounts())?;
        Ok(mount_point(&mounts, kind))
    }
}

fn unreadable(name: &str, path: &Path, error: &io::Error) -> CheckItem {
    CheckItem::failed(
        SECTION,
        name,
        format!("cannot read {}: {error}", path.display()),
        "mount /proc and /sys, and run as root",
    )
}

/// `major.minor` of a kernel release such as `6.1.0-18-cloud-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node made of files.
    fn host(
        release: &str,
        mounts: &str,
        capabilities: &str,
        btf: bool,
    ) -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        let host = Host {
            proc: directory.path().join("proc"),
            sys: directory.path().join("sys"),
        };
        fs::create_dir_all(host.proc.join("sys/kernel")).unwrap();
        fs::create_dir_all(host.proc.join("self")).unwrap();
        fs::create_dir_all(host.sys.join("kernel/btf")).unwrap();
        fs::write(host.proc.join("sys/kernel/osrelease"), release).unwrap();
        fs::write(host.proc.join("mounts"), mounts).unwrap();
        let status = format!("Name:\tx\nCapEff:\t{capabilities}\n");
        fs::write(host.proc.join("self/status"), status).unwrap();
        if btf {
            fs::write(host.sys.join("kernel/btf/vmlinux"), "").unwrap();
        }
        (directory, host)
    }

    fn statuses(host: &Host) -> Vec<CheckStatus> {
        host.checks().iter().map(|item| item.status).collect()
    }

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
        cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n\
        bpf /sys/fs/bpf bpf rw 0 0\n";

    #[test]
    fn a_good_node_passes_also_with_a_hybrid_layout() {
        let (_directory, host) = host("6.18.0-1-amd64\n", HYBRID, "000001ffffffffff", true);
        assert_eq!(statuses(&host), [CheckStatus::Ok; 5]);
        let cgroup = host.mount("cgroup2").unwrap().unwrap();
        assert_eq!(cgroup, Path::new("/sys/fs/cgroup/uni fied"));
    }

    #[test]
    fn a_bad_node_fails_everywhere_and_says_what_to_do() {
        let (_directory, host) = host("5.10.0\n", "proc /proc proc rw 0 0\n", "0", false);
        let items = host.checks();
        assert!(
            items
                .iter()
                .all(|item| item.status == CheckStatus::Failed && item.hint.is_some())
        );
        assert_eq!(
            items[4].detail,
            "missing: CAP_NET_ADMIN CAP_SYS_ADMIN CAP_BPF"
        );
    }

    #[test]
    fn nothing_to_read_is_a_failure_not_a_panic() {
        let directory = tempfile::tempdir().unwrap();
        let host = Host {
            proc: directory.path().join("none"),
            sys: directory.path().join("none"),
        };
        assert_eq!(statuses(&host), [CheckStatus::Failed; 5]);
    }

    #[test]
    fn releases() {
        assert_eq!(parse_release("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(parse_release("6.18"), Some((6, 18)));
        assert_eq!(parse_release("6.9-rc1+"), Some((6, 9)));
        assert_eq!(parse_release("linux"), None);
    }
}
