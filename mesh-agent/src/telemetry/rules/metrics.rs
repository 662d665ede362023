//! What is changed in Istio's metrics.

use std::collections::BTreeMap;

use super::super::Side;
use super::super::expression::{Attribute, Expression, ExpressionError};
use super::logging::is_about;
use crate::resource::telemetry::{Metric, Metrics, Operation, TagOverride};

/// Istio's name for those who read `/metrics`.
const PROVIDER: &str = "prometheus";

/// What one side of a workload reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricRules {
    /// By metric; what is not there is told as it is.
    rules: BTreeMap<u8, MetricRule>,
}

/// What is changed in one metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricRule {
    /// It is not told at all.
    pub disabled: bool,
    /// Of its labels.
    pub labels: BTreeMap<String, Change>,
}

/// What is changed in one label.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is left out.
    Remove,
    /// It has this value.
    Set(Expression),
}

impl MetricRules {
    /// By entries from the widest scope to the narrowest.
    pub(super) fn of(entries: &[&Metrics], side: Side) -> Self {
        let named = |one: &Metrics| {
            let mut names = one.providers.iter();
            (!one.providers.is_empty())
                .then(|| names.any(|provider| provider.name.eq_ignore_ascii_case(PROVIDER)))
        };
        let mut rules = Self::default();
        // The last that names providers decides whether Prometheus is among them.
        if entries.iter().copied().filter_map(named).next_back() == Some(false) {
            rules.change(Metric::AllMetrics, |rule| rule.disabled = true);
            return rules;
        }
        let mut is_meant = true;
        for one in entries {
            is_meant = named(one).unwrap_or(is_meant);
            if !is_meant {
                continue;
            }
            for change in &one.overrides {
                let matches = &change.matches;
                if matches.custom_metric.is_some() || !is_about(matches.mode, side) {
                    continue;
                }
                rules.change(matches.metric.unwrap_or_default(), |rule| {
                    rule.disabled = change.disabled.unwrap_or(rule.disabled);
                    for (label, change) in &change.tag_overrides {
                        // What cannot be read has been told, and changes nothing.
                        if let Ok(change) = Change::of(change) {
                            rule.labels.insert(label.clone(), change);
                        }
                    }
                });
            }
        }
        rules
    }

    fn change(&mut self, metric: Metric, change: impl Fn(&mut MetricRule)) {
        let all = [
            Metric::RequestCount,
            Metric::RequestDuration,
            Metric::RequestSize,
            Metric::ResponseSize,
            Metric::TcpOpenedConnections,
            Metric::TcpClosedConnections,
            Metric::TcpSentBytes,
            Metric::TcpReceivedBytes,
        ];
        let one = [metric];
        let meant: &[Metric] = match metric {
            Metric::AllMetrics => &all,
            _ => &one,
        };
        for metric in meant {
            change(self.rules.entry(*metric as u8).or_default());
        }
    }

    /// What is changed in this one, if anything.
    pub fn metric(&self, metric: Metric) -> Option<&MetricRule> {
        self.rules.get(&(metric as u8))
    }
}

impl Change {
    /// # Errors
    /// Where the value is no expression, or asks for what is known of single requests only.
    pub(super) fn of(change: &TagOverride) -> Result<Self, ExpressionError> {
        if change.operation == Operation::Remove {
            return Ok(Self::Remove);
        }
        let value = Expression::parse(&change.value)?;
        let is_unknown = |attribute: &Attribute| !is_known_of_series(attribute);
        if value.names(&is_unknown) {
            let reason = format!("what {:?} asks for of each request", change.value);
            return Err(ExpressionError::Unknown(reason));
        }
        Ok(Self::Set(value))
    }
}

/// Requests are counted together that are alike in these.
fn is_known_of_series(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::Code | Attribute::GrpcStatus | Attribute::Mtls | Attribute::PeerIdentity
    )
}
