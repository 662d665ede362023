//! One VirtualService to its rules.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use crate::registry::Visibility;
use crate::resource::Resource;
use crate::resource::value::grpc_status_code;
use crate::resource::virtual_service::{
    Destination, HttpDirectResponse, HttpFault, HttpRoute, VirtualServiceSpec, limits,
};
use crate::route::cors::Cors;
use crate::route::decide::Abort;
use crate::route::edit::{PathRewrite, RouteEdits};
use crate::route::hosts::expand;
use crate::route::matching::Match;
use crate::route::model::{
    Action, DirectResponse, Fault, Forward, RouteLimits, Rule, Rules, Target, Targets,
};
use crate::route::redirect::Redirect;
use crate::route::retry::Retries;
use crate::route::tcp::TcpRule;
use crate::route::tls::TlsRule;

/// The rules of a resource that has been validated.
pub(super) fn compile(resource: &Resource<VirtualServiceSpec>, cluster_domain: &str) -> Rules {
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
    let matches: Box<[_]> = if route.r#match.is_empty() {
        [Match::all(name)].into()
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
        cors: route.cors_policy.as_deref().map(Cors::compile),
        fault: route
            .fault
            .as_deref()
            .map(compile_fault)
            .unwrap_or_default(),
        action,
        edits: RouteEdits::compile(route.headers.as_deref()),
    })
}

fn compile_forward(route: &HttpRoute, full_name: &dyn Fn(&str) -> String) -> Forward {
    let targets = route.route.iter().map(|entry| {
        let edits = RouteEdits::compile(entry.headers.as_deref());
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
        retries: Retries::compile(route.retries.as_deref()),
        limits: None,
        mirrors: compile_mirrors(route, full_name),
    }
}

/// All of the requests where no share is given; a share of nothing is no mirror.
fn compile_mirrors(route: &HttpRoute, full_name: &dyn Fn(&str) -> String) -> Box<[(u32, Target)]> {
    const ALL: u32 = 1_000_000;
    let target = |to: &Destination| Target::of(to, RouteEdits::default(), full_name);
    let deprecated = route.mirror_percent.map(|percent| percent * 10_000);
    let percentage = route
        .mirror_percentage
        .map(|percentage| percentage.millionths());
    let share = percentage.or(deprecated).unwrap_or(ALL);
    let one = route.mirror.as_deref().map(|to| (share, target(to)));
    let several = route.mirrors.iter().map(|mirror| {
        let share = mirror.percentage.map(|percentage| percentage.millionths());
        (share.unwrap_or(ALL), target(&mirror.destination))
    });
    (one.into_iter().chain(several))
        .filter(|(share, _)| *share > 0)
        .collect()
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
