//! Rounds: every load on every variant in turn, each round beginning with
//! another variant, so that the machine's own ups and downs meet all alike.

use std::io::{self, Write};

use anyhow::Result;

use super::Options;
use super::drive::{ADDED_P99, Load, P99};
use super::figures::{DIRECT, Figures};
use super::report::number;
use super::stage::Stage;

/// Measures all loads.
pub fn measure(
    stage: &Stage,
    loads: &[Load],
    options: &Options,
    figures: &mut Figures,
) -> Result<()> {
    for round in 0..options.rounds {
        for load in loads.iter().filter(|load| options.wants_load(**load)) {
            print!("  round {}/{}: ", round + 1, options.rounds);
            one(stage, *load, round, options.seconds, figures)?;
        }
    }
    Ok(())
}

/// One load, once on every variant.
fn one(stage: &Stage, load: Load, round: usize, seconds: u64, figures: &mut Figures) -> Result<()> {
    let scenario = stage.scenario.name;
    let count = stage.standing.len();
    let mut p99 = Vec::new();
    for index in 0..count {
        let standing = &stage.standing[(index + round) % count];
        let variant = standing.variant.name;
        match load.run(&standing.pair, seconds) {
            Ok(shown) => {
                if let Some((metric, value)) = shown.first() {
                    let (name, value) = (metric.name, number(*value));
                    if index == 0 {
                        print!("{name} ({})", metric.unit);
                    }
                    print!("; {variant} {value}");
                    io::stdout().flush()?;
                }
                for (metric, value) in shown {
                    figures.add(scenario, variant, metric, value);
                    if metric == P99 {
                        p99.push((variant, value));
                    }
                }
            }
            Err(error) => {
                println!();
                figures.failure(format!("{scenario}: {variant}: {load:?} failed: {error:#}"));
            }
        }
    }
    println!();
    if let Some((_, direct)) = p99.iter().find(|(variant, _)| *variant == DIRECT) {
        for (variant, value) in p99.iter().filter(|(variant, _)| *variant != DIRECT) {
            figures.add(scenario, variant, ADDED_P99, value - direct);
        }
    }
    Ok(())
}
