//! `meshctl kernel-log`

use std::io::Write;

use clap::Args;

use super::client::Client;
use super::{CommandError, Printer};
use crate::admin::api::KernelLogView;
use crate::datapath::LogLevel;

/// Which level.
#[derive(Args, Debug)]
pub struct Arguments {
    /// off, error, warn, info, debug or trace; without it, the level is shown
    level: Option<LogLevel>,
}

pub async fn run(
    client: &Client,
    printer: &mut Printer<impl Write>,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    let view: KernelLogView = match arguments.level {
        None => client.get("/v1/kernel-log").await?,
        Some(level) => {
            client
                .post(&format!("/v1/kernel-log?level={level}"))
                .await?
        }
    };
    printer.show(&view, |view, _| format!("{}\n", view.level))?;
    Ok(())
}
