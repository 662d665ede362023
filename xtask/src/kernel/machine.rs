//! The virtual machine: KVM where a kernel boots with it, emulation elsewhere.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::{Kernel, said};
use crate::shell;

/// What the machine says before the tests.
pub const START: &str = "undermesh: the machine is up";
/// What it says after them, with their exit code.
pub const END: &str = "undermesh: the tests ended with ";

/// Memory, in MB: the image is there twice while it is unpacked.
const MEMORY_MB: &str = "3072";

/// How long a kernel may take with KVM until it finds that it has no root, in seconds.
const KVM_PROBE_S: &str = "15";

/// How much longer than usual the tests wait in an emulated machine.
const PATIENCE: &str = "6";

/// Boots the kernel with the image, shows what the tests say, and fails where they do.
pub fn run(folder: &Path, kernel: &Kernel, options: &str, image: &Path) -> Result<()> {
    let accelerated = kvm_works(kernel);
    said(if accelerated {
        "with KVM"
    } else {
        "emulated, which is slow: no kernel boots with KVM here"
    });
    let log = folder.join("console.log");
    let patience = if accelerated { "1" } else { PATIENCE };
    let mut machine = qemu(kernel, accelerated);
    machine
        .arg("-initrd")
        .arg(image)
        .args([
            "-append",
            &format!("console=ttyS0 quiet loglevel=3 panic=-1 patience={patience} {options}"),
        ])
        .arg("-chardev")
        .arg(format!(
            "stdio,id=console,signal=off,logfile={}",
            log.display()
        ))
        .args(["-serial", "chardev:console"]);
    shell::run(&mut machine)?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let code = said
        .split_once(END)
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<i32>().ok());
    match code {
        Some(0) => Ok(()),
        Some(_) => bail!("tests failed on Linux {}, see above", kernel.release),
        None => bail!(
            "the machine ended before the tests; its console is in {}",
            log.display()
        ),
    }
}

/// A kernel without a root panics, and the machine ends: with KVM in a second or
/// two. Nested machines may hang instead.
fn kvm_works(kernel: &Kernel) -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let mut probe = Command::new("timeout");
    let machine = {
        let mut machine = qemu(kernel, true);
        machine.args(["-append", "console=ttyS0 panic=-1", "-serial", "none"]);
        machine
    };
    probe
        .arg(KVM_PROBE_S)
        .arg(machine.get_program())
        .args(machine.get_args());
    shell::output(&mut probe).is_some()
}

fn qemu(kernel: &Kernel, accelerated: bool) -> Command {
    let mut qemu = shell::command("qemu-system-x86_64");
    qemu.args(if accelerated {
        ["-accel", "kvm", "-cpu", "host"]
    } else {
        ["-accel", "tcg,thread=multi", "-cpu", "max"]
    });
    qemu.args(["-m", MEMORY_MB, "-smp", "2", "-no-reboot", "-nodefaults"])
        .args(["-display", "none", "-monitor", "none"])
        .arg("-kernel")
        .arg(kernel.boot_image());
    qemu
}
