//! Which lines the access log has.

use std::sync::Arc;

use super::super::Side;
use super::super::expression::Expression;
use crate::resource::telemetry::{AccessLogging, Mode};

/// Istio's name for a proxy's own log.
const PROVIDER: &str = "envoy";

/// Which requests and connections are told of.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Logging {
    /// All, if the agent was started with a log.
    #[default]
    AsStarted,
    /// None.
    Never,
    /// All.
    Always,
    /// Those for which it is true.
    Where(Arc<Expression>),
}

impl Logging {
    /// By what each scope says, from the widest to the narrowest.
    pub(super) fn of(scopes: &[&[AccessLogging]], side: Side) -> Self {
        if scopes.iter().all(|scope| scope.is_empty()) {
            return Self::AsStarted;
        }
        // The narrowest scope that names providers decides whether the log is among them.
        let named = |one: &AccessLogging| {
            let mut names = one.providers.iter();
            (!one.providers.is_empty())
                .then(|| names.any(|provider| provider.name.eq_ignore_ascii_case(PROVIDER)))
        };
        let mut by_scope = scopes.iter().filter_map(|scope| {
            let named = scope.iter().filter_map(named);
            named.reduce(|one, other| one || other)
        });
        if by_scope.next_back() == Some(false) {
            return Self::Never;
        }
        let (mut is_meant, mut logging) = (true, Self::Never);
        for one in scopes.iter().copied().flatten() {
            // Without names it is about the same as the entry before.
            is_meant = named(one).unwrap_or(is_meant);
            if !is_meant || !is_about(one.matches.mode, side) {
                continue;
            }
            logging = match &one.filter {
                _ if one.disabled == Some(true) => Self::Never,
                None => Self::Always,
                // What cannot be read has been told, and leaves nothing out.
                Some(filter) => Expression::parse(&filter.expression)
                    .map_or(Self::Always, |by| Self::Where(Arc::new(by))),
            };
        }
        logging
    }

    /// Whether header fields have to be kept until the end.
    pub fn needs_headers(&self) -> bool {
        use super::super::expression::Attribute;
        matches!(self, Self::Where(filter) if filter.names(&Attribute::is_header))
    }
}

/// Whether a mode means this side.
pub(super) fn is_about(mode: Mode, side: Side) -> bool {
    match mode {
        Mode::ClientAndServer => true,
        Mode::Client => side == Side::Client,
        Mode::Server => side == Side::Server,
    }
}
