//! `cargo xtask demo`: two nodes, a small application, and the guide's steps.

mod say;
mod scenes;
mod stage;

use anyhow::{Result, bail};

use crate::shell;
use crate::supervise::{Ended, supervise};

/// Prepares the machine, then plays in a process of its own, after which
/// everything is removed.
pub fn run(keep: bool) -> Result<()> {
    // Said at once, not after the build.
    mesh_tests::check()?;
    if !crate::setup::is_complete() {
        crate::setup::run()?;
    }
    crate::build::unless_given()?;
    let mut play = shell::command(std::env::current_exe()?);
    play.arg("play").args(keep.then_some("--keep"));
    match supervise(&mut play)? {
        // That is how `--keep` ends.
        Ended::Interrupted if !keep => bail!("interrupted; everything has been removed"),
        _ => Ok(()),
    }
}

/// Plays all scenes.
pub fn play(keep: bool) -> Result<()> {
    let stage = stage::set_up()?;
    scenes::names(&stage)?;
    scenes::routing_by_header(&stage)?;
    scenes::canary(&stage)?;
    scenes::encryption(&stage)?;
    scenes::strict(&stage)?;
    scenes::insight(&stage)?;
    scenes::untouched(&stage)?;
    if keep {
        stage.keep()?;
    }
    say::title("Cleaning up");
    Ok(())
}
