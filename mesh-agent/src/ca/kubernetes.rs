//! Who bears a Kubernetes token, and what may be asked for with it: by the API
//! server's TokenReview, and by its list of pods.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::identity::pem_files::{FileError, bearer, client_tls};

/// Protocol of the API server that is spoken here (RFC 7301).
const ALPN: &[&[u8]] = &[b"http/1.1"];
/// Time for one answer of the API server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions at a time; who asks us for certificates waits.
const MAX_QUESTIONS: usize = 16;
/// Longest answer, bytes: a token review, or a pod.
const MAX_ANSWER_BYTES: usize = 4 << 20;
const HTTPS_PORT: u16 = 443;
/// How TokenReview names service accounts: this, namespace and name.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Where the API server is, and how we show who we are.
#[derive(Clone, Debug)]
pub struct ApiServerOptions {
    /// `https://host[:port]`
    pub url: Uri,
    /// File of the roots that its certificate is verified against.
    pub roots: PathBuf,
    /// File of our own token.
    pub token: PathBuf,
    /// For whom tokens must have been made.
    pub audiences: Vec<String>,
}

/// A client of an API server.
pub struct ApiServer {
    options: ApiServerOptions,
    host: String,
    port: u16,
    name: ServerName<'static>,
    questions: Semaphore,
}

/// The bearer of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Namespace.
    pub namespace: String,
    /// Name of the service account.
    pub name: String,
    /// The pod that the token was made for.
    pub pod: Option<Pod>,
}

/// A pod as a token names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    name: String,
    uid: Option<String>,
    /// Kubernetes 1.30 and later say it.
    node: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API server knows the token, and says no.
    #[error("the token is not accepted: {0}")]
    NotAuthenticated(String),
    /// The API server is away, or does not let us ask.
    #[error("the Kubernetes API server {url} gives no answer: {reason}")]
    NoAnswer {
        /// Its address.
        url: Uri,
        /// What failed.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: ReviewStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    error: Option<String>,
    user: User,
    audiences: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: std::collections::BTreeMap<String, Vec<String>>,
}

impl ApiServer {
    /// A client of the API server at `options.url`.
    ///
    /// # Errors
    /// Where the address or a file cannot be used.
    pub fn new(options: ApiServerOptions) -> anyhow::Result<Self> {
        let url = &options.url;
        let (Some("https"), Some(host), "/" | "") = (url.scheme_str(), url.host(), url.path())
        else {
            anyhow::bail!("--kube-api {url}: not of the form https://host:port");
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let server = Self {
            name: ServerName::try_from(host.clone())?,
            port: url.port_u16().unwrap_or(HTTPS_PORT),
            host,
            questions: Semaphore::new(MAX_QUESTIONS),
            options,
        };
        client_tls(&server.options.roots, None, ALPN)?;
        bearer(&server.options.token)?;
        Ok(server)
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// Where it is nobody's, or was made for another service.
    pub async fn review(&self, token: &str) -> Result<Account, ApiError> {
        let question = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": self.options.audiences},
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer = self.ask(Method::POST, path, Some(&question)).await?;
        let review: Review =
            serde_json::from_value(answer).map_err(|error| self.no_answer(&error))?;
        account(review.status, &self.options.audiences).map_err(ApiError::NotAuthenticated)
    }

    /// Whether a pod of this service account runs on the node of `caller`'s pod.
    ///
    /// # Errors
    /// Where the API server does not say.
    pub async fn is_beside(
        &self,
        caller: &Account,
        namespace: &str,
        account: &str,
    ) -> Result<bool, ApiError> {
        let Some(pod) = &caller.pod else {
            return Ok(false);
        };
        let Some(node) = self.node(&caller.namespace, pod).await? else {
            return Ok(false);
        };
        let is_name = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
        };
        if ![namespace, account, &node].iter().all(|name| is_name(name)) {
            return Ok(false);
        }
        let path = format!(
            "/api/v1/namespaces/{namespace}/pods?limit=1&fieldSelector=spec.nodeName%3D{node}%2C\
             spec.serviceAccountName%3D{account}%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed"
        );
        let pods = self.ask(Method::GET, &path, None).await?;
        Ok(pods["items"]
            .as_array()
            .is_some_and(|items| !items.is_empty()))
    }

    async fn node(&self, namespace: &str, pod: &Pod) -> Result<Option<String>, ApiError> {
        if pod.node.is_some() {
            return Ok(pod.node.clone());
        }
        let path = format!("/api/v1/namespaces/{namespace}/pods/{}", pod.name);
        let found = self.ask(Method::GET, &path, None).await?;
        // Another pod may have the name by now.
        let is_same = pod.uid.is_none() || found["metadata"]["uid"].as_str() == pod.uid.as_deref();
        let node = found["spec"]["nodeName"].as_str().filter(|_| is_same);
        Ok(node.map(str::to_owned))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let _turn = self
            .questions
            .acquire()
            .await
            .map_err(|error| self.no_answer(&error))?;
        timeout(ANSWER_TIMEOUT, self.send(method, path, body))
            .await
            .unwrap_or_else(|_| Err("not in time".into()))
            .map_err(|error| self.no_answer(&error))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let json = HeaderValue::from_static("application/json");
        let authority = self
            .options
            .url
            .authority()
            .map_or("", |authority| authority.as_str());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::AUTHORIZATION, self.token()?)
            .header(header::ACCEPT, &json)
            .header(header::CONTENT_TYPE, &json)
            .body(Full::new(Bytes::from(body)))?;
        let config = client_tls(&self.options.roots, None, ALPN)?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(self.name.clone(), stream)
            .await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // With the sender, which is moved here, ends the connection.
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body.to_bytes()))
        };
        let (exchanged, _) = tokio::join!(exchange, connection);
        let (status, body) = exchanged?;
        if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
            return Err(format!("HTTP status {status}").into());
        }
        Ok(serde_json::from_slice(&body)?)
    }

    fn token(&self) -> Result<HeaderValue, FileError> {
        bearer(&self.options.token)
    }

    fn no_answer(&self, reason: &dyn std::fmt::Display) -> ApiError {
        ApiError::NoAnswer {
            url: self.options.url.clone(),
            reason: reason.to_string(),
        }
    }
}

/// Whom a review has found, or why nobody.
fn account(status: ReviewStatus, audiences: &[String]) -> Result<Account, String> {
    if !status.authenticated {
        return Err(status.error.unwrap_or_else(|| "it is not known".to_owned()));
    }
    // A server that knows nothing of audiences names none: the token may be for anybody.
    if !status
        .audiences
        .iter()
        .any(|audience| audiences.contains(audience))
    {
        return Err(format!("it was not made for {}", audiences.join(" or ")));
    }
    let username = &status.user.username;
    let Some((namespace, name)) = username
        .strip_prefix(ACCOUNT_PREFIX)
        .and_then(|rest| rest.split_once(':'))
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
    else {
        return Err(format!("{username:?} is no service account"));
    };
    let extra = |what: &str| {
        let values = status
            .user
            .extra
            .get(&format!("authentication.kubernetes.io/{what}"))?;
        values.first().cloned()
    };
    Ok(Account {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        pod: extra("pod-name").map(|name| Pod {
            name,
            uid: extra("pod-uid"),
            node: extra("node-name"),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviewed(status: Value) -> Result<Account, String> {
        account(
            serde_json::from_value(status).unwrap(),
            &["istio-ca".to_owned()],
        )
    }

    #[test]
    fn only_service_accounts_with_a_token_for_us_are_known() {
        let user = json!({
            "username": "system:serviceaccount:shop:web",
            "groups": ["system:serviceaccounts"],
            "extra": {"authentication.kubernetes.io/pod-name": ["web-1"]},
        });
        let known =
            reviewed(json!({"authenticated": true, "user": user, "audiences": ["istio-ca"]}));
        let known = known.unwrap();
        assert_eq!(
            (known.namespace.as_str(), known.name.as_str()),
            ("shop", "web")
        );
        assert_eq!(known.pod.unwrap().name, "web-1");
        for (status, reason) in [
            (json!({}), "not known"),
            (json!({"error": "expired"}), "expired"),
            (
                json!({"authenticated": true, "user": user}),
                "not made for istio-ca",
            ),
            (
                json!({"authenticated": true, "user": user, "audiences": ["https://kubernetes"]}),
                "not made for istio-ca",
            ),
            (
                json!({"authenticated": true, "user": {"username": "jane"}, "audiences": ["istio-ca"]}),
                "no service account",
            ),
        ] {
            let said = reviewed(status).unwrap_err();
            assert!(said.contains(reason), "{said}");
        }
    }
}
