//! A node that has other work to do as well.

use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use crate::shell;

/// Processes that compute all the time, until this is dropped.
pub struct Busy(Vec<Child>);

impl Busy {
    /// So many.
    pub fn start(processes: usize) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut busy = Self(Vec::new());
        for _ in 0..processes {
            let mut spin = shell::command(&program);
            spin.args(["load", "spin"]).stdin(Stdio::piped());
            busy.0
                .push(spin.spawn().context("cannot start other work")?);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for process in &mut self.0 {
            // Its input ends.
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}
