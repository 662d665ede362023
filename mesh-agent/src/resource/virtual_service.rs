//! Istio `VirtualService`.

use serde::Deserialize;

/// `VirtualService.spec`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualServiceSpec {}
