//! `meshctl flows`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::client::Client;
use super::table::{Table, bytes, micros};
use super::{CommandError, Output, Printer};
use crate::admin::api::{Direction, FlowState, FlowView, Security};
use crate::admin::checks::duration;

/// Time between two refreshes of `--watch`.
const REFRESH: Duration = Duration::from_secs(1);
/// Cursor to the top left, clear to the end (ECMA-48 CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Which flows, and how long.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only flows of this workload, `<name>[.<namespace>]`
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Refresh every second until interrupted
    #[arg(short, long)]
    watch: bool,
}

pub async fn run(
    client: &Client,
    printer: &mut Printer<impl Write>,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    loop {
        let mut flows: Vec<FlowView> = client.get("/v1/flows").await?;
        if let Some(wanted) = &arguments.workload {
            flows.retain(|flow| is_of(flow, wanted));
        }
        // Open ones first, the youngest of each on top.
        flows.sort_by_key(|flow| (flow.state != FlowState::Open, flow.age_ms, flow.id));
        if arguments.watch && printer.output != Output::Json && std::io::stdout().is_terminal() {
            printer.text(CLEAR)?;
        }
        printer.show(&flows, |flows, wide| text(flows, wide))?;
        if !arguments.watch {
            return Ok(());
        }
        tokio::time::sleep(REFRESH).await;
    }
}

fn is_of(flow: &FlowView, wanted: &str) -> bool {
    flow.workload == wanted || flow.workload.split_once('.').map(|parts| parts.0) == Some(wanted)
}

fn text(flows: &[FlowView], wide: bool) -> String {
    if flows.is_empty() {
        return "No flows.\n".to_owned();
    }
    let mut header = vec![
        "WORKLOAD",
        "DIR",
        "SOURCE",
        "DESTINATION",
        "SERVICE",
        "PROTO",
        "SECURITY",
        "SENT",
        "RECEIVED",
        "RTT",
        "AGE",
        "STATE",
    ];
    if wide {
        header.extend([
            "ENDPOINT",
            "VERDICT",
            "SHORT-CIRCUIT",
            "CONNECT",
            "MIN-RTT",
            "SEGMENTS",
            "RETRANSMITS",
            "SOURCE-IDENTITY",
            "DESTINATION-IDENTITY",
            "ID",
        ]);
    }
    let mut table = Table::new(&header);
    for flow in flows {
        let mut cells = vec![
            flow.workload.clone(),
            match flow.direction {
                Direction::Outbound => "out",
                Direction::Inbound => "in",
            }
            .to_owned(),
            flow.source.to_string(),
            flow.destination.to_string(),
            flow.service.clone().unwrap_or_default(),
            flow.protocol.clone(),
            security(flow.security).to_owned(),
            bytes(flow.bytes_sent),
            bytes(flow.bytes_received),
            micros(flow.rtt_us),
            if flow.age_ms < 1000 {
                format!("{}ms", flow.age_ms)
            } else {
                duration(flow.age_ms / 1000)
            },
            match &flow.state {
                FlowState::Open => "open".to_owned(),
                FlowState::Closed(reason) => format!("closed: {reason}"),
            },
        ];
        if wide {
            cells.extend([
                flow.endpoint
                    .map(|endpoint| endpoint.to_string())
                    .unwrap_or_default(),
                flow.verdict.clone(),
                format!(
                    "{}/{}",
                    bytes(flow.short_circuit_sent),
                    bytes(flow.short_circuit_received)
                ),
                micros(flow.connect_us.unwrap_or(0)),
                micros(flow.min_rtt_us.unwrap_or(0)),
                format!("{}/{}", flow.segments_sent, flow.segments_received),
                flow.retransmits.to_string(),
                flow.source_identity.clone().unwrap_or_default(),
                flow.destination_identity.clone().unwrap_or_default(),
                flow.id.to_string(),
            ]);
        }
        table.row(cells);
    }
    table.render()
}

fn security(security: Security) -> &'static str {
    match security {
        Security::MutualTls => "mutual_tls",
        Security::SameNode => "same_node",
        Security::Plaintext => "plaintext",
        Security::Unknown => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;

    #[test]
    fn tables() {
        golden("flows.txt", &text(&samples::flows(), false));
        golden("flows-wide.txt", &text(&samples::flows(), true));
        assert_eq!(text(&[], false), "No flows.\n");
    }

    #[test]
    fn json_reads_what_it_writes() {
        let written = serde_json::to_string(&samples::flows()).unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<FlowView>>(&written).unwrap(),
            samples::flows()
        );
    }

    #[test]
    fn the_filter_takes_names_with_and_without_namespace() {
        let flow = &samples::flows()[0];
        assert!(is_of(flow, "sleep") && is_of(flow, "sleep.default"));
        assert!(!is_of(flow, "slee") && !is_of(flow, "sleep.other") && !is_of(flow, ""));
    }
}
