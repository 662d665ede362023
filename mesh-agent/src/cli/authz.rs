//! `meshctl authz`

use std::io::Write;
use std::net::IpAddr;

use clap::{Args, Subcommand};

use super::client::Client;
use super::table::Table;
use super::{CommandError, FOUND, Printer};
use crate::admin::authz::{
    AuthzAnswer, AuthzEvent, AuthzOpinion, AuthzQuestion, AuthzReport, AuthzVerdict, encode,
};
use crate::admin::checks::duration;

/// Questions about authorization.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Says whether a connection or a request may reach a workload, and which rule decides;
    /// the exit code is 1 where it may not
    Check(Check),
    /// Lists who was denied, who would be if dry runs were in force, and what was to be audited
    Report,
}

/// Who asks whom.
#[derive(Args, Debug)]
pub struct Check {
    /// The workload that is to be reached, `<name>[.<namespace>]`
    workload: String,
    /// Who asks: a workload, a SPIFFE identity, or an address
    #[arg(long, value_name = "WHO")]
    from: String,
    /// The client's address, where WHO does not say it
    #[arg(long, value_name = "ADDRESS")]
    from_ip: Option<IpAddr>,
    /// As if WHO spoke plaintext, as past its agent, or by a DestinationRule that disables mutual TLS
    #[arg(long)]
    plaintext: bool,
    /// Port of the workload
    #[arg(long)]
    port: u16,
    /// Method of an HTTP request [default: GET, where a path, a host or a header field is given]
    #[arg(long)]
    method: Option<String>,
    /// Path and query of the request
    #[arg(long)]
    path: Option<String>,
    /// Host of the request [default: the workload's name]
    #[arg(long)]
    host: Option<String>,
    /// Header field of the request, `name: value`; may be repeated
    #[arg(long = "header", value_name = "FIELD")]
    headers: Vec<String>,
}

impl Check {
    fn question(&self) -> AuthzQuestion {
        let is_request = self.path.is_some() || self.host.is_some() || !self.headers.is_empty();
        let method = self.method.clone();
        AuthzQuestion {
            workload: self.workload.clone(),
            port: self.port,
            from: self.from.clone(),
            from_ip: self.from_ip,
            plaintext: self.plaintext,
            method: method.or_else(|| is_request.then(|| "GET".to_owned())),
            path: self.path.clone().unwrap_or_else(|| "/".to_owned()),
            host: self.host.clone().unwrap_or_else(|| self.workload.clone()),
            headers: self.headers.clone(),
        }
    }
}

pub async fn run(
    client: &Client,
    printer: &mut Printer<impl Write>,
    command: &Command,
) -> Result<u8, CommandError> {
    match command {
        Command::Check(check) => {
            let query = format!("/v1/authz-check?question={}", encode(&check.question()));
            let answer: AuthzAnswer = client.get(&query).await?;
            printer.show(&answer, |answer, _| check_text(answer))?;
            let passes = answer.verdict != AuthzVerdict::Denied;
            Ok(if passes { 0 } else { FOUND })
        }
        Command::Report => {
            let reports: Vec<AuthzReport> = client.get("/v1/authz-report").await?;
            printer.show(&reports, |reports, _| report_text(reports))?;
            Ok(0)
        }
    }
}

fn check_text(answer: &AuthzAnswer) -> String {
    let verdict = match answer.verdict {
        AuthzVerdict::Allowed => "ALLOWED",
        AuthzVerdict::Denied => "DENIED",
        AuthzVerdict::DependsOnRequests => "DEPENDS ON THE REQUEST",
    };
    let source = answer.source.as_deref().unwrap_or("nobody (plaintext)");
    let mut text = format!(
        "{verdict}: {}\nfrom {source} at {} to {} port {}\n",
        answer.reason, answer.source_ip, answer.workload, answer.port
    );
    if answer.policies.is_empty() {
        return text;
    }
    let mut table = Table::new(&["POLICY", "ACTION", "MATCHES"]);
    for opinion in &answer.policies {
        table.row([
            opinion.policy.clone(),
            format!(
                "{}{}",
                opinion.action,
                if opinion.dry_run { " (dry run)" } else { "" }
            ),
            matches(opinion),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render());
    text
}

fn matches(opinion: &AuthzOpinion) -> String {
    match opinion.rule {
        None => "no".to_owned(),
        Some(rule) if opinion.depends => format!("rule {rule}, depending on the request"),
        Some(rule) => format!("rule {rule}"),
    }
}

fn report_text(reports: &[AuthzReport]) -> String {
    if reports.is_empty() {
        return "Nothing was denied, nothing would be, and nothing was to be audited.\n".to_owned();
    }
    let mut table = Table::new(&["WHAT", "WORKLOAD", "PORT", "SOURCE", "BY", "COUNT", "LAST"]);
    for report in reports {
        let what = match report.event {
            AuthzEvent::Denied => "denied",
            AuthzEvent::WouldBeDenied => "would be denied",
            AuthzEvent::Audited => "audited",
        };
        table.row([
            what.to_owned(),
            report.workload.clone(),
            report.port.to_string(),
            report.source.clone(),
            report.by.clone(),
            report.count.to_string(),
            format!("{} ago", duration(report.last_seen_s)),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn tables() {
        golden("authz-check.txt", &check_text(&samples::authz_answer()));
        golden("authz-report.txt", &report_text(&samples::authz_reports()));
    }
}
