//! `cargo xtask bench`: the mesh beside no mesh and beside Envoy with iptables,
//! in the same run. `docs/benchmark.md` says what each row means.

mod busy;
mod certificates;
mod configuration;
mod drive;
mod envoy;
mod figures;
mod load;
mod memory;
mod needs;
mod pair;
mod process;
mod report;
mod rounds;
mod scenario;
mod stage;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

pub use load::{Load, run as load};
pub use needs::envoy as fetch_envoy;

use crate::shell;
use crate::supervise::{Ended, supervise};

/// Longest measurement: no program of the laboratory may run for more than a minute.
const MAX_SECONDS: u64 = 50;

/// What to measure, and how long.
#[derive(Args, Clone)]
pub struct Options {
    /// Only the scenario of this name, or all whose names contain this.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Only the variants whose name contains this, beside `direct`.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Only the loads whose name contains this: requests-16, requests-64, latency, stream or
    /// new-connections.
    #[arg(long, value_name = "NAME")]
    load: Option<String>,
    /// Rounds over all variants; the medians count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Processes that compute all the time beside it, as on a node with other work.
    #[arg(long, value_name = "PROCESSES", default_value_t = 0)]
    busy: usize,
    /// Write one JSON object a row to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Prepares the machine, then measures in a process of its own, after which
/// everything is removed.
pub fn run(options: &Options) -> Result<()> {
    shell::require_root("the benchmark")?;
    options.scenarios()?;
    ensure!(
        drive::Load::ALL
            .iter()
            .any(|load| options.wants_load(*load)),
        "no load is called {}; there are {}",
        options.load.as_deref().unwrap_or_default(),
        drive::Load::ALL.map(drive::Load::name).join(", ")
    );
    ensure!(options.rounds > 0, "at least one round is needed");
    ensure!(
        (1..=MAX_SECONDS).contains(&options.seconds),
        "a measurement takes 1 to {MAX_SECONDS} seconds"
    );
    needs::install()?;
    crate::build::run()?;
    let mut measure = shell::command(std::env::current_exe()?);
    measure
        .arg("measure")
        .arg(format!("--rounds={}", options.rounds))
        .arg(format!("--seconds={}", options.seconds))
        .arg(format!("--busy={}", options.busy));
    for (flag, value) in [
        ("--scenario", &options.scenario),
        ("--variant", &options.variant),
        ("--load", &options.load),
    ] {
        measure.args(value.as_ref().map(|value| format!("{flag}={value}")));
    }
    if let Some(file) = &options.json {
        let file = std::path::absolute(file).context("the path of the JSON file")?;
        measure.arg("--json").arg(file);
    }
    match supervise(&mut measure)? {
        Ended::Interrupted => bail!("interrupted; everything has been removed"),
        Ended::Finished => Ok(()),
    }
}

/// Measures and reports.
pub fn measure(options: &Options) -> Result<()> {
    let mut figures = figures::Figures::default();
    let _busy = busy::Busy::start(options.busy)?;
    for scenario in options.scenarios()? {
        println!("\n{}: {}", scenario.name, scenario.about);
        scenario
            .measure(options, &mut figures)
            .with_context(|| format!("scenario {}", scenario.name))?;
    }
    report::table(&figures);
    if let Some(file) = &options.json {
        std::fs::write(file, report::json(&figures))
            .with_context(|| format!("cannot write {}", file.display()))?;
        println!("\nwritten: {}", file.display());
    }
    match figures.failures() {
        0 => Ok(()),
        failures => bail!("{failures} measurements failed, see the notes"),
    }
}

impl Options {
    fn scenarios(&self) -> Result<Vec<&'static scenario::Scenario>> {
        let wanted = self.scenario.as_deref().unwrap_or_default();
        let is_exact = scenario::ALL.iter().any(|scenario| scenario.name == wanted);
        let found: Vec<_> = scenario::ALL
            .iter()
            .filter(|scenario| {
                scenario.name == wanted || !is_exact && scenario.name.contains(wanted)
            })
            .collect();
        if found.is_empty() {
            let names: Vec<_> = scenario::ALL.iter().map(|scenario| scenario.name).collect();
            bail!(
                "no scenario is called {wanted}; there are {}",
                names.join(", ")
            );
        }
        Ok(found)
    }

    fn wants_load(&self, load: drive::Load) -> bool {
        let wanted = self.load.as_ref();
        wanted.is_none_or(|wanted| load.name().contains(wanted))
    }

    fn wants_variant(&self, name: &str) -> bool {
        name == figures::DIRECT
            || self
                .variant
                .as_ref()
                .is_none_or(|wanted| name.contains(wanted))
    }
}
