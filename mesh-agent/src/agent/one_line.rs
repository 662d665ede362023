//! An error and its causes in one line.

/// The error and its causes, those left out that the text before has named already.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let cause = std::io::Error::other("no such file");
        let error = Err::<(), _>(cause).context("cannot open x: no such file");
        let error = error.context("cannot start").unwrap_err();
        assert_eq!(
            one_line(&error),
            "cannot start: cannot open x: no such file"
        );
    }
}
