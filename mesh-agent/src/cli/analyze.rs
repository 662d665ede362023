//! `meshctl analyze`

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::{ClientError, CommandError, FOUND, Output, Printer, plaintext};
use crate::admin::api::{ConfigView, FindingView, PlaintextView};
use crate::resource::{Finding, ResourceSet, Severity, parse};
use crate::snapshot::{Options, Snapshot};
use crate::source::directory;

/// What is analyzed.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Directory (or one file) of YAML; without it, what the running agent has
    path: Option<PathBuf>,
    /// Count the clients that would be cut off if this came into force, by what the running agent
    /// has seen; the exit code is 1 where there are any
    #[arg(long)]
    dry_run: bool,
    /// Namespace whose security policies hold for the whole mesh [default: the running agent's, or
    /// istio-system where none runs]
    #[arg(long, value_name = "NAME", requires = "path")]
    root_namespace: Option<String>,
}

/// Codes that mean a request would fail, as Istio grades them.
const ERRORS: [&str; 2] = ["IST0101", "IST0109"];

/// How grave an issue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Level {
    Error,
    Warning,
}

/// One issue.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Issue {
    level: Level,
    #[serde(flatten)]
    finding: FindingView,
}

pub async fn run(
    client: Result<Client, ClientError>,
    printer: &mut Printer<impl Write>,
    arguments: &Arguments,
) -> Result<u8, CommandError> {
    let mut cut_off = Vec::new();
    let (place, mut issues) = match &arguments.path {
        Some(path) => {
            // Whom the files would cut off is known to a running agent alone.
            let running = match client {
                Ok(client) => seen(&client).await,
                Err(error) => Err(error.into()),
            };
            let running = match running {
                Err(error) if arguments.dry_run => return Err(error),
                running => running.ok(),
            };
            let mut options = Options::default();
            let of_agent = running.as_ref().map(|(config, _)| &config.root_namespace);
            if let Some(name) = arguments.root_namespace.as_ref().or(of_agent) {
                options.root_namespace.clone_from(name);
            }
            let (issues, resources) = of_files(path, &options)?;
            if let (Some((config, seen)), Some(resources)) = (&running, resources) {
                let root = &options.root_namespace;
                cut_off = plaintext::cut_off(seen, &resources, config, path.is_dir(), root);
            }
            (path.display().to_string(), issues)
        }
        None => {
            let (config, seen) = seen(&client?).await?;
            cut_off = plaintext::permitted(&seen, &config);
            let refused = config
                .refused
                .into_iter()
                .flat_map(|refused| refused.errors);
            let refused = refused.map(|finding| Issue {
                level: Level::Error,
                finding,
            });
            let issues = refused.chain(config.warnings.into_iter().map(Issue::of));
            (config.source, issues.collect())
        }
    };
    let count = cut_off.len();
    issues.extend(cut_off.into_iter().map(Issue::of));
    issues.sort_by_key(|issue| issue.level);
    printer.show(&issues, |issues, _| text(issues, &place))?;
    if arguments.dry_run && printer.output != Output::Json {
        printer.text(&format!(
            "{count} clients that spoke plaintext within {} minutes would be cut off.\n",
            plaintext::ANALYZED_MINUTES
        ))?;
    }
    let found = issues.iter().any(|issue| issue.level == Level::Error);
    Ok(if found || (arguments.dry_run && count > 0) {
        FOUND
    } else {
        0
    })
}

async fn seen(client: &Client) -> Result<(ConfigView, Vec<PlaintextView>), CommandError> {
    let config: ConfigView = client.get("/v1/config").await?;
    Ok((
        config,
        plaintext::ask(client, plaintext::ANALYZED_MINUTES).await?,
    ))
}

/// Analyzes files without any agent; their resources, where they can be read.
fn of_files(
    path: &Path,
    options: &Options,
) -> Result<(Vec<Issue>, Option<ResourceSet>), CommandError> {
    let unreadable = |source: std::io::Error| CommandError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let loaded = if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        directory::load(path)
    } else {
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        parse([(&*name, text.as_str())])
    };
    let (findings, resources): (Vec<Finding>, _) = match loaded {
        Ok(resources) => match Snapshot::compile(0, &resources, options) {
            Ok(snapshot) => (snapshot.warnings, Some(resources)),
            Err(findings) => (findings, None),
        },
        Err(findings) => (findings, None),
    };
    let issue = |finding: &Finding| match finding.severity {
        Severity::Error => {
            let mut view = FindingView::from(finding);
            // "The document does not meet the schema."
            view.code.get_or_insert_with(|| "IST0106".to_owned());
            Issue {
                level: Level::Error,
                finding: view,
            }
        }
        Severity::Warning => Issue::of(finding.into()),
    };
    let mut issues: Vec<Issue> = findings.iter().map(issue).collect();
    issues.sort_by_key(|issue| issue.level);
    Ok((issues, resources))
}

impl Issue {
    fn of(finding: FindingView) -> Self {
        let is_error = |code: &str| ERRORS.contains(&code);
        Self {
            level: if finding.code.as_deref().is_some_and(is_error) {
                Level::Error
            } else {
                Level::Warning
            },
            finding,
        }
    }
}

fn text(issues: &[Issue], place: &str) -> String {
    if issues.is_empty() {
        return format!("No issues found in {place}.\n");
    }
    let mut text = String::new();
    for Issue { level, finding } in issues {
        let code = finding.code.as_deref();
        let code = code.map_or(String::new(), |code| format!(" [{code}]"));
        let place = match finding.document {
            // What is seen stands in no file.
            0 => String::new(),
            document => format!(" {}:{document}", finding.file),
        };
        let _ = write!(text, "{level:?}{code} ({}{place})", finding.object);
        if !finding.field.is_empty() {
            let _ = write!(text, " {}", finding.field);
        }
        let _ = writeln!(text, ": {}", finding.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::samples;

    fn issues(root_namespace: &str, yaml: &str) -> Vec<Issue> {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("a.yaml"), yaml).expect("written");
        let options = Options {
            root_namespace: root_namespace.to_owned(),
            ..Options::default()
        };
        of_files(directory.path(), &options).expect("readable").0
    }

    fn analyzed(yaml: &str) -> String {
        text(&issues("istio-system", yaml), "here")
    }

    const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";

    /// The codes, with the fields that they are told of.
    fn codes(yaml: &str) -> Vec<String> {
        let mut codes: Vec<_> = (issues("istio-system", yaml).into_iter())
            .filter_map(|issue| Some(format!("{} {}", issue.finding.code?, issue.finding.field)))
            .collect();
        codes.sort();
        codes
    }

    const APPLICATION: &str = "
{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: a, annotations: {undermesh.io/netns: a}}, spec: {address: 10.0.0.1, labels: {app: a}}}
---
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{port: 80, name: http}, {port: 81, name: tcp}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: one}, spec: {clusterIP: 10.96.0.2, selector: {app: a}, ports: [{port: 80, name: http}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p}, spec: {mtls: {mode: STRICT}}}
";

    #[test]
    fn what_istios_analysis_finds_is_found() {
        let networking = |kind: &str, spec: &str| {
            format!(
                "---\n{{apiVersion: networking.istio.io/v1, kind: {kind}, metadata: {{name: x}}, spec: {spec}}}\n"
            )
        };
        let security = |kind: &str, spec: &str| {
            format!(
                "---\n{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: x}}, spec: {spec}}}\n"
            )
        };
        let to = "route: [{destination: {host: one}}]";
        for (resource, expected) in [
            (
                networking(
                    "VirtualService",
                    "{hosts: [one], http: [{route: [{destination: {host: a}}]}]}",
                ),
                &["IST0112 spec.http[0].route[0].destination.port"][..],
            ),
            (
                networking(
                    "VirtualService",
                    "{hosts: [one], http: [{route: [{destination: {host: a, port: {number: 80}}}]}]}",
                ),
                &[],
            ),
            (
                networking(
                    "VirtualService",
                    &format!(
                        "{{hosts: [one], http: [{{match: [{{uri: {{prefix: /a}}}}], {to}}}, {{match: [{{name: n, uri: {{prefix: /a}}}}, {{uri: {{prefix: /b}}}}], {to}}}, {{match: [{{uri: {{prefix: /b}}}}], {to}}}]}}"
                    ),
                ),
                &["IST0130 spec.http[2]", "IST0131 spec.http[1].match[0]"],
            ),
            (
                networking(
                    "VirtualService",
                    &format!(
                        "{{hosts: [one], http: [{{match: [{{uri: {{regex: '['}}}}], {to}}}]}}"
                    ),
                ),
                &["IST0122 spec.http[0].match[0].uri.regex"],
            ),
            (
                networking(
                    "DestinationRule",
                    "{host: a, trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 81}, tls: {mode: ISTIO_MUTUAL}}]}}",
                ),
                &["IST0113 spec.trafficPolicy.tls.mode"],
            ),
            (
                networking(
                    "DestinationRule",
                    "{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, insecureSkipVerify: true}}]}}",
                ),
                &["IST0129 spec.trafficPolicy.portLevelSettings[0].tls.insecureSkipVerify"],
            ),
            (
                networking(
                    "DestinationRule",
                    "{host: a, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}",
                ),
                &["IST0128 spec.trafficPolicy.tls.insecureSkipVerify"],
            ),
            (
                networking(
                    "ServiceEntry",
                    "{hosts: [x.example.com], ports: [{number: 9000, name: tcp, protocol: TCP}]}",
                ),
                &["IST0134 spec.addresses"],
            ),
            (
                networking(
                    "ServiceEntry",
                    "{hosts: [x.example.com], addresses: [192.0.2.1], ports: [{number: 9000, name: tcp, protocol: TCP}]}",
                ),
                &[],
            ),
            (
                security(
                    "AuthorizationPolicy",
                    "{selector: {matchLabels: {app: b}}, rules: [{}]}",
                ),
                &["IST0127 spec.selector"],
            ),
            (
                security(
                    "PeerAuthentication",
                    "{selector: {matchLabels: {app: b}}, mtls: {mode: STRICT}}",
                ),
                &["IST0127 spec.selector"],
            ),
        ] {
            assert_eq!(
                codes(&format!("{APPLICATION}{resource}")),
                expected,
                "{resource}"
            );
        }
    }

    #[test]
    fn settings_for_a_port_that_is_none_are_told() {
        let rule = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d}, \
                    spec: {host: a, trafficPolicy: {portLevelSettings: [{port: {number: 99}}]}}}";
        let text = analyzed(&format!("{APPLICATION}---\n{rule}\n"));
        assert_eq!(
            text,
            "Warning (DestinationRule default/d a.yaml:5) spec.trafficPolicy.portLevelSettings[0].port.number: \
             has no effect: a.default.svc.cluster.local has no port 99\n"
        );
    }

    #[test]
    fn issues_have_istios_codes() {
        let rule = |name: &str, spec: &str| {
            format!(
                "--- {{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}}}, spec: {spec}}}\n"
            )
        };
        let text = analyzed(&format!(
            "{SERVICE}\n{}{}{}--- {{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: d}}, spec: {{host: nowhere}}}}\n",
            rule(
                "v",
                "{hosts: [a], http: [{route: [{destination: {host: a, subset: b}}]}, {route: [{destination: {host: a}}]}]}"
            ),
            rule(
                "w",
                "{hosts: [a], http: [{route: [{destination: {host: c}}]}]}"
            ),
            rule(
                "x",
                "{hosts: [x], http: [{match: [{port: 80, statPrefix: s}], route: [{destination: {host: a}}]}]}"
            ),
        ));
        for line in [
            "Error [IST0101] (VirtualService default/v a.yaml:2) spec.http[0].route[0].destination.subset: subset \"b\" of",
            "Error [IST0101] (VirtualService default/w a.yaml:3) spec.http[0].route[0].destination.host: no service is named c.",
            "Error [IST0109] (VirtualService default/w a.yaml:3) spec.hosts[0]: has no effect",
            "Warning [IST0130] (VirtualService default/v a.yaml:2) spec.http[1]: is never reached",
            "Warning [IST0174] (DestinationRule default/d a.yaml:5) spec.host: has no effect",
            "Warning (VirtualService default/x a.yaml:4) spec.http[0].match[0].statPrefix: not applied",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        // Errors come first.
        assert!(text.starts_with("Error "), "{text}");
    }

    #[test]
    fn what_cannot_be_used_is_an_error() {
        let text = analyzed(
            "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 0}]}}",
        );
        assert!(
            text.starts_with("Error [IST0106] (Service default/a a.yaml:1)"),
            "{text}"
        );
    }

    #[test]
    fn who_speaks_plaintext_is_told_with_what_lets_it() {
        let seen = samples::plaintext();
        let permitted = plaintext::permitted(&seen, &samples::config());
        let issues: Vec<_> = permitted.into_iter().map(Issue::of).collect();
        let text = text(&issues, "here");
        for begin in [
            "Warning (WorkloadEntry default/reviews-v1): PERMISSIVE is in force: STRICT would cut off sleep.legacy,",
            "Warning (PeerAuthentication shop/default): DISABLE is in force: STRICT would cut off 10.0.3.4,",
        ] {
            assert!(text.lines().any(|line| line.starts_with(begin)), "{text}");
        }
    }

    #[test]
    fn the_root_namespace_is_the_one_that_is_named() {
        let policy = "---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, \
                      metadata: {name: x, namespace: mesh-config}, \
                      spec: {selector: {matchLabels: {app: a}}, rules: [{}]}}\n";
        let of = |root| text(&issues(root, &format!("{APPLICATION}{policy}")), "here");
        assert!(of("istio-system").contains("[IST0127]"));
        assert!(!of("mesh-config").contains("[IST0127]"));
    }

    #[test]
    fn nothing_is_a_good_sign() {
        assert_eq!(analyzed(""), "No issues found in here.\n");
    }
}
