//! Running other programs: what is printed, what is inherited, what is found.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask stands in a folder of the workspace")
}

/// Says what happens next.
pub fn step(what: impl std::fmt::Display) {
    println!("  · {what}");
}

/// A command in the repository's root.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The developer's own cargo.
pub fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Takes away what `cargo run` has put into the environment, so that another
/// tool chain is not led back to this one.
pub fn clean_environment(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let inherited = [
            "CARGO",
            "RUSTC",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "RUST_RECURSION_COUNT",
        ]
        .contains(&&*text)
            || ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_ENCODED_"]
                .iter()
                .any(|prefix| text.starts_with(prefix));
        if inherited {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs to the end; an error where it does not succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let line = show(command);
    match crate::supervise::run(command).with_context(|| format!("`{line}`"))? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{line}` ended with {status}"),
        None => bail!("interrupted"),
    }
}

/// What a command prints, where it succeeds.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where a program is: in `PATH`, or where cargo installs to.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_bin())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Whether this process may do everything: namespaces, BPF, packages.
pub fn require_root(what: &str) -> Result<()> {
    if !mesh_tests::is_root() {
        bail!("{what} needs root: it makes network namespaces and loads kernel programs");
    }
    Ok(())
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin"))
}

fn show(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
