//! The machine's root: an initramfs of this machine's own programs with the
//! libraries that they need, the kernel's modules, and the project's programs.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Kernel, fresh, quietly, said};
use crate::shell;

/// What the laboratory and the tests run.
const PROGRAMS: &[&str] = &[
    "bash",
    "bpftool",
    "cat",
    "chmod",
    "cp",
    "curl",
    "depmod",
    "dig",
    "dnsmasq",
    "getent",
    "head",
    "ip",
    "ip6tables-save",
    "iptables-save",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "modprobe",
    "mount",
    "mv",
    "nft",
    "nghttp",
    "openssl",
    "/usr/bin/python3",
    "redis-cli",
    "redis-server",
    "rm",
    "setpriv",
    "sh",
    "sleep",
    "ss",
    "sysctl",
    "tail",
    "tcpdump",
    "timeout",
    "touch",
    "wc",
];

/// Folders and files as they are here, where they are here.
const DATA: &[&str] = &[
    "/etc/group",
    "/etc/hosts",
    "/etc/iproute2",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/openssl.cnf",
    "/usr/lib/ssl",
    "/usr/share/dns",
];

/// Modules that the laboratory's network needs, below `kernel/`.
const MODULES: &[&str] = &[
    "crypto",
    "lib",
    "net",
    "drivers/net/veth.ko",
    "drivers/net/tun.ko",
    "drivers/net/dummy.ko",
];

/// The project's programs; `target/bpf` is looked for by the tests themselves.
const OWN: &[&str] = &["mesh-agent", "meshctl", "bookinfo"];

/// Where they are in the machine.
const BIN: &str = "/undermesh";

/// Makes the image; the machine runs `tests` with `arguments`.
pub fn make(folder: &Path, kernel: &Kernel, tests: &Path, arguments: &[String]) -> Result<PathBuf> {
    let root = Root::new(folder.join("root"))?;
    for program in PROGRAMS {
        match shell::find(program) {
            Some(path) => root.program(&path)?,
            None => said(format!("{program} is not here, so it is not in the image")),
        }
    }
    root.python()?;
    for path in DATA {
        root.tree(Path::new(path))?;
    }
    for (name, text) in [("resolv.conf", ""), ("nsswitch.conf", "hosts: files dns\n")] {
        fs::write(root.place(&Path::new("/etc").join(name))?, text)?;
    }
    root.modules(kernel)?;
    for name in OWN {
        root.own(&mesh_tests::binary(name), name)?;
    }
    root.own(tests, "tests")?;
    for name in ["target/bpf/undermesh.o", "tests/data"] {
        root.tree(&shell::root().join(name))?;
    }
    root.init(arguments)?;
    root.pack(&folder.join("image.cpio"))
}

struct Root {
    folder: PathBuf,
    copied: std::cell::RefCell<HashSet<PathBuf>>,
}

impl Root {
    fn new(folder: PathBuf) -> Result<Self> {
        fresh(&folder)?;
        for name in ["dev", "proc", "run", "sys", "tmp", "root", "etc", "var/log"] {
            fs::create_dir_all(folder.join(name))?;
        }
        // Where /usr is merged, /bin and the like are links into it.
        for name in ["bin", "sbin", "lib", "lib64"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
                fs::create_dir_all(folder.join(&target))?;
                symlink(target, folder.join(name))?;
            }
        }
        Ok(Self {
            folder,
            copied: Default::default(),
        })
    }

    /// Where a path of the machine is to be made.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let place = self.folder.join(path.strip_prefix("/").unwrap_or(path));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(place)
    }

    /// A file, and what it is a link to.
    fn file(&self, path: &Path) -> Result<()> {
        if !self.copied.borrow_mut().insert(path.to_owned()) {
            return Ok(());
        }
        let place = self.place(path)?;
        if place.symlink_metadata().is_ok() {
            return Ok(());
        }
        match fs::read_link(path) {
            Ok(target) => {
                symlink(&target, &place)?;
                let target = path.parent().unwrap_or(path).join(target);
                self.tree(&target.canonicalize().unwrap_or(target))
            }
            Err(_) => fs::copy(path, &place)
                .map(drop)
                .with_context(|| format!("cannot copy {}", path.display())),
        }
    }

    /// A file or a folder with all that is in it. Nothing where it is not here.
    fn tree(&self, path: &Path) -> Result<()> {
        let Ok(data) = path.symlink_metadata() else {
            return Ok(());
        };
        if !data.is_dir() {
            return self.file(path);
        }
        fs::create_dir_all(self.place(path)?)?;
        for entry in fs::read_dir(path)?.flatten() {
            let name = entry.file_name();
            if name != "dist-packages" && name != "test" && name != "private" {
                self.tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// A program and the libraries that it loads.
    fn program(&self, path: &Path) -> Result<()> {
        self.file(path)?;
        self.libraries(path)
    }

    fn libraries(&self, path: &Path) -> Result<()> {
        // Scripts and static programs have none.
        let listed = shell::output(shell::command("ldd").arg(path)).unwrap_or_default();
        let paths = listed
            .split_whitespace()
            .filter(|word| word.starts_with('/') && !word.ends_with(':'));
        for library in paths {
            self.file(Path::new(library))?;
        }
        Ok(())
    }

    fn python(&self) -> Result<()> {
        let ask = "import sysconfig; print(sysconfig.get_path('stdlib'))";
        let library = shell::output(shell::command("/usr/bin/python3").args(["-c", ask]))
            .context("python3 does not say where its library is")?;
        let library = PathBuf::from(library);
        self.tree(&library)?;
        for entry in fs::read_dir(library.join("lib-dynload"))
            .into_iter()
            .flatten()
            .flatten()
        {
            self.libraries(&entry.path())?;
        }
        Ok(())
    }

    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let from = kernel.modules();
        let to = self.place(&Path::new("/lib/modules").join(&kernel.release))?;
        for name in [
            "modules.builtin",
            "modules.order",
            "modules.builtin.modinfo",
        ] {
            fs::create_dir_all(&to)?;
            fs::copy(from.join(name), to.join(name))
                .with_context(|| format!("cannot copy {name}"))?;
        }
        for name in MODULES {
            let (from, to) = (from.join("kernel").join(name), to.join("kernel").join(name));
            fs::create_dir_all(to.parent().context("a module has a folder")?)?;
            if from.exists() {
                quietly(shell::command("cp").arg("-r").arg(&from).arg(&to))?;
            }
        }
        let depmod = shell::find("depmod").context("depmod is missing (package kmod)")?;
        quietly(
            shell::command(depmod)
                .arg("--basedir")
                .arg(&self.folder)
                .arg(&kernel.release),
        )
    }

    /// One of the project's programs, without debug information: the image is in memory.
    fn own(&self, path: &Path, name: &str) -> Result<()> {
        let place = self.place(&Path::new(BIN).join(name))?;
        quietly(shell::command("strip").arg("-o").arg(&place).arg(path))
            .with_context(|| format!("{} (run `cargo xtask build` first)", path.display()))?;
        self.libraries(path)
    }

    fn init(&self, arguments: &[String]) -> Result<()> {
        let arguments = arguments.join(" ");
        let (start, end) = (super::machine::START, super::machine::END);
        let text = format!(
            r#"#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export UNDERMESH_BIN={BIN} UNDERMESH_PATIENCE=$(cat /patience 2>/dev/null || echo 1)
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
for option in $(cat /proc/cmdline); do
  case $option in patience=*) export UNDERMESH_PATIENCE=${{option#patience=}} ;; esac
done
echo "{start}"
{BIN}/tests {arguments}
echo "{end}$?"
sleep 1
echo o > /proc/sysrq-trigger
sleep 60
"#
        );
        let path = self.folder.join("init");
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn pack(&self, image: &Path) -> Result<PathBuf> {
        quietly(
            shell::command("sh")
                .current_dir(&self.folder)
                .arg("-c")
                .arg("find . | cpio --quiet --create --format=newc > \"$0\"")
                .arg(image),
        )?;
        let megabytes = fs::metadata(image)?.len().div_ceil(1_000_000);
        said(format!("{} ({megabytes} MB)", image.display()));
        Ok(image.to_owned())
    }
}
