//! `cargo xtask build-ebpf`: the kernel programs, with whichever tool chain is there.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{self, step};

/// The bpf-linker that the kernel programs are known to link with.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

const TARGET: &str = "bpfel-unknown-none";

/// Where mesh-agent's build script looks for the objects: the one that runs, and the one with log
/// lines. A map of the latter's has no BTF, so that `bpftool prog loadall` takes only the first.
const OBJECTS: [(&str, Option<&str>); 2] = [
    ("target/bpf/undermesh.o", None),
    ("target/bpf/undermesh-log.o", Some("--features=log")),
];

/// Builds of the kernel's target live in a folder of their own: their flags
/// would make every other build start over.
const BUILD_FOLDER: &str = "target/bpf-build";

/// Builds the objects.
pub fn run() -> Result<()> {
    println!("Building the kernel programs");
    let toolchain = Toolchain::find()?;
    step(&toolchain);

    let flags = [
        "-Cdebuginfo=2".into(),
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".into(),
    ];
    for (object, features) in OBJECTS {
        let mut build = toolchain.compiler.cargo();
        build
            .args(["build", "--release", "--package", "mesh-ebpf"])
            .args(["--target", TARGET])
            .args(["--target-dir", BUILD_FOLDER])
            .args(features)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // bpf-linker optimizes across crates by itself.
            .env("CARGO_PROFILE_RELEASE_LTO", "false");
        shell::run(&mut build)?;
        let built = shell::root()
            .join(BUILD_FOLDER)
            .join(TARGET)
            .join("release/undermesh");
        let path = shell::root().join(object);
        install(&built, &path)?;
        let size = fs::metadata(&path)?.len();
        step(format!("{object} ({} kB)", size.div_ceil(1000)));
    }
    Ok(())
}

/// Copies where the content differs, so that an unchanged object does not make
/// the agent build again.
fn install(built: &Path, object: &Path) -> Result<()> {
    let content = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let folder = object.parent().context("the object has a folder")?;
    fs::create_dir_all(folder)?;
    fs::write(object, content).with_context(|| format!("cannot write {}", object.display()))
}

/// A compiler for the kernel's target and a linker for its bitcode.
pub struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

impl Toolchain {
    /// What is there, or one line about what is missing and how to get it.
    pub fn find() -> Result<Self> {
        let Some(compiler) = Self::compiler() else {
            bail!(
                "no Rust compiler for {TARGET} is here: neither a system rustc with a prebuilt core \
                 nor rustup's nightly with rust-src; `cargo xtask setup` installs one"
            );
        };
        let Some(linker) = shell::find("bpf-linker") else {
            bail!("bpf-linker is missing; `cargo xtask setup` installs it");
        };
        Ok(Self { compiler, linker })
    }

    /// The compiler alone.
    pub fn compiler() -> Option<Compiler> {
        Compiler::prebuilt().or_else(Compiler::nightly)
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, linked by {}", self.compiler, self.linker.display())
    }
}

/// A compiler that can make code for the kernel.
pub enum Compiler {
    /// A system's rustc (not rustup's) that comes with `core` for the kernel's target.
    Prebuilt { rustc: PathBuf, cargo: PathBuf },
    /// rustup's nightly, which builds `core` from rust-src.
    Nightly,
}

impl Compiler {
    fn prebuilt() -> Option<Self> {
        let (rustc, cargo) = (
            PathBuf::from("/usr/bin/rustc"),
            PathBuf::from("/usr/bin/cargo"),
        );
        let mut query = shell::command(&rustc);
        shell::clean_environment(&mut query).args(["--print", "target-libdir", "--target", TARGET]);
        let libraries = shell::output(&mut query)?;
        let has_core = fs::read_dir(libraries)
            .ok()?
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
        (has_core && cargo.is_file()).then_some(Self::Prebuilt { rustc, cargo })
    }

    fn nightly() -> Option<Self> {
        let mut query = shell::command("rustup");
        shell::clean_environment(&mut query)
            .args(["run", "nightly", "rustc", "--print", "sysroot"]);
        let sysroot = shell::output(&mut query)?;
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
            .then_some(Self::Nightly)
    }

    fn cargo(&self) -> Command {
        let mut cargo = match self {
            Self::Prebuilt { cargo, .. } => shell::command(cargo),
            Self::Nightly => shell::command("rustup"),
        };
        shell::clean_environment(&mut cargo);
        match self {
            // A stable compiler has to be told that kernel targets are meant.
            Self::Prebuilt { rustc, .. } => cargo
                .env("RUSTC", OsString::from(rustc))
                .env("RUSTC_BOOTSTRAP", "1"),
            Self::Nightly => cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]),
        };
        cargo
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prebuilt { rustc, .. } => write!(f, "{} with a prebuilt core", rustc.display()),
            Self::Nightly => f.write_str("rustup's nightly with rust-src"),
        }
    }
}
