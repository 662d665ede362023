//! Istio `DestinationRule`.

use serde::Deserialize;

/// `DestinationRule.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationRuleSpec {}
