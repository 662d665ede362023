//! `meshctl routes`

use std::fmt::Write as _;
use std::io::Write;

use clap::Args;

use super::client::Client;
use super::table::Table;
use super::{CommandError, FOUND, Printer};
use crate::admin::api::{RouteQuestion, RouteView};

/// A request, as curl takes it.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The client, `<name>[.<namespace>]`
    workload: String,
    /// Where to: `http://reviews:80/path?query`; the scheme may be left out
    url: String,
    /// Method
    #[arg(short = 'X', long, default_value = "GET", value_name = "METHOD")]
    method: String,
    /// Header, `name: value`; repeatable
    #[arg(short = 'H', long, value_name = "LINE")]
    header: Vec<String>,
}

pub async fn run(
    client: &Client,
    printer: &mut Printer<impl Write>,
    arguments: &Arguments,
) -> Result<u8, CommandError> {
    let question = question(arguments)?;
    let json = serde_json::to_string(&question).unwrap_or_default();
    let path = format!("/v1/route?question={}", percent_encoded(&json));
    let view: RouteView = client.get(&path).await?;
    printer.show(&view, |view, _| text(view))?;
    let refused = view.destinations.is_empty() && view.outcome.contains("404")
        || view.destinations.iter().any(|to| to.problem.is_some());
    Ok(if refused { FOUND } else { 0 })
}

fn question(arguments: &Arguments) -> Result<RouteQuestion, CommandError> {
    let url = arguments
        .url
        .strip_prefix("http://")
        .unwrap_or(&arguments.url);
    let (authority, path) = match url.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (url, "/".to_owned()),
    };
    let mut headers = Vec::new();
    for line in &arguments.header {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| CommandError::NotAHeader(line.clone()))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(RouteQuestion {
        workload: arguments.workload.clone(),
        authority: authority.to_owned(),
        method: arguments.method.clone(),
        path,
        headers,
    })
}

/// RFC 3986, section 2.1.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn text(view: &RouteView) -> String {
    let mut text = format!("{}:{}\n", view.service, view.port);
    if let Some(origin) = &view.rules_of {
        let _ = writeln!(text, "rules of {origin}:");
    }
    for rule in &view.rules {
        let name = if rule.name.is_empty() {
            String::new()
        } else {
            format!(" ({})", rule.name)
        };
        let _ = match &rule.mismatch {
            Some(why) => writeln!(text, "  {}{name}: no, {why}", rule.field),
            None => writeln!(text, "  {}{name}: matches", rule.field),
        };
    }
    let _ = writeln!(text, "{}", view.outcome);
    if view.destinations.is_empty() {
        return text;
    }
    let mut table = Table::new(&[
        "SHARE",
        "SERVICE",
        "SUBSET",
        "ENDPOINTS",
        "DESTINATIONRULE",
        "PROBLEM",
    ]);
    for to in &view.destinations {
        let port = to.port.map_or(String::new(), |port| format!(":{port}"));
        let mirror = if to.mirror { " copied" } else { "" };
        table.row([
            format!("{} %{mirror}", (to.percent * 100.0).round() / 100.0),
            format!("{}{port}", to.host),
            to.subset.clone().unwrap_or_default(),
            to.endpoints.to_string(),
            to.destination_rule.clone().unwrap_or_default(),
            to.problem.clone().unwrap_or_default(),
        ]);
    }
    text.push_str(&table.render());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn an_answer() {
        golden("routes.txt", &text(&samples::route()));
    }

    #[test]
    fn a_request_is_written_as_for_curl() {
        let arguments = Arguments {
            workload: "sleep".to_owned(),
            url: "http://reviews:80/a?b=c/d".to_owned(),
            method: "GET".to_owned(),
            header: vec!["end-user: jason".to_owned()],
        };
        let question = question(&arguments).expect("a question");
        assert_eq!(question.authority, "reviews:80");
        assert_eq!(question.path, "/a?b=c/d");
        assert_eq!(
            question.headers,
            [("end-user".to_owned(), "jason".to_owned())]
        );
    }
}
