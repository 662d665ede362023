//! What is measured: places, variants and loads.

use anyhow::Result;

use super::drive::Load;
use super::envoy::Kind;
use super::figures::{DIRECT, Figures};
use super::stage::Stage;
use super::{Options, configuration, memory, rounds};

/// Variants that are measured beside one another.
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether client and server are on two nodes, each with its agent.
    pub two_nodes: bool,
    /// Whether the mesh routes HTTP requests, or passes on bytes.
    pub http: bool,
    pub variants: &'static [Variant],
    pub measured: Measured,
}

/// What is looked at.
pub enum Measured {
    /// Speed and its cost, in rounds over all variants.
    Speed(&'static [Load]),
    /// Many connections at once: records and memory.
    Flows,
    /// Memory at rest, and of tunnels at rest.
    Idle,
    /// A large configuration: start, changes, memory.
    Configuration,
}

/// One way from client to server.
pub struct Variant {
    pub name: &'static str,
    pub mesh: Mesh,
}

/// What is between client and server.
pub enum Mesh {
    /// Nothing, and no program is attached.
    None,
    /// Programs are attached, but neither end is a workload.
    NotEnrolled,
    /// Ours.
    Undermesh(Setting),
    /// Envoy with iptables.
    Envoy(Kind),
    /// Envoy that has a large configuration, and nothing to do.
    IdleEnvoy,
}

/// How ours is set.
pub struct Setting {
    /// Annotations of both workloads.
    pub annotations: &'static [(&'static str, &'static str)],
    /// The verdict that the kernel must have acted upon; else the variant is left out.
    pub verdict: &'static str,
}

const DIRECT_VERDICT: (&str, &str) = ("undermesh.io/direct", "true");
const SHORT_CIRCUIT: &str = "undermesh.io/short-circuit";

const fn direct() -> Variant {
    Variant {
        name: DIRECT,
        mesh: Mesh::None,
    }
}

/// Ours as it comes.
const fn undermesh() -> Variant {
    Variant {
        name: "undermesh",
        mesh: Mesh::Undermesh(Setting {
            annotations: &[],
            verdict: "proxy",
        }),
    }
}

const WITH_SHORT_CIRCUIT: Variant = Variant {
    name: "undermesh-short-circuit",
    mesh: Mesh::Undermesh(Setting {
        annotations: &[(SHORT_CIRCUIT, "on")],
        verdict: "proxy",
    }),
};

const fn envoy(name: &'static str, kind: Kind) -> Variant {
    Variant {
        name,
        mesh: Mesh::Envoy(kind),
    }
}

const BYTES: &[Load] = &Load::ALL;

const REQUESTS: &[Load] = &[
    Load::Requests(16),
    Load::Requests(64),
    Load::Latency,
    Load::NewConnections,
];

/// Every scenario.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "same-node",
        about: "both ends on one node, bytes passed on, no TLS",
        two_nodes: false,
        http: false,
        variants: &[
            direct(),
            Variant {
                name: "not-enrolled",
                mesh: Mesh::NotEnrolled,
            },
            Variant {
                name: "undermesh-direct-short-circuit",
                mesh: Mesh::Undermesh(Setting {
                    annotations: &[DIRECT_VERDICT, (SHORT_CIRCUIT, "on")],
                    verdict: "direct",
                }),
            },
            Variant {
                name: "undermesh-direct",
                mesh: Mesh::Undermesh(Setting {
                    annotations: &[DIRECT_VERDICT, (SHORT_CIRCUIT, "off")],
                    verdict: "direct",
                }),
            },
            undermesh(),
            WITH_SHORT_CIRCUIT,
            Variant {
                name: "undermesh-no-short-circuit",
                mesh: Mesh::Undermesh(Setting {
                    annotations: &[(SHORT_CIRCUIT, "off")],
                    verdict: "proxy",
                }),
            },
            envoy("envoy-tcp", Kind::Tcp),
        ],
        measured: Measured::Speed(BYTES),
    },
    Scenario {
        name: "same-node-http",
        about: "both ends on one node, requests routed; Envoy's pair has mutual TLS",
        two_nodes: false,
        http: true,
        variants: &[
            direct(),
            undermesh(),
            WITH_SHORT_CIRCUIT,
            envoy("envoy-http1-pair", Kind::Http1Pair),
        ],
        measured: Measured::Speed(REQUESTS),
    },
    Scenario {
        name: "two-nodes-tcp",
        about: "mutual TLS between two nodes, bytes passed on",
        two_nodes: true,
        http: false,
        variants: &[
            direct(),
            undermesh(),
            envoy("envoy-tcp-pair", Kind::TcpPair),
        ],
        measured: Measured::Speed(BYTES),
    },
    Scenario {
        name: "two-nodes-handshakes",
        about: "new connections where Envoy pays a whole handshake for each, and where it resumes sessions",
        two_nodes: true,
        http: false,
        variants: &[
            direct(),
            undermesh(),
            envoy("envoy-tcp-pair-full", Kind::TcpPairFull),
            envoy("envoy-tcp-pair", Kind::TcpPair),
        ],
        measured: Measured::Speed(&[Load::NewConnections]),
    },
    Scenario {
        name: "two-nodes-http1",
        about: "requests routed, mutual TLS between two nodes, HTTP/1.1 between Envoys",
        two_nodes: true,
        http: true,
        variants: &[
            direct(),
            undermesh(),
            envoy("envoy-http1-pair", Kind::Http1Pair),
        ],
        measured: Measured::Speed(REQUESTS),
    },
    Scenario {
        name: "two-nodes-http2",
        about: "requests routed, mutual TLS between two nodes, HTTP/2 between Envoys",
        two_nodes: true,
        http: true,
        variants: &[
            direct(),
            undermesh(),
            envoy("envoy-http2-pair", Kind::Http2Pair),
        ],
        measured: Measured::Speed(REQUESTS),
    },
    Scenario {
        name: "flows-same-node",
        about: "10,000 connections at once on one node, direct verdict",
        two_nodes: false,
        http: false,
        variants: &[Variant {
            name: "undermesh-direct",
            mesh: Mesh::Undermesh(Setting {
                annotations: &[DIRECT_VERDICT],
                verdict: "direct",
            }),
        }],
        measured: Measured::Flows,
    },
    Scenario {
        name: "flows-two-nodes",
        about: "10,000 connections at once between two nodes, mutual TLS",
        two_nodes: true,
        http: false,
        variants: &[undermesh()],
        measured: Measured::Flows,
    },
    Scenario {
        name: "idle",
        about: "memory at rest, and of tunnels at rest",
        two_nodes: true,
        http: false,
        variants: &[undermesh(), envoy("envoy-tcp-pair", Kind::TcpPair)],
        measured: Measured::Idle,
    },
    Scenario {
        name: "configuration",
        about: "1,000 services with routes in two versions, 100 workloads on one node",
        two_nodes: false,
        http: true,
        variants: &[
            undermesh(),
            Variant {
                name: "envoy-of-one-workload",
                mesh: Mesh::IdleEnvoy,
            },
        ],
        measured: Measured::Configuration,
    },
];

impl Scenario {
    /// Builds the stage, measures, and removes the stage.
    pub fn measure(&'static self, options: &Options, figures: &mut Figures) -> Result<()> {
        let variants: Vec<_> = self
            .variants
            .iter()
            .filter(|variant| options.wants_variant(variant.name))
            .collect();
        let stage = |figures: &mut Figures| Stage::build(self, &variants, figures);
        match &self.measured {
            Measured::Speed(loads) => rounds::measure(&stage(figures)?, loads, options, figures),
            Measured::Flows => memory::flows(&stage(figures)?, figures),
            Measured::Idle => memory::idle(&stage(figures)?, figures),
            Measured::Configuration => {
                configuration::measure(self.name, &variants, options.rounds, figures)
            }
        }
    }
}
