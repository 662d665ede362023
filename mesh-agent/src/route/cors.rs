//! Cross-origin resource sharing (the Fetch standard, "CORS protocol"), as
//! Envoy's filter does it.

use http::Method;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN,
};

use super::matching::Text;
use super::view::RequestView;
use crate::resource::virtual_service::{CorsPolicy, StringMatch, UnmatchedPreflights};

/// `corsPolicy` of a rule, compiled.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<Text>,
    /// An origin of `*` allows all.
    any_origin: bool,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
    answers_all_preflights: bool,
}

/// What a request from another origin is.
#[derive(Clone, Debug)]
pub(super) enum CrossOrigin<'r> {
    /// A question whether the request may be made, and the origin if it may.
    Preflight(Option<Allowed<'r>>),
    /// The request itself.
    Actual(Allowed<'r>),
}

/// An origin that a policy allows.
#[derive(Clone, Debug)]
pub struct Allowed<'r> {
    cors: &'r Cors,
    origin: HeaderValue,
}

impl Cors {
    pub(super) fn compile(policy: &CorsPolicy) -> Self {
        let list = |values: &[String]| {
            (!values.is_empty())
                .then(|| HeaderValue::from_str(&values.join(",")).ok())
                .flatten()
        };
        let exact = policy.allow_origin.iter().map(|origin| StringMatch {
            exact: Some(origin.clone()),
            ..StringMatch::default()
        });
        let origins: Vec<StringMatch> = exact.chain(policy.allow_origins.iter().cloned()).collect();
        Self {
            any_origin: origins
                .iter()
                .any(|origin| origin.exact.as_deref() == Some("*")),
            origins: origins
                .iter()
                .map(|origin| Text::compile(origin, false))
                .collect(),
            methods: list(&policy.allow_methods),
            headers: list(&policy.allow_headers),
            expose: list(&policy.expose_headers),
            max_age: policy.max_age.map(|age| HeaderValue::from(age.0.as_secs())),
            credentials: policy.allow_credentials == Some(true),
            answers_all_preflights: policy.unmatched_preflights
                == Some(UnmatchedPreflights::Ignore),
        }
    }

    /// `None` for a request that the policy does not concern.
    pub(super) fn request(&self, request: &RequestView<'_>) -> Option<CrossOrigin<'_>> {
        let origin = request.headers.get(ORIGIN)?;
        let allowed = self.any_origin
            || self
                .origins
                .iter()
                .any(|test| test.matches(origin.as_bytes()));
        let allowed = allowed.then(|| Allowed {
            cors: self,
            origin: origin.clone(),
        });
        let preflight = request.method == Method::OPTIONS
            && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        match allowed {
            Some(allowed) if preflight => Some(CrossOrigin::Preflight(Some(allowed))),
            Some(allowed) => Some(CrossOrigin::Actual(allowed)),
            None if preflight && self.answers_all_preflights => Some(CrossOrigin::Preflight(None)),
            None => None,
        }
    }
}

impl Allowed<'_> {
    /// Adds what the browser wants to know before the request.
    pub fn preflight(&self, headers: &mut HeaderMap) {
        self.origin(headers);
        for (name, value) in [
            (ACCESS_CONTROL_ALLOW_METHODS, &self.cors.methods),
            (ACCESS_CONTROL_ALLOW_HEADERS, &self.cors.headers),
            (ACCESS_CONTROL_EXPOSE_HEADERS, &self.cors.expose),
            (ACCESS_CONTROL_MAX_AGE, &self.cors.max_age),
        ] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
    }

    /// Adds what the browser wants to know with the response.
    pub fn response(&self, headers: &mut HeaderMap) {
        self.origin(headers);
        if let Some(expose) = &self.cors.expose {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn origin(&self, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
        if self.cors.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
    }
}
