//! `meshctl endpoints --inbound`

use super::endpoints::gauge;
use super::table::Table;
use crate::admin::api::InboundView;

/// A row for each port; below, what was refused.
pub(super) fn text(ports: &[InboundView]) -> String {
    if ports.is_empty() {
        return "No bounds: no application of this node that a Sidecar bounds has been called yet.\n"
            .to_owned();
    }
    let mut table = Table::new(&["WORKLOAD", "PORT", "CONNECTIONS", "WAITING", "REQUESTS"]);
    for port in ports {
        table.row([
            port.workload.clone(),
            port.port.to_string(),
            gauge(port.connections),
            gauge(port.pending),
            gauge(port.requests),
        ]);
    }
    let mut text = table.render();
    for port in ports {
        for (refused, what) in [
            (
                port.connections.refused,
                "connections were refused: maxConnections were open already",
            ),
            (
                port.pending.refused,
                "requests were refused: http1MaxPendingRequests waited already",
            ),
            (
                port.requests.refused,
                "requests were refused: http2MaxRequests were on their way already",
            ),
        ] {
            if refused > 0 {
                let (workload, number) = (&port.workload, port.port);
                text.push_str(&format!("to {workload}:{number}: {refused} {what}\n"));
            }
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
    fn bounds() {
        golden("endpoints-inbound.txt", &text(&samples::inbound()));
        assert!(text(&[]).starts_with("No bounds"));
    }
}
