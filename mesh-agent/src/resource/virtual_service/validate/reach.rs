//! Rules and conditions that no request reaches, since earlier ones take them all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::*;

pub(super) fn check(report: &mut Report<'_>, rules: &[HttpRoute]) {
    let mut ended_by = None;
    let mut known = HashMap::new();
    for (i, route) in rules.iter().enumerate() {
        if let Some(last) = ended_by {
            report.warning_with_code(
                "IST0130",
                format!("spec.http[{i}]"),
                format!("is never reached: http[{last}] matches every request"),
            );
        } else if route.r#match.is_empty() || route.r#match.iter().any(matches_everything) {
            ended_by = Some(i);
        } else {
            repeated(report, route, i, &mut known);
        }
    }
}

/// Tells of conditions that an earlier rule has, and so never decide.
fn repeated(
    report: &mut Report<'_>,
    route: &HttpRoute,
    index: usize,
    known: &mut HashMap<String, String>,
) {
    let field = format!("spec.http[{index}]");
    let mut others = Vec::new();
    for (i, block) in route.r#match.iter().enumerate() {
        let condition = HttpMatch {
            name: None,
            stat_prefix: None,
            ..block.clone()
        };
        let place = format!("http[{index}].match[{i}]");
        match known.entry(format!("{condition:?}")) {
            Entry::Occupied(first) => others.push((i, first.get().clone())),
            Entry::Vacant(new) => {
                new.insert(place);
            }
        }
    }
    if others.len() == route.r#match.len() {
        let others: Vec<_> = others.into_iter().map(|(_, place)| place).collect();
        let reason = format!("is never reached: {} is the same", others.join(", "));
        report.warning_with_code("IST0130", field, reason);
        return;
    }
    for (i, place) in others {
        let reason = format!("has no effect: {place} is the same");
        report.warning_with_code("IST0131", format!("{field}.match[{i}]"), reason);
    }
}

fn matches_everything(block: &HttpMatch) -> bool {
    let root = StringMatch {
        prefix: Some("/".into()),
        ..StringMatch::default()
    };
    *block
        == HttpMatch {
            name: block.name.clone(),
            stat_prefix: block.stat_prefix.clone(),
            ignore_uri_case: block.ignore_uri_case,
            uri: Some(root),
            ..HttpMatch::default()
        }
}
