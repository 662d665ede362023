//! How the demo speaks: a title per scene, commands as one would type them,
//! what they print, and a tick for what has been shown.

use std::io::IsTerminal;
use std::sync::LazyLock;

static COLOURS: LazyLock<bool> =
    LazyLock::new(|| std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none());

/// How many lines of a command's output are shown, unless the scene says otherwise.
const MAX_LINES: usize = 40;

/// A new scene.
pub fn title(text: &str) {
    println!("\n{}", paint("1", &format!("━━ {text}")));
}

/// A command as one would type it.
pub fn command(text: &str) {
    println!("   {}", paint("2", &format!("$ {text}")));
}

/// What a command printed.
pub fn printed(text: &str) {
    beginning(text, MAX_LINES);
}

/// The first lines of what a command printed.
pub fn beginning(text: &str, max_lines: usize) {
    let lines: Vec<_> = text.trim_end().lines().collect();
    for line in lines.iter().take(max_lines) {
        println!("   {line}");
    }
    if lines.len() > max_lines {
        println!("   ... and {} lines more", lines.len() - max_lines);
    }
}

/// Something is being done.
pub fn doing(text: &str) {
    println!("   · {text}");
}

/// Something has been shown.
pub fn shown(text: &str) {
    println!("   {} {text}", paint("32", "✓"));
}

fn paint(code: &str, text: &str) -> String {
    if *COLOURS {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
