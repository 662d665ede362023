//! The documents of a file, as untyped values.

use serde_json::Value;
use serde_saphyr::granit_parser::{Event, Parser};
use serde_saphyr::{Options, Spanned};

/// Largest file that is read, in bytes; a larger one is refused.
pub const MAX_FILE_BYTES: usize = 16 << 20;
/// Most documents in a file.
const MAX_DOCUMENTS: usize = 65_536;
/// Most scalars, lists and mappings in a document; aliases count each time they are used.
const MAX_NODES: usize = 2_000_000;
/// Deepest nesting of lists and mappings.
const MAX_DEPTH: usize = 64;

/// One document, or why it could not be read.
pub(super) struct Document {
    /// Position in the file, from 1; empty documents count.
    pub(super) number: usize,
    /// Its content.
    pub(super) content: Result<Value, String>,
}

/// Splits a file into its documents, without the empty ones. After a syntax
/// error nothing more can be read.
pub(super) fn split(file: &str, text: &str) -> Vec<Document> {
    if text.len() > MAX_FILE_BYTES {
        let reason = format!("is larger than {} MiB", MAX_FILE_BYTES >> 20);
        return vec![Document {
            number: 0,
            content: Err(reason),
        }];
    }
    if file.ends_with(".json") {
        split_json(text)
    } else {
        split_yaml(text)
    }
}

fn split_json(text: &str) -> Vec<Document> {
    serde_json::Deserializer::from_str(text)
        .into_iter::<Value>()
        .zip(1..)
        .map(|(content, number)| Document {
            number,
            content: content.map_err(|error| error.to_string()),
        })
        .collect()
}

fn split_yaml(text: &str) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let starts = document_starts(text);
    // The first document whose start is not below `line`.
    let number = |line: u64| {
        starts
            .partition_point(|&start| start as u64 <= line)
            .clamp(1, starts.len().max(1))
    };
    let mut reader = text.as_bytes();
    serde_saphyr::read_with_options::<_, Spanned<Value>>(&mut reader, options())
        .map(|document| match document {
            Ok(document) => Document {
                number: number(document.referenced.line()),
                content: Ok(document.value),
            },
            Err(error) => Document {
                number: error
                    .location()
                    .map_or(1, |location| number(location.line())),
                content: Err(one_line(&error.without_snippet().to_string()).replace(ADVICE, "")),
            },
        })
        .collect()
}

/// YAML 1.2, where `yes` and `no` are texts; duplicate keys are errors.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(MAX_FILE_BYTES),
            max_documents: MAX_DOCUMENTS,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_depth: MAX_DEPTH,
        },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    }
}

/// The lines, from 1, on which the documents of a file start.
fn document_starts(text: &str) -> Vec<usize> {
    Parser::new_from_str(text)
        .map_while(Result::ok)
        .filter(|(event, _)| matches!(event, Event::DocumentStart(..)))
        .map(|(_, span)| span.start.line())
        .take(MAX_DOCUMENTS)
        .collect()
}

/// What the reader tells programmers beside the error.
const ADVICE: &str = ", set DuplicateKeyPolicy in Options if acceptable";

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Vec<(usize, Result<Value, String>)> {
        split("a.yaml", text)
            .into_iter()
            .map(|document| (document.number, document.content))
            .collect()
    }

    #[test]
    fn documents_are_numbered_as_they_stand_in_the_file() {
        let text = "# first\na: 1\n---\n# nothing\n---\n\nb: 2\n...\n---\nc: 3\n---\n";
        assert_eq!(
            read(text),
            [
                (1, Ok(json!({"a": 1}))),
                (3, Ok(json!({"b": 2}))),
                (4, Ok(json!({"c": 3}))),
            ]
        );
        assert_eq!(read("---\na: 1\n"), [(1, Ok(json!({"a": 1})))]);
        assert_eq!(read("# only a comment\n"), []);
        assert_eq!(read(""), []);
    }

    #[test]
    fn a_syntax_error_has_a_place() {
        let documents = read("a: 1\n---\nb: [1, 2\nc: 3\n");
        let (number, content) = documents.last().unwrap();
        assert_eq!(*number, 2);
        assert!(
            content.as_ref().unwrap_err().contains("line"),
            "{content:?}"
        );
    }

    #[test]
    fn duplicate_keys_are_errors() {
        let documents = read("a: 1\na: 2\n");
        let error = documents[0].1.as_ref().unwrap_err();
        assert_eq!(error, "duplicate mapping key: a at line 2, column 1");
    }

    #[test]
    fn texts_stay_what_the_writer_meant() {
        assert_eq!(
            read("{a: on, b: 007, c: 1_000, d: true, 8080: x}")[0].1,
            Ok(json!({"a": "on", "b": "007", "c": "1_000", "d": true, "8080": "x"}))
        );
    }

    #[test]
    fn json_files_are_read() {
        let documents = split("a.json", "\t{\"a\": 1}\n{\"b\": 2}");
        let numbers: Vec<_> = documents.iter().map(|document| document.number).collect();
        assert_eq!(numbers, [1, 2]);
        assert!(split("a.json", "{")[0].content.is_err());
    }

    #[test]
    fn deep_nesting_and_alias_bombs_are_refused() {
        assert!(read(&"[".repeat(100_000))[0].1.is_err());
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for n in 1..40 {
            let above = n - 1;
            bomb += &format!("a{n}: &a{n} [*a{above}, *a{above}, *a{above}, *a{above}]\n");
        }
        assert!(read(&bomb)[0].1.is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[ -~\n\t:&*!\\[\\]{}\u{80}-\u{2030}-]{0,200}") {
            for document in split("a.yaml", &text) {
                prop_assert!(document.number >= 1);
            }
        }
    }
}
