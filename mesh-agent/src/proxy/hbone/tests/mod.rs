//! Real TLS over loopback: a client's pool, a server, and applications behind it.

mod hostile;
mod memory;
mod pool;
mod servers;
mod together;
mod trust;
mod tunnels;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Clients, IncomingTunnel, Place, Refusal, ServeError, ServerTls, TunnelError, TunnelHandler,
    TunnelMemory, TunnelPool, TunnelRequest, TunnelStream, is_overfull, serve,
};
use crate::identity::{Authority, Certificates, Identity};
use crate::netns::{BoxFuture, HostSockets};
use crate::proxy::copy::CopyError;

const HOUR: Duration = Duration::from_secs(3600);
/// Far above what anything here takes; a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn identity(service_account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/default/sa/{service_account}")
        .parse()
        .unwrap()
}

/// A CA of its own with the certificates of one agent.
struct Trust {
    dir: TempDir,
    authority: Arc<Authority>,
    certificates: Arc<Certificates>,
}

impl Trust {
    fn new() -> Self {
        Self::with_lifetime(HOUR)
    }

    fn with_lifetime(lifetime: Duration) -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Arc::new(Authority::load_or_create(dir.path(), "cluster.local").unwrap());
        let certificates = Arc::new(Certificates::new(authority.clone(), lifetime));
        Self {
            dir,
            authority,
            certificates,
        }
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Connects to the authority asked for, and keeps a record.
struct Handler {
    clients: Arc<Clients>,
    memory: Arc<TunnelMemory>,
    opened: Mutex<Vec<IncomingTunnel>>,
    closed: Mutex<Vec<Result<(), CopyError>>>,
}

/// Connections that a client may have.
const MAX_CONNECTIONS: NonZeroUsize = NonZeroUsize::new(32).unwrap();
/// The handler refuses tunnels to this port.
const FORBIDDEN_PORT: u16 = 1;
/// The handler never gets to an answer for this port.
const SILENT_PORT: u16 = 2;

impl TunnelHandler for Handler {
    type Io = TcpStream;

    fn open(&self, tunnel: IncomingTunnel) -> BoxFuture<'_, Result<TcpStream, Refusal>> {
        Box::pin(async move {
            let authority = tunnel.authority;
            self.opened.lock().push(tunnel);
            match authority.port() {
                FORBIDDEN_PORT => Err(Refusal::new(StatusCode::FORBIDDEN, "policy \"x\" says no")),
                SILENT_PORT => std::future::pending().await,
                _ => TcpStream::connect(authority).await.map_err(|error| {
                    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
                }),
            }
        })
    }

    fn connected(&self, peer: &Identity, address: IpAddr) -> Option<Place> {
        self.clients.place(peer, address)
    }

    fn memory(&self) -> &Arc<TunnelMemory> {
        &self.memory
    }

    fn closed(&self, _tunnel: &IncomingTunnel, result: Result<(), CopyError>) {
        self.closed.lock().push(result);
    }
}

struct Server {
    address: SocketAddr,
    handler: Arc<Handler>,
    connections: Arc<AtomicUsize>,
    ends: mpsc::UnboundedReceiver<Result<(), ServeError>>,
    drain: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(certificates: &Certificates, name: &str) -> Self {
        let (listener, _) = bind().await;
        Self::on(listener, certificates, name).await
    }

    async fn on(listener: TcpListener, certificates: &Certificates, name: &str) -> Self {
        Self::with(listener, Arc::default(), certificates, name).await
    }

    async fn holding(memory: Arc<TunnelMemory>, certificates: &Certificates, name: &str) -> Self {
        Self::with(bind().await.0, memory, certificates, name).await
    }

    async fn with(
        listener: TcpListener,
        memory: Arc<TunnelMemory>,
        certificates: &Certificates,
        name: &str,
    ) -> Self {
        let trust = certificates.watch_trust();
        let config = certificates.server_config(&identity(name)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = Arc::new(Handler {
            clients: Arc::new(Clients::new(MAX_CONNECTIONS)),
            memory,
            opened: Mutex::default(),
            closed: Mutex::default(),
        });
        let connections = Arc::new(AtomicUsize::new(0));
        let drain = CancellationToken::new();
        let (ended, ends) = mpsc::unbounded_channel();
        let task = tokio::spawn({
            let (handler, connections, drain) =
                (handler.clone(), connections.clone(), drain.clone());
            async move {
                // Dropped with this task, as an agent's connections are with it.
                let mut serving = tokio::task::JoinSet::new();
                loop {
                    let (stream, peer) = listener.accept().await.unwrap();
                    connections.fetch_add(1, Ordering::Relaxed);
                    let tls = ServerTls {
                        config: config.clone(),
                        trust: trust.clone(),
                    };
                    let served = serve(stream, peer, tls, handler.clone(), drain.clone());
                    let ended = ended.clone();
                    serving.spawn(async move {
                        let _ = ended.send(served.await);
                    });
                }
            }
        });
        Self {
            address,
            handler,
            connections,
            ends,
            drain,
            task,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How the next connection to end did so.
    async fn end(&mut self) -> Result<(), ServeError> {
        patient(self.ends.recv()).await.unwrap()
    }

    /// Stops at once: connections are cut, the port is free again.
    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// A pool as the identity `client`, and what it needs to reach a server.
fn request(server: &Server, authority: SocketAddr, expected: &[&str]) -> TunnelRequest {
    TunnelRequest {
        sockets: Arc::new(HostSockets),
        source: "127.0.0.1:40000".parse().unwrap(),
        source_identity: identity("client"),
        from: "127.0.0.1".parse().unwrap(),
        node: server.address,
        authority,
        expected: expected.iter().map(|name| identity(name)).collect(),
    }
}

/// A client's agent, a server's agent, an application: all in good order.
struct Mesh {
    pool: TunnelPool,
    server: Server,
    application: TcpListener,
}

impl Mesh {
    async fn new() -> Self {
        Self::of(&Trust::new()).await
    }

    async fn of(trust: &Trust) -> Self {
        Self {
            pool: TunnelPool::new(trust.certificates.clone(), Arc::default(), Arc::default()),
            server: Server::start(&trust.certificates, "server").await,
            application: bind().await.0,
        }
    }

    fn request(&self) -> TunnelRequest {
        request(
            &self.server,
            self.application.local_addr().unwrap(),
            &["server"],
        )
    }

    /// A tunnel, and the application's end of it.
    async fn tunnel(&self) -> (TunnelStream, TcpStream) {
        let (tunnel, accepted) = patient(async {
            tokio::join!(self.pool.open(self.request()), self.application.accept())
        })
        .await;
        (tunnel.unwrap(), accepted.unwrap().0)
    }
}

async fn patient<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("the test hangs")
}

/// Waits for something that nothing announces.
async fn until(condition: impl Fn() -> bool) {
    patient(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn refusal(result: Result<TunnelStream, TunnelError>) -> Refusal {
    match result {
        Err(TunnelError::Refused { refusal, .. }) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}
