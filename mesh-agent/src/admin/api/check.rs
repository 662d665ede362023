//! What is well and what is not: `meshctl check`.

use serde::{Deserialize, Serialize};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Works, but somebody should look at it.
    Warning,
    /// Does not work.
    Failed,
}

/// One line of `meshctl check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckItem {
    /// Heading under which it is shown.
    pub section: String,
    /// What is checked, as the sentence that should be true.
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found, may be empty.
    pub detail: String,
    /// What to do, where there is something to do.
    pub hint: Option<String>,
}

impl CheckItem {
    /// A check that passed.
    pub fn ok(section: &str, name: &str, detail: impl Into<String>) -> Self {
        Self {
            section: section.to_owned(),
            name: name.to_owned(),
            status: CheckStatus::Ok,
            detail: detail.into(),
            hint: None,
        }
    }

    /// A check that somebody should look at.
    pub fn warning(
        section: &str,
        name: &str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: CheckStatus::Warning,
            hint: Some(hint.into()),
            ..Self::ok(section, name, detail)
        }
    }

    /// A check that failed.
    pub fn failed(
        section: &str,
        name: &str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: CheckStatus::Failed,
            hint: Some(hint.into()),
            ..Self::ok(section, name, detail)
        }
    }
}
