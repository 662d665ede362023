//! Annotations by which Istio's resources say what they have no fields for.

/// Prefix of the annotations that are ours.
pub(super) const PREFIX: &str = "undermesh.io/";
/// Greatest number of requests or endpoints that can be asked for.
const MAX_COUNT: u32 = 1_000_000;

/// What is wrong with an annotation.
pub(crate) enum Problem {
    /// Nobody knows it.
    Unknown(String),
    /// Its value cannot be.
    Value(String),
}

/// One that nobody knows, where these are known.
pub(super) fn unknown(known: &[&str]) -> Problem {
    let known = known.join(", ");
    Problem::Unknown(format!(
        "is not an annotation that the mesh knows; it knows {known}"
    ))
}

/// `name=value` with commas between, each name once.
pub(super) fn settings<'v>(
    value: &'v str,
    names: &[&str],
    mut set: impl FnMut(&str, &'v str) -> Result<(), String>,
) -> Result<(), String> {
    let mut seen: Vec<&str> = Vec::new();
    for setting in value.split(',').map(str::trim) {
        let Some((name, value)) = setting.split_once('=') else {
            return Err(format!("{setting:?} is not name=value"));
        };
        if !names.contains(&name) {
            return Err(format!("{name:?} is none of {}", names.join(", ")));
        }
        if seen.contains(&name) {
            return Err(format!("{name:?} stands twice"));
        }
        seen.push(name);
        set(name, value).map_err(|reason| format!("{name}: {reason}"))?;
    }
    Ok(())
}

/// A number of requests or endpoints.
pub(super) fn count(value: &str) -> Result<u32, String> {
    let number = value.parse().ok();
    number
        .filter(|number| (1..=MAX_COUNT).contains(number))
        .ok_or_else(|| format!("{value:?} is not a number from 1 to {MAX_COUNT}"))
}
