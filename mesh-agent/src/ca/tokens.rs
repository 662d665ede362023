//! Who may ask for a certificate without having one: a file of tokens.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, bail};

use crate::file;
use crate::identity::Identity;

/// Shorter tokens could be guessed.
const MIN_TOKEN_BYTES: usize = 16;
/// Tens of thousands of tokens.
const MAX_FILE_BYTES: usize = 16 << 20;

/// Tokens, and the identities that each may have.
#[derive(Default)]
pub struct Tokens {
    by_token: HashMap<String, Vec<Identity>>,
}

impl Tokens {
    /// Reads a file: on each line a token and identities, separated by blanks;
    /// `#` begins a comment.
    ///
    /// # Errors
    /// With file, line and reason; also where others than the owner may read it.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
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
            let identities: Vec<Identity> = words
                .map(str::parse)
                .collect::<Result<_, _>>()
                .with_context(|| format!("line {number}"))?;
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
            ("\n0123456789abcdef x", "line 2"),
        ] {
            let error = Tokens::parse(text).err().unwrap();
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }
}
