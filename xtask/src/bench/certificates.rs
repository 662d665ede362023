//! Certificates for Envoy: a root, and one leaf with a SPIFFE identity for
//! either side, as a mesh's authority would issue them (P-256).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use mesh_tests::outcome;

use crate::shell;

/// Identity of the side that connects.
pub const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
/// Identity of the side that accepts.
pub const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

/// Files in the PEM format.
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes all of them in `folder`.
    pub fn make(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let made = Self {
            folder: folder.to_owned(),
        };
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        openssl(
            &[
                &["req", "-x509", "-subj", "/O=benchmark", "-days", "1"],
                &key[..],
                &["-keyout", &made.path("root-key.pem"), "-out", &made.root()],
            ]
            .concat(),
        )?;
        for (side, identity) in [("client", CLIENT), ("server", SERVER)] {
            openssl(
                &[
                    &["req", "-x509", "-subj", "/", "-days", "1"],
                    &key[..],
                    &["-CA", &made.root(), "-CAkey", &made.path("root-key.pem")],
                    &[
                        "-addext",
                        &format!("subjectAltName=critical,URI:{identity}"),
                    ],
                    &["-addext", "basicConstraints=critical,CA:FALSE"],
                    &["-keyout", &made.key(side), "-out", &made.certificate(side)],
                ]
                .concat(),
            )?;
        }
        Ok(made)
    }

    /// The root that both sides trust.
    pub fn root(&self) -> String {
        self.path("root.pem")
    }

    /// The certificate of `client` or `server`.
    pub fn certificate(&self, side: &str) -> String {
        self.path(&format!("{side}.pem"))
    }

    /// Its key.
    pub fn key(&self, side: &str) -> String {
        self.path(&format!("{side}-key.pem"))
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }
}

fn openssl(arguments: &[&str]) -> Result<()> {
    let said = outcome(shell::command("openssl").args(arguments))?;
    if said.code != 0 {
        bail!("openssl {}: {}", arguments.join(" "), said.stderr.trim());
    }
    Ok(())
}
