//! `meshctl authn plaintext`, and what `meshctl analyze` says of whom STRICT would cut off.

use std::io::Write;
use std::path::Path;

use clap::Args;

use super::client::Client;
use super::table::Table;
use super::{CommandError, Printer};
use crate::admin::api::{ConfigView, FindingView, PlaintextView};
use crate::admin::checks::duration;
use crate::policy::{MtlsMode, PeerAuthentications};
use crate::resource::{Finding, Meta, ResourceSet};
use crate::source::directory;

/// How far back `analyze` looks, minutes.
pub(super) const ANALYZED_MINUTES: u32 = 10;

/// How far back.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only connections of the last minutes
    #[arg(long, value_name = "MINUTES", default_value_t = ANALYZED_MINUTES)]
    minutes: u32,
}

pub async fn run(
    client: &Client,
    printer: &mut Printer<impl Write>,
    arguments: &Arguments,
) -> Result<(), CommandError> {
    let seen = ask(client, arguments.minutes).await?;
    Ok(printer.show(&seen, |seen, _| text(seen, arguments.minutes))?)
}

pub(super) async fn ask(client: &Client, minutes: u32) -> Result<Vec<PlaintextView>, CommandError> {
    Ok(client
        .get(&format!("/v1/plaintext?minutes={minutes}"))
        .await?)
}

fn text(seen: &[PlaintextView], minutes: u32) -> String {
    if seen.is_empty() {
        return format!(
            "No workload of this node was spoken to in the clear within {minutes} minutes.\n"
        );
    }
    let mut table = Table::new(&[
        "WORKLOAD",
        "PORT",
        "MODE",
        "AUTHN POLICY",
        "CLIENT",
        "CONNECTIONS",
        "LAST",
    ]);
    for one in seen {
        table.row([
            format!("{}.{}", one.workload, one.namespace),
            one.port.to_string(),
            one.mode.clone(),
            one.authn_policy.clone(),
            one.client.clone(),
            one.connections.to_string(),
            format!("{} ago", duration(one.last_seen_s)),
        ]);
    }
    table.render()
}

/// Those of `seen` that the PeerAuthentications of `resources` would refuse;
/// `is_whole` where these are the whole configuration, not an addition to the agent's, and those of
/// `root_namespace` hold for the mesh.
pub(super) fn cut_off(
    seen: &[PlaintextView],
    resources: &ResourceSet,
    config: &ConfigView,
    is_whole: bool,
    root_namespace: &str,
) -> Vec<FindingView> {
    let new = &resources.peer_authentications;
    let mut policies = Vec::new();
    if !is_whole && let Ok(running) = directory::load(Path::new(&config.source)) {
        let is_replaced = |one: &Meta| {
            new.iter().any(|other| {
                (&other.meta.namespace, &other.meta.name) == (&one.namespace, &one.name)
            })
        };
        let running = running.peer_authentications.into_iter();
        policies.extend(running.filter(|one| !is_replaced(&one.meta)));
    }
    policies.extend(new.iter().cloned());
    let (compiled, _) = PeerAuthentications::compile(&policies, root_namespace);
    let refused = seen.iter().filter_map(|one| {
        let (mode, policy) = compiled.of(&one.namespace, &one.labels, one.port);
        (mode == MtlsMode::Strict).then_some((one, policy?))
    });
    refused
        .filter_map(|(one, policy)| {
            let (name, namespace) = policy.split_once('/')?;
            let namespace = if namespace.is_empty() {
                root_namespace
            } else {
                namespace
            };
            let is_it = |meta: &Meta| (&*meta.name, &*meta.namespace) == (name, namespace);
            let meta = policies
                .iter()
                .map(|one| &one.meta)
                .find(|meta| is_it(meta))?;
            let finding = Finding::warning(meta, "spec.mtls.mode", reason(one));
            Some(FindingView::from(&finding))
        })
        .collect()
}

/// Those of `seen` that STRICT would refuse where another mode is in force.
pub(super) fn permitted(seen: &[PlaintextView], config: &ConfigView) -> Vec<FindingView> {
    seen.iter()
        .map(|one| FindingView {
            file: config.source.clone(),
            document: 0,
            object: match one.authn_policy.split_once('/') {
                Some((name, namespace)) => format!("PeerAuthentication {namespace}/{name}"),
                None => format!("WorkloadEntry {}/{}", one.namespace, one.workload),
            },
            field: String::new(),
            reason: format!("{} is in force: {}", one.mode, reason(one)),
            code: None,
        })
        .collect()
}

fn reason(one: &PlaintextView) -> String {
    format!(
        "STRICT would cut off {}, which spoke plaintext to {}.{} port {}, last {} ago ({} connections)",
        one.client,
        one.workload,
        one.namespace,
        one.port,
        duration(one.last_seen_s),
        one.connections
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;
    use crate::cli::golden::golden;
    use crate::resource::parse;

    #[test]
    fn table() {
        golden("plaintext.txt", &text(&samples::plaintext(), 10));
    }

    #[test]
    fn only_whom_the_new_policies_refuse_would_be_cut_off() {
        let policy = |namespace: &str, name: &str, mode: &str| {
            format!(
                "--- {{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: \
                 {{name: {name}, namespace: {namespace}}}, spec: {{mtls: {{mode: {mode}}}}}}}\n"
            )
        };
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("a.yaml"),
            policy("shop", "open", "PERMISSIVE"),
        )
        .unwrap();
        let config = ConfigView {
            source: directory.path().display().to_string(),
            ..samples::config()
        };
        // Of `shop` and of `default`.
        let seen = samples::plaintext();
        let cut_in = |root: &str, text: &str, is_whole| -> Vec<String> {
            let resources = parse([("new.yaml", text)]).unwrap();
            cut_off(&seen, &resources, &config, is_whole, root)
                .iter()
                .map(|finding| format!("{}:{} {}", finding.file, finding.document, finding.reason))
                .collect()
        };
        let cut = |text: &str, is_whole| cut_in("istio-system", text, is_whole);
        let strict = policy("istio-system", "default", "STRICT");
        let one = cut(&strict, false);
        assert_eq!(one.len(), 1, "{one:?}");
        assert!(
            one[0].starts_with("new.yaml:1 STRICT would cut off sleep.legacy"),
            "{one:?}"
        );
        assert_eq!(cut(&strict, true).len(), 2);
        // The root namespace has any name.
        assert!(cut_in("mesh-config", &strict, true).is_empty());
        let elsewhere = policy("mesh-config", "default", "STRICT");
        assert_eq!(cut_in("mesh-config", &elsewhere, true).len(), 2);
        let replaced = strict + &policy("shop", "open", "STRICT");
        assert_eq!(cut(&replaced, false).len(), 2);
        assert_eq!(
            cut(&policy("shop", "open", "DISABLE"), false),
            Vec::<String>::new()
        );
    }
}
