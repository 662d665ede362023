//! Finds the kernel object that the agent embeds.
//!
//! `cargo xtask build-ebpf` makes it; `UNDERMESH_BPF_OBJECT` names another one.
//! The agent includes it by the path in the build-time variable of that name.

use std::env;
use std::path::{Path, PathBuf};

const VARIABLE: &str = "UNDERMESH_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = env::var_os(VARIABLE).map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .with_file_name("target")
                .join("bpf/undermesh.o")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(path) => println!("cargo::rustc-env={VARIABLE}={}", path.display()),
        Err(_) => println!(
            "cargo::error=the kernel programs are not built ({} is missing): run `cargo xtask build-ebpf` first",
            object.display()
        ),
    }
}
