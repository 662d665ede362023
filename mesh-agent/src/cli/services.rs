//! `meshctl services`

use std::io::Write;

use super::client::Client;
use super::table::Table;
use super::{CommandError, Printer, joined};
use crate::admin::api::ServiceView;

pub async fn run(client: &Client, printer: &mut Printer<impl Write>) -> Result<(), CommandError> {
    let services: Vec<ServiceView> = client.get("/v1/services").await?;
    Ok(printer.show(&services, |services, wide| text(services, wide))?)
}

fn text(services: &[ServiceView], wide: bool) -> String {
    if services.is_empty() {
        return "No services: the configuration has no Service and no ServiceEntry.\n".to_owned();
    }
    let mut header = vec!["HOST", "ADDRESS", "PORTS", "HEALTHY"];
    if wide {
        header.push("ENDPOINTS");
    }
    let mut table = Table::new(&header);
    for service in services {
        let healthy = service.endpoints.iter().filter(|one| one.healthy).count();
        let ports = service
            .ports
            .iter()
            .map(|port| format!("{}/{}", port.number, port.protocol));
        let mut cells = vec![
            service.host.clone(),
            joined(&service.vips),
            joined(ports),
            format!("{healthy}/{}", service.endpoints.len()),
        ];
        if wide {
            cells.push(joined(service.endpoints.iter().map(|endpoint| {
                let workload = endpoint.workload.as_ref();
                let name = workload.map_or(String::new(), |name| format!("={name}"));
                let state = if endpoint.healthy { "" } else { "(unhealthy)" };
                format!("{}{name}{state}", endpoint.address)
            })));
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
        golden("services.txt", &text(&samples::services(), false));
        golden("services-wide.txt", &text(&samples::services(), true));
        assert!(text(&[], false).starts_with("No services"));
    }
}
