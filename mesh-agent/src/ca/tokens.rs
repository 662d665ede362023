//! Who may ask for a certificate without having one: a file of tokens.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::file::{self, Stamp, stamp, watch};
use crate::identity::Identity;

/// Shorter tokens could be guessed.
const MIN_TOKEN_BYTES: usize = 16;
/// Tens of thousands of tokens.
const MAX_FILE_BYTES: usize = 16 << 20;

/// Tokens of a file, as it is now.
#[derive(Default)]
pub struct TokenFile {
    path: Option<PathBuf>,
    /// When it was first read.
    seen: Option<Stamp>,
    current: ArcSwap<Tokens>,
}

impl TokenFile {
    /// Reads a file: on each line a token and identities, separated by blanks;
    /// `#` begins a comment.
    ///
    /// # Errors
    /// With file, line and reason, but nothing of what stands there; also where others than
    /// the owner may read it.
    pub fn open(path: PathBuf) -> anyhow::Result<Self> {
        // Before it is read: what changes meanwhile is seen later.
        let seen = stamp(&path);
        Ok(Self {
            current: ArcSwap::from_pointee(Tokens::load(&path)?),
            path: Some(path),
            seen,
        })
    }

    /// Reads the file again whenever it changes, until `stop`. One that cannot be used is told,
    /// and the tokens of before stay.
    pub async fn watch(&self, stop: CancellationToken) {
        let Some(path) = &self.path else {
            return stop.cancelled().await;
        };
        let changed = || match Tokens::load(path) {
            Ok(tokens) => {
                self.current.store(Arc::new(tokens));
                tracing::info!(path = %path.display(), "tokens are renewed");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "tokens not renewed, the old ones stay");
            }
        };
        watch(self.seen, || stamp(path), changed, stop).await;
    }

    /// The tokens that count now.
    pub fn current(&self) -> Arc<Tokens> {
        self.current.load_full()
    }
}

/// Tokens, and the identities that each may have.
#[derive(Default)]
pub struct Tokens {
    by_token: HashMap<String, Vec<Identity>>,
}

impl Tokens {
    fn load(path: &Path) -> anyhow::Result<Self> {
        let text = file::read_text(path, MAX_FILE_BYTES)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if std::fs::metadata(path)?.mode() & 0o077 != 0 {
            bail!(
                "{}: others than its owner may read it: chmod 600",
                path.display()
            );
        }
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut by_token = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(token) = words.next() else { continue };
            if token.len() < MIN_TOKEN_BYTES {
                bail!("line {number}: a token has at least {MIN_TOKEN_BYTES} characters");
            }
            // The parser's error has the word in it, which may be the token.
            let Ok(identities) = words.map(str::parse).collect::<Result<Vec<Identity>, _>>() else {
                bail!(
                    "line {number}: after the token stand identities, of the form \
                     spiffe://<trust domain>/ns/<namespace>/sa/<service account>, and nothing else"
                );
            };
            if identities.is_empty() {
                bail!("line {number}: no identity after the token");
            }
            if by_token.insert(token.to_owned(), identities).is_some() {
                bail!("line {number}: the token stands twice");
            }
        }
        Ok(Self { by_token })
    }

    /// The identities that the bearer of `token` may have.
    pub fn identities(&self, token: &str) -> &[Identity] {
        self.by_token.get(token).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stands_for_identities() {
        let tokens = Tokens::parse(
            "# node a\n0123456789abcdef spiffe://cluster.local/ns/default/sa/a spiffe://cluster.local/ns/default/sa/b # both\n\n",
        )
        .unwrap();
        assert_eq!(tokens.identities("0123456789abcdef").len(), 2);
        assert!(tokens.identities("0123456789abcdeX").is_empty());
        for (text, reason) in [
            ("short spiffe://a/ns/b/sa/c", "line 1: a token has"),
            ("0123456789abcdef", "line 1: no identity"),
            ("\n0123456789abcdef x", "line 2: after the token"),
            (
                "spiffe://a/ns/b/sa/c 0123456789abcdef",
                "line 1: after the token",
            ),
        ] {
            let error = format!("{:#}", Tokens::parse(text).err().unwrap());
            assert!(error.contains(reason), "{error}");
            assert!(!text.split_whitespace().any(|word| error.contains(word)));
        }
    }
}
