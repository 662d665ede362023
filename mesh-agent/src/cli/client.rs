//! Finds the control socket of an agent and asks it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Target;
use crate::admin::SOCKET_DIRECTORY;
use crate::admin::api::ErrorView;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a change: other programs may have to be loaded, which takes a slow machine a while.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer, bytes: some 100 000 flows.
const MAX_ANSWER_BYTES: usize = 128 * 1024 * 1024;

/// Why an agent could not be asked, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error(
        "no agent runs on this node (no socket in {0}): start `mesh-agent run`, or name its socket with --socket"
    )]
    NoAgent(PathBuf),
    /// There are several.
    #[error("several agents run on this node: choose one with --node ({})", .0.join(", "))]
    Several(Vec<String>),
    /// The socket cannot be opened.
    #[error("cannot connect to the agent at {path}: {source}; {}", advice(.source))]
    Connect {
        /// Path of the socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory of the sockets cannot be read.
    #[error("cannot read {path}: {source}; run as root, or name the socket with --socket")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The agent does not answer.
    #[error(
        "the agent at {path} does not answer within {limit:?}: it hangs, or is stopped; look at its log, start it again"
    )]
    Timeout {
        /// Path of its socket.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// The agent said no.
    #[error("{0}")]
    Refused(String),
    /// It is no agent, or of a version that does not fit.
    #[error("cannot understand the agent: {0}; are meshctl and mesh-agent of one version?")]
    Answer(String),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run as root, or as a member of its --admin-group",
        io::ErrorKind::ConnectionRefused => "the agent has died: start `mesh-agent run` again",
        _ => "is `mesh-agent run` up?",
    }
}

/// An agent's control socket.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The agent that was named, or the only one of this machine.
    pub fn find(target: &Target) -> Result<Self, ClientError> {
        let directory = Path::new(SOCKET_DIRECTORY);
        let path = match (&target.socket, &target.node) {
            (Some(path), _) => path.clone(),
            (None, Some(node)) => directory.join(format!("{node}.sock")),
            (None, None) => only_socket(directory)?,
        };
        Ok(Self { path })
    }

    /// Asks for `path_and_query`.
    pub async fn get<T: DeserializeOwned>(&self, path_and_query: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path_and_query, ANSWER_TIMEOUT).await
    }

    /// Asks for a change.
    pub async fn post<T: DeserializeOwned>(&self, path_and_query: &str) -> Result<T, ClientError> {
        self.ask(Method::POST, path_and_query, CHANGE_TIMEOUT).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path_and_query: &str,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let path = self.path.clone();
        tokio::time::timeout(limit, self.exchange(method, path_and_query))
            .await
            .unwrap_or_else(|_| Err(ClientError::Timeout { path, limit }))
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path_and_query: &str,
    ) -> Result<T, ClientError> {
        let unclear = |error: hyper::Error| ClientError::Answer(error.to_string());
        let stream =
            UnixStream::connect(&self.path)
                .await
                .map_err(|source| ClientError::Connect {
                    path: self.path.clone(),
                    source,
                })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(unclear)?;
        // Ends when the sender is dropped; its error reaches us through the sender.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path_and_query)
            .header(header::HOST, "agent")
            .body(Empty::<Bytes>::new())
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(unclear)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| {
                ClientError::Answer(if error.is::<LengthLimitError>() {
                    format!("its answer is longer than {MAX_ANSWER_BYTES} bytes")
                } else {
                    error.to_string()
                })
            })?
            .to_bytes();
        if status == StatusCode::OK {
            return serde_json::from_slice(&body)
                .map_err(|error| ClientError::Answer(error.to_string()));
        }
        Err(match serde_json::from_slice::<ErrorView>(&body) {
            Ok(view) => ClientError::Refused(view.error),
            Err(_) => ClientError::Answer(format!("it answers {status}")),
        })
    }
}

fn only_socket(directory: &Path) -> Result<PathBuf, ClientError> {
    let unreadable = |source: io::Error| ClientError::Directory {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ClientError::NoAgent(directory.to_owned()));
        }
        other => other.map_err(unreadable)?,
    };
    let mut nodes = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if let (true, Some(node)) = (is_socket, name.strip_suffix(".sock")) {
            nodes.push(node.to_owned());
        }
    }
    nodes.sort();
    match nodes.as_slice() {
        [] => Err(ClientError::NoAgent(directory.to_owned())),
        [node] => Ok(directory.join(format!("{node}.sock"))),
        _ => Err(ClientError::Several(nodes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_only_agent_is_found_and_several_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        assert!(matches!(
            only_socket(&missing),
            Err(ClientError::NoAgent(_))
        ));
        fs::write(directory.path().join("file.sock"), "").unwrap();
        assert!(matches!(
            only_socket(directory.path()),
            Err(ClientError::NoAgent(_))
        ));
        let n2 = directory.path().join("n2.sock");
        let _first = UnixListener::bind(&n2).unwrap();
        assert_eq!(only_socket(directory.path()).unwrap(), n2);
        let _second = UnixListener::bind(directory.path().join("n1.sock")).unwrap();
        assert_eq!(
            only_socket(directory.path()).unwrap_err().to_string(),
            "several agents run on this node: choose one with --node (n1, n2)"
        );
    }

    #[tokio::test]
    async fn a_dead_agent_is_one_line_that_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n1.sock");
        drop(UnixListener::bind(&path).unwrap());
        let client = Client { path };
        let error = client.get::<ErrorView>("/v1/version").await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("the agent has died") && !text.contains('\n'),
            "{text}"
        );
    }
}
