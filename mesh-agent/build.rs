//! Finds the kernel objects that the agent embeds: the one that runs, and the
//! one with log lines.
//!
//! `cargo xtask build-ebpf` makes them; `UNDERMESH_BPF_OBJECT` and
//! `UNDERMESH_BPF_LOG_OBJECT` name others. The agent includes them by the paths
//! in the build-time variables of those names.

use std::env;
use std::path::{Path, PathBuf};

const OBJECTS: [(&str, &str); 2] = [
    ("UNDERMESH_BPF_OBJECT", "bpf/undermesh.o"),
    ("UNDERMESH_BPF_LOG_OBJECT", "bpf/undermesh-log.o"),
];

fn main() {
    for (variable, default) in OBJECTS {
        find(variable, default);
    }
}

fn find(variable: &str, default: &str) {
    println!("cargo::rerun-if-env-changed={variable}");
    let object = env::var_os(variable).map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .with_file_name("target")
                .join(default)
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(path) => println!("cargo::rustc-env={variable}={}", path.display()),
        Err(_) => println!(
            "cargo::error=the kernel programs are not built ({} is missing): run `cargo xtask build-ebpf` first",
            object.display()
        ),
    }
}
