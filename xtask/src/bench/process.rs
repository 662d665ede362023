//! What a process costs, as /proc says.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time that processes have used, in user space and in the kernel.
pub fn cpu_time(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu_time_of(*pid)).sum()
}

fn cpu_time_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = ticks(&stat).with_context(|| format!("{path} is not as proc(5) says"))?;
    // SAFETY: takes a plain number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// utime and stime (fields 14 and 15 in proc(5)). The name in field 2 may have spaces.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it (VmRSS).
    pub resident: u64,
    /// What the process has written (RssAnon).
    pub anonymous: u64,
    /// What is mapped from files, such as the program itself (RssFile).
    pub files: u64,
}

/// What a process holds.
pub fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    memory_in(&status).with_context(|| format!("{path} is not as proc(5) says"))
}

/// Resident memory, bytes.
pub fn resident(pid: u32) -> Result<u64> {
    Ok(memory(pid)?.resident)
}

fn memory_in(status: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory {
        resident: field("VmRSS:")?,
        anonymous: field("RssAnon:")?,
        files: field("RssFile:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_by_position_and_name() {
        let stat = "42 (a (strange) name) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 3 0";
        assert_eq!(ticks(stat), Some(12));
        let status =
            "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t   12 kB\nRssAnon:\t  8 kB\nRssFile:\t  4 kB\n";
        let memory = Memory {
            resident: 12 * 1024,
            anonymous: 8 * 1024,
            files: 4 * 1024,
        };
        assert_eq!(memory_in(status), Some(memory));
    }
}
