mod asked;
mod failure;
mod hostile;
mod http1;
mod http2;
mod interim;
mod limits;
mod mirror;
mod retry;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::identity::Identity;
use crate::netns::BoxFuture;
use crate::registry::{Protocol, Tunnel, WorkloadName};
use crate::route::fixture;

/// Connects over loopback, and counts.
#[derive(Clone, Default)]
struct Loopback {
    connections: Arc<AtomicUsize>,
}

impl Connector for Loopback {
    type Io = TcpStream;

    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, io::Result<TcpStream>> {
        self.connections.fetch_add(1, SeqCst);
        assert_eq!(target.client.name.to_string(), "sleep.default");
        Box::pin(TcpStream::connect(target.address))
    }
}

/// What the mesh of a test consists of.
struct Mesh<'a> {
    /// Port 80 of `reviews`.
    protocol: Protocol,
    endpoints: &'a [(SocketAddr, &'a str)],
    virtual_services: &'a [(&'a str, &'a str)],
    destination_rules: &'a [(&'a str, &'a str)],
}

impl Default for Mesh<'_> {
    fn default() -> Self {
        Self {
            protocol: Protocol::Http,
            endpoints: &[],
            virtual_services: &[],
            destination_rules: &[],
        }
    }
}

impl Mesh<'_> {
    fn snapshot(&self) -> Snapshot {
        let service = fixture::service("reviews.default", &[(80, self.protocol)], self.endpoints);
        let registry = fixture::registry(vec![service]);
        let (routes, _) = fixture::routes(&registry, self.virtual_services, self.destination_rules);
        Snapshot {
            registry: Arc::new(registry),
            routes: Arc::new(routes),
            ..Snapshot::default()
        }
    }

    /// A proxy for clients of one version.
    async fn proxy(&self, version: HttpVersion) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connector = Loopback::default();
        let connections = Arc::clone(&connector.connections);
        let snapshot = Arc::new(ArcSwap::from_pointee(self.snapshot()));
        let upstreams = Arc::new(Upstreams::new(connector));
        let drain = CancellationToken::new();
        let proxy = Proxy {
            address,
            connections,
            clusters: Arc::clone(&upstreams.clusters),
            snapshot: Arc::clone(&snapshot),
            drain: drain.clone(),
        };
        let service = Arc::clone(&snapshot.load().registry.services[0]);
        tokio::spawn(async move {
            while let Ok((io, client_address)) = listener.accept().await {
                let context = Arc::new(ConnectionContext {
                    client: workload(),
                    client_address,
                    original_destination: ([127, 0, 0, 1], 80).into(),
                    service: Arc::clone(&service),
                    snapshot: Arc::clone(&snapshot),
                    upstreams: Arc::clone(&upstreams),
                    drain: drain.clone(),
                    recent: Recent::default(),
                    interim: Arc::default(),
                    passage: Passage::default(),
                    telemetry: Arc::default(),
                });
                // Clients of some tests leave in the middle.
                tokio::spawn(async move { serve(io, version, context).await.ok() });
            }
        });
        proxy
    }
}

/// A proxy for HTTP/1 clients of a service with one endpoint and no rules.
async fn proxy_to(endpoint: SocketAddr) -> Proxy {
    let mesh = Mesh {
        endpoints: &[(endpoint, "v1")],
        ..Mesh::default()
    };
    mesh.proxy(HttpVersion::Http1).await
}

struct Proxy {
    address: SocketAddr,
    /// Connections that were made to endpoints.
    connections: Arc<AtomicUsize>,
    clusters: Arc<Clusters<HttpPool>>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    drain: CancellationToken,
}

impl Proxy {
    fn sum(&self, of: impl Fn(&HttpCluster) -> u32) -> u32 {
        self.clusters.all().iter().map(|cluster| of(cluster)).sum()
    }

    /// Requests that wait for a connection.
    fn pending(&self) -> u32 {
        self.sum(|cluster| cluster.gauges.pending.now())
    }

    /// Connections that are open.
    fn open(&self) -> u32 {
        self.sum(|cluster| cluster.gauges.connections.now())
    }

    /// Requests on their way.
    fn active(&self) -> u32 {
        self.sum(|cluster| cluster.gauges.requests.now())
    }

    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    async fn connect(&self) -> Raw {
        Raw(TcpStream::connect(self.address).await.expect("the proxy"))
    }

    /// One request over a connection of its own; the whole answer.
    async fn request(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write(request).await;
        client.0.shutdown().await.expect("half-close");
        client.rest().await
    }
}

fn workload() -> Arc<Workload> {
    Arc::new(Workload {
        name: WorkloadName {
            name: "sleep".into(),
            namespace: "default".into(),
        },
        labels: Arc::new([("app".to_owned(), "sleep".to_owned())].into()),
        identity: Identity {
            trust_domain: "cluster.local".into(),
            namespace: "default".into(),
            service_account: "sleep".into(),
        },
        addresses: Vec::new(),
        ports: Default::default(),
        node: None,
        placement: None,
        when_agent_is_down: None,
        direct: false,
        short_circuit: None,
        same_node: None,
        tunnel: Tunnel::None,
        locality: String::new(),
        weight: 1,
        origin: String::new(),
    })
}

/// Waits for ten seconds in which this process runs: one that was stopped meanwhile (SIGSTOP) has lost
/// one of them, however long it was.
async fn patient<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    for _ in 0..10 {
        let second = tokio::time::timeout(Duration::from_secs(1), &mut future);
        if let Ok(output) = second.await {
            return Some(output);
        }
    }
    None
}

/// A socket that speaks byte by byte, with a bound on waiting.
struct Raw(TcpStream);

impl Raw {
    async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("written");
    }

    /// Reads until the text ends with `end`.
    async fn read_until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        let until = async {
            while !read.ends_with(end.as_bytes()) {
                match self.0.read_u8().await {
                    Ok(byte) => read.push(byte),
                    Err(_) => return false,
                }
            }
            true
        };
        let found = patient(until).await;
        let text = String::from_utf8_lossy(&read).into_owned();
        assert_eq!(found, Some(true), "no {end:?} after {text:?}");
        text
    }

    async fn head(&mut self) -> String {
        self.read_until("\r\n\r\n").await
    }

    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let read = self.0.read_to_end(&mut rest);
        let result = patient(read).await;
        result.expect("an end in time").expect("an orderly end");
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// A server that is scripted for each of its connections, numbered from 0.
async fn server<F>(script: impl Fn(usize, Raw) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(script(number, Raw(io)));
            number += 1;
        }
    });
    address
}

/// A server that answers requests without body, forever, with what it is and was asked.
async fn echo(name: &'static str) -> SocketAddr {
    server(move |_, mut client| async move {
        while let Some(head) = maybe_head(&mut client).await {
            let line = head.lines().next().unwrap_or_default();
            let body = format!("{name}: {line}");
            let response = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            client.write(&response).await;
        }
    })
    .await
}

/// The next head, or none at the end of the connection.
async fn maybe_head(client: &mut Raw) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(client.0.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&read).into_owned())
}

/// An address on which nothing listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

const GET: &str = "GET /a?b=c HTTP/1.1\r\nhost: reviews\r\n\r\n";
