//! `meshctl version`

use std::io::Write;

use serde::Serialize;

use super::client::{Client, ClientError};
use super::{CommandError, Printer};
use crate::admin::api::VersionView;
use crate::admin::checks::duration;

/// Both sides.
#[derive(Serialize)]
struct Versions {
    meshctl: &'static str,
    agent: Option<VersionView>,
    /// Why there is no agent.
    error: Option<String>,
}

pub async fn run(
    client: Result<Client, ClientError>,
    printer: &mut Printer<impl Write>,
) -> Result<(), CommandError> {
    let agent = match client {
        Ok(client) => client.get("/v1/version").await,
        Err(error) => Err(error),
    };
    let (agent, error) = match agent {
        Ok(agent) => (Some(agent), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let versions = Versions {
        meshctl: env!("CARGO_PKG_VERSION"),
        agent,
        error,
    };
    Ok(printer.show(&versions, |versions, _| text(versions))?)
}

fn text(versions: &Versions) -> String {
    let agent = match (&versions.agent, &versions.error) {
        (Some(agent), _) => format!(
            "{} (node {}, pid {}, up {}, kernel {})",
            agent.version,
            agent.node,
            agent.pid,
            duration(agent.uptime_s),
            agent.kernel
        ),
        (None, error) => format!("not available: {}", error.as_deref().unwrap_or("-")),
    };
    format!("meshctl: {}\nagent:   {agent}\n", versions.meshctl)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn both_sides() {
        let versions = Versions {
            meshctl: "0.1.0",
            agent: Some(samples::version()),
            error: None,
        };
        golden("version.txt", &text(&versions));
    }

    #[test]
    fn one_side() {
        let versions = Versions {
            meshctl: "0.1.0",
            agent: None,
            error: Some("no agent runs".to_owned()),
        };
        assert_eq!(
            text(&versions),
            "meshctl: 0.1.0\nagent:   not available: no agent runs\n"
        );
    }
}
