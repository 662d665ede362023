//! Fuzzing of the parsers that read from the network or from files, with
//! nothing but a stable compiler: each `fuzz_*` test runs its target over a kept
//! corpus, and over mutations of it for as long as `UNDERMESH_FUZZ_SECONDS` says
//! (`cargo xtask fuzz`). An input that makes a target panic is added to the
//! corpus, so that it is tried first from then on.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::IndexedRandom;

/// How long mutations are tried without being asked for.
const DEFAULT: Duration = Duration::from_millis(200);
/// Longest input, bytes.
const MAX_BYTES: usize = 16 * 1024;
/// Most changes of one input.
const MAX_CHANGES: usize = 8;
/// Bytes on which parsers turn.
const SPECIAL: &[u8] = b"\0\x01\x7f\x80\xff \r\n\t:/?#[]{}\"'\\%;,=*.-&!|>0";

/// Runs `target` over the corpus `name` and mutations of it.
pub fn run(name: &str, target: impl Fn(&[u8])) {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fuzz", name].iter().collect();
    let mut corpus: Vec<Vec<u8>> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!corpus.is_empty(), "{} is empty", folder.display());
    let attempt = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
            let number: u64 = rand::random();
            let path = folder.join(format!("crash-{number:016x}"));
            fs::write(&path, input).unwrap();
            eprintln!("{name}: the input is kept as {}", path.display());
            resume_unwind(panic);
        }
    };
    for input in &corpus {
        attempt(input);
    }
    corpus.push(Vec::new());
    let limit = std::env::var("UNDERMESH_FUZZ_SECONDS").map_or(DEFAULT, |seconds| {
        Duration::from_secs(seconds.parse().expect("UNDERMESH_FUZZ_SECONDS is a number"))
    });
    let (begin, mut tried) = (Instant::now(), 0_u64);
    while begin.elapsed() < limit {
        for _ in 0..100 {
            attempt(&mutated(&corpus));
            tried += 1;
        }
    }
    println!(
        "{name}: {} seeds, {tried} mutations in {limit:?}",
        corpus.len() - 1
    );
}

fn mutated(corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut random = rand::rng();
    let mut bytes = corpus.choose(&mut random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..=MAX_CHANGES) {
        let at = random.random_range(0..=bytes.len());
        let end = random.random_range(at..=bytes.len()).min(at + 64);
        match random.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = random.random(),
            2 => bytes.insert(at, *SPECIAL.choose(&mut random).unwrap_or(&0)),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => bytes.truncate(at),
            _ => {
                let other = corpus.choose(&mut random).cloned().unwrap_or_default();
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}
