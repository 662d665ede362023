//! `meshctl authn tls-check`

use std::io::Write;

use clap::{Args, ValueEnum};

use super::client::Client;
use super::table::Table;
use super::{CommandError, FOUND, Printer};
use crate::admin::api::{TlsCheckRow, TlsCheckStatus};

/// Whose connections, to what.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The client, `<name>[.<namespace>]`
    workload: String,
    /// Only this service: its host name, or a short form of it
    service: Option<String>,
    /// How the columns are written
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// STATUS is the effective mode or CONFLICT; names are `name/namespace`
    #[default]
    Mode,
    /// As Istio 1.5 wrote it: STATUS is OK, AUTO or CONFLICT, SERVER and CLIENT are modes, names
    /// are `namespace/name`
    #[value(name = "istio-1.5")]
    Istio15,
}

pub async fn run(
    client: &Client,
    printer: &mut Printer<impl Write>,
    arguments: &Arguments,
) -> Result<u8, CommandError> {
    let mut query = format!("/v1/tls-check?workload={}", name(&arguments.workload)?);
    if let Some(service) = &arguments.service {
        query.push_str("&service=");
        query.push_str(name(service)?);
    }
    let rows: Vec<TlsCheckRow> = client.get(&query).await?;
    printer.show(&rows, |rows, wide| text(rows, wide, arguments.format))?;
    Ok(exit_code(&rows))
}

fn exit_code(rows: &[TlsCheckRow]) -> u8 {
    let conflict = |row: &TlsCheckRow| row.status == TlsCheckStatus::Conflict;
    if rows.iter().any(conflict) { FOUND } else { 0 }
}

/// `text`, if it is of the characters of host names, which need no encoding in a query.
fn name(text: &str) -> Result<&str, CommandError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-*".contains(c);
    if !text.is_empty() && text.chars().all(fits) {
        Ok(text)
    } else {
        Err(CommandError::NotAName(text.to_owned()))
    }
}

fn text(rows: &[TlsCheckRow], wide: bool, format: Format) -> String {
    let mut header = vec![
        "HOST:PORT",
        "STATUS",
        "SERVER",
        "CLIENT",
        "AUTHN POLICY",
        "DESTINATION RULE",
    ];
    if wide {
        header.push("OBSERVED");
    }
    let mut table = Table::new(&header);
    for row in rows {
        let mut cells = vec![
            format!("{}:{}", row.host, row.port),
            status(row, format).to_owned(),
            server(row, format).to_owned(),
            client(row, format).to_owned(),
            match (format, &*row.authn_policy) {
                (Format::Istio15, "-") => "None".to_owned(),
                (format, names) => policy(names, format),
            },
            policy(&row.destination_rule, format),
        ];
        if wide {
            cells.push(row.observed.map_or(String::new(), |seen| {
                format!(
                    "{} mTLS ({} handshakes), {} same node, {} plaintext",
                    seen.mutual_tls, seen.handshakes, seen.same_node, seen.plaintext
                )
            }));
        }
        table.row(cells);
    }
    table.render()
}

fn status(row: &TlsCheckRow, format: Format) -> &'static str {
    match (format, row.status) {
        (_, TlsCheckStatus::Conflict) => "CONFLICT",
        (Format::Istio15, _) if row.auto_mtls => "AUTO",
        (Format::Istio15, _) => "OK",
        (Format::Mode, TlsCheckStatus::Strict) => "STRICT",
        (Format::Mode, TlsCheckStatus::Permissive) => "PERMISSIVE",
        (Format::Mode, TlsCheckStatus::Disable) => "DISABLE",
        (Format::Mode, TlsCheckStatus::Unknown) => "-",
    }
}

fn server(row: &TlsCheckRow, format: Format) -> &str {
    match (format, &*row.server) {
        (Format::Istio15, "mTLS") => "STRICT",
        (Format::Istio15, "mTLS/HTTP") => "PERMISSIVE",
        (Format::Istio15, "HTTP") => "DISABLE",
        (_, other) => other,
    }
}

fn client(row: &TlsCheckRow, format: Format) -> &str {
    match (format, &*row.client) {
        // The client does as the server wants it: no rule says how.
        (Format::Istio15, _) if row.auto_mtls => "-",
        (Format::Istio15, "mTLS") => "ISTIO_MUTUAL",
        (Format::Istio15, "HTTP") => "DISABLE",
        (_, other) => other,
    }
}

/// `name/namespace`, turned round for Istio 1.5.
fn policy(names: &str, format: Format) -> String {
    if format == Format::Mode {
        return names.to_owned();
    }
    let turned = names.split(',').map(|name| match name.split_once('/') {
        Some((name, namespace)) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    });
    turned.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::Observed;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn tables() {
        let mut rows = samples::tls_check();
        golden("tls-check.txt", &text(&rows, false, Format::Mode));
        golden(
            "tls-check-istio-1.5.txt",
            &text(&rows, false, Format::Istio15),
        );
        rows[2].observed = Some(Observed {
            mutual_tls: 17,
            handshakes: 2,
            same_node: 3,
            plaintext: 1,
        });
        golden("tls-check-wide.txt", &text(&rows, true, Format::Mode));
    }

    #[test]
    fn a_conflict_is_told_by_the_exit_code() {
        let mut rows = samples::tls_check();
        assert_eq!(exit_code(&rows), 1);
        rows.retain(|row| row.status != TlsCheckStatus::Conflict);
        assert_eq!(exit_code(&rows), 0);
    }

    #[test]
    fn what_is_not_a_name_is_not_sent() {
        assert!(name("reviews-v1.default").is_ok() && name("*.example.com").is_ok());
        for text in ["", "a b", "a&service=b", "a/b", "ä"] {
            assert!(name(text).is_err(), "{text}");
        }
    }
}
