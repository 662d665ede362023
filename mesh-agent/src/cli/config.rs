//! `meshctl config`

use std::fmt::Write as _;
use std::io::Write;

use super::client::Client;
use super::{CommandError, Printer};
use crate::admin::api::{ConfigView, FindingView};
use crate::admin::checks::duration;

pub async fn run(client: &Client, printer: &mut Printer<impl Write>) -> Result<(), CommandError> {
    let config: ConfigView = client.get("/v1/config").await?;
    Ok(printer.show(&config, |config, _| text(config))?)
}

fn text(config: &ConfigView) -> String {
    let mut text = format!(
        "In force: generation {}, {} resources from {}\n",
        config.generation, config.resources, config.source
    );
    findings(&mut text, "Not applied", &config.warnings);
    if let Some(refused) = &config.refused {
        let title = format!("Refused {} ago", duration(refused.age_s));
        findings(&mut text, &title, &refused.errors);
    }
    text
}

fn findings(text: &mut String, title: &str, findings: &[FindingView]) {
    if findings.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}:");
    for finding in findings {
        let _ = write!(text, "  {}, document {}", finding.file, finding.document);
        for part in [&finding.object, &finding.field, &finding.reason] {
            if !part.is_empty() {
                let _ = write!(text, ": {part}");
            }
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn report() {
        golden("config.txt", &text(&samples::config()));
    }
}
