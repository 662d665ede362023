//! `meshctl workloads`

use std::io::Write;

use super::client::Client;
use super::table::Table;
use super::{CommandError, Printer, joined};
use crate::admin::api::{TunnelProtocol, WorkloadState, WorkloadView};

pub async fn run(client: &Client, printer: &mut Printer<impl Write>) -> Result<(), CommandError> {
    let workloads: Vec<WorkloadView> = client.get("/v1/workloads").await?;
    Ok(printer.show(&workloads, |workloads, wide| text(workloads, wide))?)
}

fn text(workloads: &[WorkloadView], wide: bool) -> String {
    if workloads.is_empty() {
        return "No workloads: the configuration has no WorkloadEntry.\n".to_owned();
    }
    let mut header = vec!["NAMESPACE", "NAME", "NODE", "ADDRESS", "PROTOCOL", "STATE"];
    if wide {
        header.extend(["PLACEMENT", "IDENTITY"]);
    }
    let mut table = Table::new(&header);
    for workload in workloads {
        let mut cells = vec![
            workload.namespace.clone(),
            workload.name.clone(),
            workload.node.clone(),
            joined(&workload.addresses),
            match workload.protocol {
                TunnelProtocol::Hbone => "HBONE",
                TunnelProtocol::MutualTls => "mTLS",
                TunnelProtocol::Tcp => "TCP",
            }
            .to_owned(),
            match &workload.state {
                WorkloadState::Enrolled => "Enrolled".to_owned(),
                WorkloadState::Remote => "Remote".to_owned(),
                WorkloadState::Waiting(reason) => format!("Waiting: {reason}"),
                WorkloadState::Failed(reason) => format!("Failed: {reason}"),
            },
        ];
        if wide {
            cells.extend([workload.placement.clone(), workload.identity.clone()]);
        }
        table.row(cells);
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
        golden("workloads.txt", &text(&samples::workloads(), false));
        golden("workloads-wide.txt", &text(&samples::workloads(), true));
        assert!(text(&[], false).starts_with("No workloads"));
    }
}
