//! VirtualServices to rules.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::cors::Cors;
use super::decide::Abort;
use super::edit::{PathRewrite, RouteEdits};
use super::hosts::expand;
use super::matching::Match;
use super::model::{
    Action, DirectResponse, Fault, Forward, RouteLimits, Rule, Rules, Target, Targets, VirtualHost,
};
use super::policy::DestinationRules;
use super::redirect::Redirect;
use super::retry::Retries;
use super::sidecar::Sidecars;
use super::tcp::TcpRule;
use super::tls::TlsRule;
use super::upstream_policy::OutlierPolicy;
use super::{ClientView, Routes, Settings, Sources, delegate};
use crate::registry::{Registry, Service, Visibility};
use crate::resource::destination_rule::{Comparisons, DestinationRuleSpec};
use crate::resource::value::grpc_status_code;
use crate::resource::virtual_service::{
    Destination, HttpDirectResponse, HttpFault, HttpRoute, VirtualServiceSpec, limits,
};
use crate::resource::{Finding, Resource};

impl Routes {
    /// Compiles resources that have been validated. Resources stand in order of
    /// age, the oldest first. The findings are warnings: about hosts that
    /// belong to an older resource and names that nothing defines.
    pub fn compile(
        sources: &Sources<'_>,
        registry: &Registry,
        settings: &Settings<'_>,
    ) -> (Self, Vec<Finding>) {
        let &Sources {
            virtual_services,
            destination_rules,
            sidecars,
        } = sources;
        let &Settings {
            cluster_domain,
            root_namespace,
            outbound,
        } = settings;
        let mut findings = Vec::new();
        let virtual_services = delegate::resolve(virtual_services, cluster_domain, &mut findings);
        let mut routes = Self {
            cluster_domain: cluster_domain.to_owned(),
            destination_rules: DestinationRules::compile(
                destination_rules,
                cluster_domain,
                root_namespace,
                &mut findings,
            ),
            sidecars: Sidecars::compile(
                sidecars,
                registry,
                root_namespace,
                outbound,
                &mut findings,
            ),
            ..Self::default()
        };
        for resource in destination_rules {
            let host = expand(
                &resource.spec.host,
                &resource.meta.namespace,
                cluster_domain,
            );
            match registry.service_of_host(&host, &resource.meta.namespace) {
                Some(service) => check_ejection(resource, service, &mut findings),
                None if !host.starts_with('*') => findings.push(
                    Finding::warning(
                        &resource.meta,
                        "spec.host",
                        format!("has no effect: no service is named {host}"),
                    )
                    .with_code("IST0174"),
                ),
                None => {}
            }
        }
        for resource in virtual_services.iter() {
            let spec = &resource.spec;
            if !spec.gateways.is_empty() && !spec.gateways.iter().any(|gateway| gateway == "mesh") {
                continue;
            }
            let rules = Arc::new(compile_rules(resource, cluster_domain));
            for (i, host) in spec.hosts.iter().enumerate() {
                let host = expand(host, &resource.meta.namespace, cluster_domain);
                let owners = routes.virtual_hosts.entry(&host);
                if let Some(owner) = owners
                    .iter()
                    .find(|owner| owner.0.visibility.includes(&resource.meta.namespace))
                {
                    findings.push(
                        Finding::warning(
                            &resource.meta,
                            format!("spec.hosts[{i}]"),
                            format!(
                                "has no effect: {host} belongs to the older {}",
                                owner.0.origin
                            ),
                        )
                        .with_code("IST0109"),
                    );
                }
                owners.push(VirtualHost(Arc::clone(&rules)));
            }
        }
        for resource in virtual_services.iter() {
            routes.check_destinations(resource, registry, &mut findings);
        }
        (routes, findings)
    }

    /// Warns of destinations to which every request would be refused.
    fn check_destinations(
        &self,
        resource: &Resource<VirtualServiceSpec>,
        registry: &Registry,
        findings: &mut Vec<Finding>,
    ) {
        let spec = &resource.spec;
        let http = spec.http.iter().enumerate().flat_map(|(i, rule)| {
            let to = rule.route.iter().map(|entry| &entry.destination);
            let routes = to
                .enumerate()
                .map(move |(j, to)| (format!("spec.http[{i}].route[{j}].destination"), to));
            let mirror = rule.mirror.iter();
            let mirror = mirror.map(move |to| (format!("spec.http[{i}].mirror"), to));
            let mirrors = rule.mirrors.iter().map(|mirror| &mirror.destination);
            let mirrors = mirrors
                .enumerate()
                .map(move |(j, to)| (format!("spec.http[{i}].mirrors[{j}].destination"), to));
            routes.chain(mirror).chain(mirrors)
        });
        let tls = spec.tls.iter().enumerate().flat_map(|(i, rule)| {
            let to = rule.route.iter().map(|entry| &entry.destination);
            to.enumerate()
                .map(move |(j, to)| (format!("spec.tls[{i}].route[{j}].destination"), to))
        });
        let tcp = spec.tcp.iter().enumerate().flat_map(|(i, rule)| {
            let to = rule
                .route
                .iter()
                .map(|entry| &entry.destination)
                .enumerate();
            to.map(move |(j, to)| (format!("spec.tcp[{i}].route[{j}].destination"), to))
        });
        for (field, to) in http.chain(tcp).chain(tls) {
            if let Some((part, code, reason)) = self.problem(resource, to, registry) {
                let what = if field.contains("mirror") {
                    "nothing is mirrored"
                } else if field.starts_with("spec.http") {
                    "such requests are answered with 503 (NC)"
                } else {
                    "such connections are refused"
                };
                let reason = format!("{reason}; {what}");
                findings.push(
                    Finding::warning(&resource.meta, format!("{field}.{part}"), reason)
                        .with_code(code),
                );
            }
        }
    }

    fn problem(
        &self,
        resource: &Resource<VirtualServiceSpec>,
        to: &Destination,
        registry: &Registry,
    ) -> Option<(&'static str, &'static str, String)> {
        let namespace = resource.meta.namespace.as_str();
        let host = expand(&to.host, namespace, &self.cluster_domain);
        let Some(service) = registry.service_of_host(&host, namespace) else {
            return Some(("host", "IST0101", format!("no service is named {host}")));
        };
        if let Some(port) = to.port
            && !service
                .ports
                .iter()
                .any(|own| u32::from(own.number) == port.number)
        {
            return Some((
                "port.number",
                "IST0101",
                format!("{host} has no port {}", port.number),
            ));
        }
        let name = to.subset.as_deref()?;
        let client = ClientView {
            namespace,
            labels: &Default::default(),
        };
        let rule = self.destination_rules.find(&client, service);
        let Some(subset) = rule.and_then(|rule| rule.subset(name)) else {
            let reason = super::decide::undefined_subset(name, &host);
            return Some(("subset", "IST0101", reason));
        };
        let selected = service.endpoints.iter().any(|endpoint| {
            let has = |(key, value): (&String, &String)| endpoint.labels.get(key) == Some(value);
            subset.labels.iter().all(has)
        });
        (!selected && !service.endpoints.is_empty()).then(|| {
            (
                "subset",
                "IST0173",
                format!("subset {name:?} of {host} selects no endpoint"),
            )
        })
    }
}

/// Warns where the service has too few endpoints for `maxEjectionPercent` to let
/// one be taken out of service: outlier detection then does nothing.
fn check_ejection(
    resource: &Resource<DestinationRuleSpec>,
    service: &Service,
    findings: &mut Vec<Finding>,
) {
    let spec = &resource.spec;
    let of_rule = spec
        .traffic_policy
        .iter()
        .map(|policy| ("spec.trafficPolicy".to_owned(), policy, None));
    let of_subsets = spec.subsets.iter().enumerate().filter_map(|(i, subset)| {
        let policy = subset.traffic_policy.as_ref()?;
        let field = format!("spec.subsets[{i}].trafficPolicy");
        Some((field, policy, Some(&subset.labels)))
    });
    for (field, policy, labels) in of_rule.chain(of_subsets) {
        let endpoints = service.endpoints.iter().filter(|endpoint| {
            labels.is_none_or(|labels| {
                labels
                    .iter()
                    .all(|(key, value)| endpoint.labels.get(key) == Some(value))
            })
        });
        // The addresses of one workload are one endpoint.
        let mut workloads = HashSet::new();
        let mut count = 0;
        for endpoint in endpoints {
            let workload = endpoint.workload.as_ref();
            let is_new = workload.is_none_or(|workload| workloads.insert(&workload.name));
            count += usize::from(is_new);
        }
        let of_ports = policy.port_level_settings.iter().enumerate();
        let blocks = of_ports
            .map(|(i, port)| {
                let field = format!("{field}.portLevelSettings[{i}]");
                (field, &port.outlier_detection)
            })
            .chain([(field.clone(), &policy.outlier_detection)]);
        for (field, block) in blocks {
            let Some(block) = block else { continue };
            let percent =
                OutlierPolicy::compile(block, &Comparisons::default()).max_ejection_percent;
            if count == 0 || count * percent as usize >= 100 {
                continue;
            }
            let default = match block.max_ejection_percent {
                Some(1..) => "",
                _ => " (the default)",
            };
            findings.push(Finding::warning(
                &resource.meta,
                format!("{field}.outlierDetection.maxEjectionPercent"),
                format!(
                    "{percent} %{default} of {count} endpoint{} is less than one: none is ever taken out of service",
                    if count == 1 { "" } else { "s" }
                ),
            ));
        }
    }
}

fn compile_rules(resource: &Resource<VirtualServiceSpec>, cluster_domain: &str) -> Rules {
    let meta = &resource.meta;
    let full_name = |host: &str| expand(host, &meta.namespace, cluster_domain);
    let spec = &resource.spec;
    // Validation has told of what is wrong with them.
    let bounds = limits::read(resource).0;
    let limits = |name: &str| {
        let bounds = *bounds.get(name)?;
        let route = format!("{}/{}/{name}", meta.namespace, meta.name);
        Some(Arc::new(RouteLimits { route, bounds }))
    };
    Rules {
        origin: format!("VirtualService {}/{}", meta.namespace, meta.name),
        namespace: meta.namespace.clone(),
        visibility: Visibility::new(meta, &spec.export_to),
        http: spec
            .http
            .iter()
            .enumerate()
            .filter_map(|(i, route)| {
                let limits = route.name.as_deref().and_then(limits);
                compile_rule(i, route, limits, &full_name)
            })
            .collect(),
        tcp: spec
            .tcp
            .iter()
            .filter_map(|route| TcpRule::compile(route, &full_name))
            .collect(),
        tls: spec
            .tls
            .iter()
            .filter_map(|route| TlsRule::compile(route, &full_name))
            .collect(),
    }
}

/// `None` for a rule that is not for clients inside the mesh, or not applied.
fn compile_rule(
    i: usize,
    route: &HttpRoute,
    limits: Option<Arc<RouteLimits>>,
    full_name: &dyn Fn(&str) -> String,
) -> Option<Rule> {
    let name = route.name.as_deref().unwrap_or_default();
    let blocks = route.r#match.iter();
    let matches: Vec<_> = if route.r#match.is_empty() {
        vec![Match::all(name)]
    } else {
        blocks
            .filter_map(|block| Match::compile(block, name))
            .collect()
    };
    if matches.is_empty() {
        return None;
    }
    let action = if let Some(redirect) = &route.redirect {
        Action::Redirect(Redirect::compile(redirect))
    } else if let Some(answer) = &route.direct_response {
        Action::Direct(compile_direct(answer)?)
    } else if route.route.is_empty() {
        return None;
    } else {
        Action::Forward(Forward {
            limits,
            ..compile_forward(route, full_name)
        })
    };
    Some(Rule {
        field: format!("http[{i}]"),
        matches,
        cors: route.cors_policy.as_ref().map(Cors::compile),
        fault: route.fault.as_ref().map(compile_fault).unwrap_or_default(),
        action,
        edits: RouteEdits::compile(route.headers.as_ref()),
    })
}

fn compile_forward(route: &HttpRoute, full_name: &dyn Fn(&str) -> String) -> Forward {
    let targets = route.route.iter().map(|entry| {
        let edits = RouteEdits::compile(entry.headers.as_ref());
        let target = Target::of(&entry.destination, edits, full_name);
        (u32::try_from(entry.weight).unwrap_or(0), target)
    });
    let rewrite = route.rewrite.as_ref();
    Forward {
        targets: Targets::new(targets.collect()),
        path: rewrite.and_then(|rewrite| match (&rewrite.uri, &rewrite.uri_regex_rewrite) {
            (Some(uri), _) => Some(PathRewrite::Replace(uri.clone())),
            (None, Some(regex)) => PathRewrite::regex(regex),
            (None, None) => None,
        }),
        authority: rewrite
            .and_then(|rewrite| rewrite.authority.as_deref())
            .and_then(|authority| authority.parse().ok()),
        timeout: route
            .timeout
            .map(|timeout| timeout.0)
            .filter(|timeout| !timeout.is_zero()),
        retries: Retries::compile(route.retries.as_ref()),
        limits: None,
        mirrors: compile_mirrors(route, full_name),
    }
}

/// All of the requests where no share is given; a share of nothing is no mirror.
fn compile_mirrors(route: &HttpRoute, full_name: &dyn Fn(&str) -> String) -> Vec<(u32, Target)> {
    const ALL: u32 = 1_000_000;
    let target = |to: &Destination| Target::of(to, RouteEdits::default(), full_name);
    let deprecated = route.mirror_percent.map(|percent| percent * 10_000);
    let percentage = route
        .mirror_percentage
        .map(|percentage| percentage.millionths());
    let share = percentage.or(deprecated).unwrap_or(ALL);
    let one = route.mirror.iter().map(|to| (share, target(to)));
    let several = route.mirrors.iter().map(|mirror| {
        let share = mirror.percentage.map(|percentage| percentage.millionths());
        (share.unwrap_or(ALL), target(&mirror.destination))
    });
    one.chain(several).filter(|(share, _)| *share > 0).collect()
}

fn compile_direct(answer: &HttpDirectResponse) -> Option<DirectResponse> {
    let body = answer.body.as_ref();
    let text = body.and_then(|body| body.string.clone()).map(Bytes::from);
    let bytes = body
        .and_then(|body| body.bytes.clone())
        .map(|bytes| bytes.0.into());
    Some(DirectResponse {
        status: StatusCode::from_u16(u16::try_from(answer.status).ok()?).ok()?,
        body: text.or(bytes).unwrap_or_default(),
    })
}

fn compile_fault(fault: &HttpFault) -> Fault {
    Fault {
        delay: fault.delay.as_ref().and_then(|delay| {
            let deprecated = delay
                .percent
                .and_then(|percent| u32::try_from(percent).ok());
            let share = delay
                .percentage
                .map_or(deprecated.unwrap_or(0) * 10_000, |percentage| {
                    percentage.millionths()
                });
            Some((share, delay.fixed_delay?.0))
        }),
        abort: fault.abort.as_ref().and_then(|abort| {
            let share = abort
                .percentage
                .map_or(0, |percentage| percentage.millionths());
            let status = match (&abort.http_status, &abort.grpc_status) {
                (Some(status), _) => {
                    Abort::Http(StatusCode::from_u16(u16::try_from(*status).ok()?).ok()?)
                }
                (None, Some(name)) => Abort::Grpc(grpc_status_code(name)?),
                (None, None) => return None,
            };
            Some((share, status))
        }),
    }
}
