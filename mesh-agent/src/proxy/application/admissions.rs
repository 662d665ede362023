//! What is open by leave of the policies, so that a change of policy can close
//! what it forbids.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use http::HeaderMap;
use parking_lot::Mutex;

use super::Caller;
use crate::policy::MtlsMode;
use crate::policy::authorization::{Decision, Payload, Request, Verdict, remote_ip};
use crate::proxy::http::HttpVersion;
use crate::registry::Workload;
use crate::snapshot::Snapshot;
use mesh_common::Transport;

/// The head of a request, as policies see it.
#[derive(Clone, Debug)]
pub struct Head {
    /// Host and port.
    pub authority: String,
    /// Method.
    pub method: http::Method,
    /// Path in its normal form, and query.
    pub path_and_query: String,
    /// Header fields.
    pub headers: HeaderMap,
}

impl Head {
    /// For a decision about a request of `caller`.
    pub fn request(&self, caller: &Caller) -> Request<'_> {
        Request {
            authority: &self.authority,
            method: self.method.as_str(),
            path_and_query: &self.path_and_query,
            headers: &self.headers,
            remote_ip: remote_ip(&self.headers, caller.address.ip()),
        }
    }
}

/// What is open.
enum Open {
    /// Bytes that nobody looks at.
    Bytes,
    /// A connection whose requests are looked at one by one.
    Http(HttpVersion),
    /// A request that is being answered, or has become a tunnel.
    Request(Arc<Head>),
}

struct Entry {
    workload: Arc<Workload>,
    caller: Caller,
    application: SocketAddr,
    open: Open,
    revocation: Arc<Revocation>,
}

/// All connections and requests that were let in.
#[derive(Default)]
pub struct Admissions {
    entries: Mutex<(u64, HashMap<u64, Entry>)>,
}

impl Admissions {
    /// A connection whose bytes nobody looks at.
    pub(super) fn bytes(
        self: &Arc<Self>,
        workload: Arc<Workload>,
        caller: Caller,
        application: SocketAddr,
    ) -> Admission {
        self.add(workload, caller, application, Open::Bytes)
    }

    /// A connection whose requests are looked at.
    pub(super) fn http(
        self: &Arc<Self>,
        workload: Arc<Workload>,
        caller: Caller,
        application: SocketAddr,
        version: HttpVersion,
    ) -> Admission {
        self.add(workload, caller, application, Open::Http(version))
    }

    /// A request.
    pub(super) fn request(
        self: &Arc<Self>,
        workload: Arc<Workload>,
        caller: Caller,
        application: SocketAddr,
        head: Arc<Head>,
    ) -> Admission {
        self.add(workload, caller, application, Open::Request(head))
    }

    fn add(
        self: &Arc<Self>,
        workload: Arc<Workload>,
        caller: Caller,
        application: SocketAddr,
        open: Open,
    ) -> Admission {
        let revocation = Arc::new(Revocation::default());
        let entry = Entry {
            workload,
            caller,
            application,
            open,
            revocation: revocation.clone(),
        };
        let mut entries = self.entries.lock();
        entries.0 += 1;
        let number = entries.0;
        entries.1.insert(number, entry);
        Admission {
            admissions: self.clone(),
            number,
            revocation,
        }
    }

    /// What is spoken on the connections whose requests are looked at, by the caller's address and
    /// the one that it has asked for.
    pub fn versions(&self) -> HashMap<(SocketAddr, SocketAddr), HttpVersion> {
        let entries = self.entries.lock();
        let versions = entries.1.values().filter_map(|entry| match entry.open {
            Open::Http(version) => Some(((entry.caller.address, entry.application), version)),
            Open::Bytes | Open::Request(_) => None,
        });
        versions.collect()
    }

    /// Closes what the configuration forbids. Call it when the configuration
    /// is in force.
    pub(super) fn recheck(&self, snapshot: &Snapshot) -> Rechecked {
        let mut rechecked = Rechecked::default();
        let entries = self.entries.lock();
        for entry in (entries.1.values()).filter(|entry| !entry.caller.is_probe) {
            match entry.recheck(snapshot) {
                Ok(decision) => {
                    let (workload, caller) = (entry.workload.clone(), entry.caller.clone());
                    let open = (workload, caller, entry.application, decision);
                    rechecked.open.push(open);
                }
                Err(Forbidden) => {
                    tracing::info!(
                        workload = %entry.workload.name,
                        client = %entry.caller.address,
                        port = entry.application.port(),
                        "connection closed due to policy change"
                    );
                    entry.revocation.revoke();
                    rechecked.closed += 1;
                }
            }
        }
        rechecked
    }

    /// How many connections and requests are open.
    pub fn len(&self) -> usize {
        self.entries.lock().1.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a change of the configuration means for what is open.
#[derive(Default)]
pub(super) struct Rechecked {
    pub(super) closed: usize,
    /// What stays open, with what is decided about it now.
    pub(super) open: Vec<(Arc<Workload>, Caller, SocketAddr, Decision)>,
}

/// The configuration does not allow any more what is open.
struct Forbidden;

impl Entry {
    fn recheck(&self, snapshot: &Snapshot) -> Result<Decision, Forbidden> {
        // The workload as the configuration now has it: its labels may be others.
        let workload = snapshot
            .registry
            .workload_at(self.application.ip())
            .filter(|now| now.name == self.workload.name)
            .unwrap_or(&self.workload);
        let (mode, _) = (snapshot.peer_authentication).mode(workload, self.application.port());
        if self.caller.transport == Transport::Plain && mode == MtlsMode::Strict {
            return Err(Forbidden);
        }
        let authorization = &snapshot.authorization;
        let connection = self.caller.connection(self.application);
        let decision = match &self.open {
            Open::Bytes => authorization.unseen(workload, &connection),
            Open::Http(_) => {
                let decision = authorization.connection(workload, &connection);
                match decision.verdict {
                    Verdict::Deny => return Err(Forbidden),
                    // Each request is looked at.
                    _ => return Ok(Decision::silent(decision)),
                }
            }
            Open::Request(head) => {
                let request = head.request(&self.caller);
                authorization.decide(workload, &connection, Payload::Http(&request))
            }
        };
        match decision.verdict {
            Verdict::Allow => Ok(decision),
            _ => Err(Forbidden),
        }
    }
}

/// Leave to be open, until it is dropped or revoked.
pub struct Admission {
    admissions: Arc<Admissions>,
    number: u64,
    revocation: Arc<Revocation>,
}

impl Admission {
    /// Ready when the leave has been revoked. One task at a time is woken.
    pub fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Registered first: a revocation between the two is not missed.
        self.revocation.waker.register(cx.waker());
        if self.revocation.revoked.load(Ordering::Acquire) {
            Poll::Ready(revoked())
        } else {
            Poll::Pending
        }
    }

    /// Returns when the leave has been revoked.
    pub async fn revoked(&self) -> io::Error {
        std::future::poll_fn(|cx| self.poll_revoked(cx)).await
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.admissions.entries.lock().1.remove(&self.number);
    }
}

#[derive(Default)]
struct Revocation {
    revoked: AtomicBool,
    waker: AtomicWaker,
}

impl Revocation {
    fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.waker.wake();
    }
}

fn revoked() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "connection closed due to policy change",
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::super::pipe::Pipe;
    use super::super::revocable::Revocable;
    use super::*;
    use crate::resource::parse;
    use crate::snapshot::Options;

    const WORKLOAD: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
        metadata: {name: a}\nspec: {address: 10.0.0.1}\n";

    fn snapshot(kind: &str, spec: &str) -> Snapshot {
        let text = format!(
            "{WORKLOAD}---\napiVersion: security.istio.io/v1\nkind: {kind}\n\
             metadata: {{name: p}}\nspec: {spec}\n"
        );
        let set = parse([("a.yaml", text.as_str())]).unwrap();
        Snapshot::compile(1, &set, &Options::default()).unwrap()
    }

    fn caller(identity: Option<&str>) -> Caller {
        Caller {
            address: "10.0.0.9:4000".parse().unwrap(),
            flow: None,
            identity: identity.map(|identity| identity.parse().unwrap()),
            transport: Transport::Plain,
            is_probe: false,
        }
    }

    const DENY_ALL: &str = "{action: DENY, rules: [{}]}";
    const ALLOW_GET: &str = "{rules: [{to: [{operation: {methods: [GET]}}]}]}";

    #[tokio::test]
    async fn a_change_of_policy_resets_what_it_forbids_and_leaves_the_rest() {
        let admissions = Arc::new(Admissions::default());
        let open = snapshot("AuthorizationPolicy", "{rules: [{}]}");
        let workload = open.registry.workloads[0].clone();
        let application = "10.0.0.1:80".parse().unwrap();
        let (near, mut far) = Pipe::pair();
        let admission = admissions.bytes(workload.clone(), caller(None), application);
        let mut stream = Revocable::new(near, admission, None);
        let head = Arc::new(Head {
            authority: "a".to_owned(),
            method: http::Method::GET,
            path_and_query: "/".to_owned(),
            headers: HeaderMap::new(),
        });
        let request = admissions.request(workload.clone(), caller(None), application, head);
        let http = admissions.http(workload, caller(None), application, HttpVersion::Http1);
        assert_eq!((admissions.len(), admissions.recheck(&open).closed), (3, 0));

        let reading = tokio::spawn(async move {
            let error = stream.read(&mut [0]).await.unwrap_err();
            (stream, error)
        });
        tokio::task::yield_now().await;
        // The request may go on, unseen bytes might be anything.
        assert_eq!(
            admissions
                .recheck(&snapshot("AuthorizationPolicy", ALLOW_GET))
                .closed,
            1
        );
        let (stream, error) = reading.await.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        drop(stream);
        let error = far.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        assert_eq!(
            admissions
                .recheck(&snapshot("AuthorizationPolicy", DENY_ALL))
                .closed,
            2
        );
        request.revoked().await;
        http.revoked().await;
        drop((request, http));
        assert!(admissions.is_empty());
    }

    #[test]
    fn plaintext_ends_where_mutual_tls_becomes_a_duty() {
        let admissions = Arc::new(Admissions::default());
        let strict = snapshot("PeerAuthentication", "{mtls: {mode: STRICT}}");
        let workload = strict.registry.workloads[0].clone();
        let application = "10.0.0.1:80".parse().unwrap();
        let sleep = Some("spiffe://cluster.local/ns/default/sa/sleep");
        let tunnelled = Caller {
            transport: Transport::Hbone,
            ..caller(sleep)
        };
        let _kept = admissions.bytes(workload.clone(), tunnelled, application);
        let probe = Caller {
            is_probe: true,
            ..caller(None)
        };
        let _probe = admissions.bytes(workload.clone(), probe, application);
        let _plain = admissions.bytes(workload, caller(None), application);
        assert_eq!(admissions.recheck(&strict).closed, 1);
    }
}
