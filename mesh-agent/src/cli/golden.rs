//! Golden files: what people read, kept beside the code and renewed with `UPDATE_GOLDEN=1`.

use std::fs;
use std::path::Path;

/// Compares `text` with `golden/<name>`.
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/cli/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        expected,
        "{} differs; UPDATE_GOLDEN=1 renews it",
        path.display()
    );
}
