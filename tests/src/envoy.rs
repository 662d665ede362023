//! A real Envoy, where `cargo xtask test` has fetched one.

use std::path::{Path, PathBuf};

use crate::command::Process;
use crate::lab::Lab;
use crate::workload::Workload;

/// Set by `cargo xtask test`: a test that finds no Envoy fails.
const REQUIRED: &str = "UNDERMESH_ENVOY_REQUIRED";

/// Envoy's binary; `None`, with a line that says so, where it was not fetched.
///
/// # Panics
///
/// Where it was to be there.
pub fn envoy() -> Option<PathBuf> {
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/envoy/envoy/_bin/envoy");
    if binary.is_file() {
        return Some(binary);
    }
    assert!(
        std::env::var_os(REQUIRED).is_none(),
        "no Envoy at {}",
        binary.display()
    );
    eprintln!("SKIPPED: no Envoy; `cargo xtask test` fetches it");
    None
}

impl Workload {
    /// Starts Envoy in the workload with a configuration in YAML, and waits
    /// until it listens on `port`.
    ///
    /// # Panics
    ///
    /// With what it said, where it does not listen in time.
    pub fn envoy(&self, binary: &Path, port: u16, configuration: &str) -> Process {
        let file = self.file("envoy.yaml", configuration);
        let (file, binary) = (file.to_string_lossy(), binary.to_string_lossy());
        self.serve(
            port,
            &binary,
            &[
                "--config-path",
                &file,
                "--concurrency",
                "1",
                "--log-level",
                "warning",
                "--use-dynamic-base-id",
                // Of access logs, which it otherwise holds back for ten seconds.
                "--file-flush-interval-msec",
                "200",
            ],
        )
    }
}

impl Lab {
    /// A certificate of the mesh's authority for a service account of namespace
    /// `default`, made by openssl: files of the chain and of the key.
    ///
    /// # Panics
    ///
    /// Where openssl fails.
    pub fn certificate(&self, account: &str, place: &Workload) -> (PathBuf, PathBuf) {
        self.certificate_in("default", account, place)
    }

    /// The same of another namespace.
    ///
    /// # Panics
    ///
    /// Where openssl fails.
    pub fn certificate_in(
        &self,
        namespace: &str,
        account: &str,
        place: &Workload,
    ) -> (PathBuf, PathBuf) {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        self.certificate_for(&identity, account, place)
    }

    /// The same for any identity; `account` names the files.
    ///
    /// # Panics
    ///
    /// Where openssl fails.
    pub fn certificate_for(
        &self,
        identity: &str,
        account: &str,
        place: &Workload,
    ) -> (PathBuf, PathBuf) {
        let folder = self.folder();
        let (chain, key) = (
            folder.join(format!("{account}.pem")),
            folder.join(format!("{account}-key.pem")),
        );
        let script = format!(
            "set -e\n\
             openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
               -keyout {key} -out {folder}/{account}.csr -subj /\n\
             printf 'subjectAltName=critical,URI:{identity}\\n\
             extendedKeyUsage=serverAuth,clientAuth\\nkeyUsage=digitalSignature\\n' > {folder}/{account}.ext\n\
             openssl x509 -req -in {folder}/{account}.csr -CA {ca}/ca-cert.pem -CAkey {ca}/ca-key.pem \
               -set_serial 0x$(openssl rand -hex 8) -days 1 -extfile {folder}/{account}.ext -out {chain}\n\
             cat {ca}/ca-cert.pem >> {chain}\n",
            key = key.display(),
            chain = chain.display(),
            folder = folder.display(),
            ca = self.ca().display(),
        );
        let made = place.run("sh", &["-c", &script]);
        assert_eq!(made.code, 0, "{made:?}");
        (chain, key)
    }
}
