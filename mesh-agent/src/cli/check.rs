//! `meshctl check`

use std::fmt::Write as _;
use std::io::Write;

use super::client::{Client, ClientError};
use super::{CommandError, FOUND, Output, Printer};
use crate::admin::api::{CheckItem, CheckStatus, VersionView};
use crate::admin::host_checks;

pub async fn run(
    client: Result<Client, ClientError>,
    printer: &mut Printer<impl Write>,
) -> Result<u8, CommandError> {
    let items = match ask(client).await {
        Ok(items) => items,
        // What can be said without an agent.
        Err(error) => {
            let mut items = host_checks::run();
            items.push(CheckItem {
                status: CheckStatus::Failed,
                // The error says what to do.
                ..CheckItem::ok("agent", "agent is running", error.to_string())
            });
            items
        }
    };
    printer.show(&items, |items, _| text(items))?;
    let failed = items.iter().any(|item| item.status == CheckStatus::Failed);
    if printer.output != Output::Json {
        printer.text(if failed {
            "\nStatus check results are ×\n"
        } else {
            "\nStatus check results are √\n"
        })?;
    }
    Ok(if failed { FOUND } else { 0 })
}

async fn ask(client: Result<Client, ClientError>) -> Result<Vec<CheckItem>, ClientError> {
    let client = client?;
    let mut items: Vec<CheckItem> = client.get("/v1/checks").await?;
    let agent: VersionView = client.get("/v1/version").await?;
    let position = items
        .iter()
        .rposition(|item| item.section == "agent")
        .map_or(items.len(), |last| last + 1);
    items.insert(position, same_version(&agent.version));
    Ok(items)
}

fn same_version(agent: &str) -> CheckItem {
    const OURS: &str = env!("CARGO_PKG_VERSION");
    const NAME: &str = "meshctl and agent are of one version";
    if agent == OURS {
        CheckItem::ok("agent", NAME, "")
    } else {
        CheckItem::warning(
            "agent",
            NAME,
            format!("meshctl is {OURS}, the agent is {agent}"),
            "use the meshctl that came with the agent",
        )
    }
}

fn text(items: &[CheckItem]) -> String {
    let mut text = String::new();
    let mut section = "";
    for item in items {
        if item.section != section {
            if !section.is_empty() {
                text.push('\n');
            }
            section = &item.section;
            let _ = writeln!(text, "{section}\n{}", "-".repeat(section.chars().count()));
        }
        let mark = match item.status {
            CheckStatus::Ok => "√",
            CheckStatus::Warning => "‼",
            CheckStatus::Failed => "×",
        };
        let _ = write!(text, "{mark} {}", item.name);
        if !item.detail.is_empty() {
            let _ = write!(text, ": {}", item.detail);
        }
        text.push('\n');
        if let Some(hint) = &item.hint {
            let _ = writeln!(text, "    {hint}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn report() {
        golden("check.txt", &text(&samples::checks()));
    }

    #[test]
    fn another_version_is_worth_a_look() {
        assert_eq!(
            same_version(env!("CARGO_PKG_VERSION")).status,
            CheckStatus::Ok
        );
        assert_eq!(same_version("0.0.0").status, CheckStatus::Warning);
    }
}
