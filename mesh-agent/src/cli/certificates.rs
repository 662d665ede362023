//! `meshctl certificates`

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::client::Client;
use super::table::Table;
use super::{CommandError, Printer};
use crate::admin::api::{CertificateKind, CertificateView};
use crate::admin::checks::duration;

pub async fn run(client: &Client, printer: &mut Printer<impl Write>) -> Result<(), CommandError> {
    let certificates: Vec<CertificateView> = client.get("/v1/certificates").await?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    Ok(printer.show(&certificates, |certificates, wide| {
        text(certificates, now, wide)
    })?)
}

fn text(certificates: &[CertificateView], now: u64, wide: bool) -> String {
    if certificates.is_empty() {
        return "No certificates: no workload is enrolled yet.\n".to_owned();
    }
    let mut header = vec![
        "IDENTITY",
        "TYPE",
        "STATUS",
        "SERIAL",
        "EXPIRES",
        "WORKLOADS",
    ];
    if wide {
        header.push("CHAIN");
    }
    let mut table = Table::new(&header);
    for certificate in certificates {
        let (status, expires) = if now < certificate.not_before {
            (
                "Not yet valid",
                format!("in {}", duration(certificate.not_after.saturating_sub(now))),
            )
        } else if now < certificate.not_after {
            (
                "Valid",
                format!("in {}", duration(certificate.not_after - now)),
            )
        } else {
            let past = duration(now - certificate.not_after);
            ("Expired", format!("{past} ago"))
        };
        let mut cells = vec![
            certificate.identity.clone(),
            match certificate.kind {
                CertificateKind::Root => "Root",
                CertificateKind::Intermediate => "Intermediate",
                CertificateKind::Leaf => "Leaf",
            }
            .to_owned(),
            status.to_owned(),
            certificate.serial.clone(),
            expires,
            or_dash(certificate.workloads.join(",")),
        ];
        if wide {
            cells.push(or_dash(certificate.chain.join(" < ")));
        }
        table.row(cells);
    }
    table.render()
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn tables() {
        let certificates = samples::certificates();
        let leaf = &certificates[1];
        golden(
            "certificates.txt",
            &text(&certificates, leaf.not_before + 60, true),
        );
        let late = text(&certificates, leaf.not_after + 61, false);
        assert!(
            late.contains("Expired") && late.contains("1m1s ago"),
            "{late}"
        );
        let early = text(&certificates, leaf.not_before - 1, false);
        assert!(early.contains("Not yet valid"), "{early}");
    }
}
