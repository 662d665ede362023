//! Debian's kernel packages: found, downloaded, unpacked into a folder of ours.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Kernel, fresh, quietly, said};
use crate::shell;

/// Kernels for virtual machines: small, with BTF.
const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";

/// The newest kernel of this version that the package lists have, unpacked below `folder`.
pub fn find(folder: &Path, version: &str) -> Result<Kernel> {
    let package = match newest(version) {
        Some(package) => package,
        None => {
            shell::run(shell::command("apt-get").args(["update", "-qq"]))?;
            newest(version).with_context(|| {
                format!(
                    "apt knows no package {PREFIX}{version}.*{SUFFIX}: it is Debian that has them"
                )
            })?
        }
    };
    let release = package.trim_start_matches(PREFIX).to_owned();
    let kernel = Kernel {
        folder: folder.join(&release),
        release,
    };
    if kernel.boot_image().is_file() && kernel.modules().is_dir() {
        said(format!("{package} is there"));
        return Ok(kernel);
    }
    said(format!("downloading {package}, which is not installed"));
    fresh(&kernel.folder)?;
    quietly(
        shell::command("apt-get")
            .current_dir(&kernel.folder)
            .args(["download", "-qq", &package]),
    )?;
    let archive = fs::read_dir(&kernel.folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get has downloaded nothing")?;
    quietly(
        shell::command("dpkg")
            .arg("-x")
            .arg(&archive)
            .arg(&kernel.folder),
    )?;
    fs::remove_file(archive)?;
    if !kernel.boot_image().is_file() {
        bail!("{package} has no {}", kernel.boot_image().display());
    }
    Ok(kernel)
}

/// The package with the highest numbers.
fn newest(version: &str) -> Option<String> {
    let names = shell::output(
        shell::command("apt-cache").args(["pkgnames", &format!("{PREFIX}{version}.")]),
    )?;
    let packages = names.lines().filter(|name| name.ends_with(SUFFIX));
    packages.max_by_key(|name| numbers(name)).map(str::to_owned)
}

fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}
