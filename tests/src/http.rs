//! Requests by curl, the client that everybody has.

use std::collections::BTreeMap;

use crate::workload::Workload;

/// What curl got.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status; 0 where there was no answer.
    pub status: u16,
    /// Header fields of the response, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Body.
    pub body: String,
    /// curl's exit code; 0 where there was an answer.
    pub exit: i32,
    /// curl's own message.
    pub error: String,
}

/// Separates what curl writes at the end from the body.
const MARK: &str = "\n--reply--\n";

impl Workload {
    /// `curl <arguments>` in the workload, as one request.
    pub fn curl(&self, arguments: &[&str]) -> Reply {
        let write_out = format!("{MARK}%{{http_code}}\n%{{header_json}}");
        let mut all = vec![
            "--silent",
            "--show-error",
            "--max-time",
            "10",
            "--write-out",
            &write_out,
        ];
        all.extend(arguments);
        let outcome = self.run("curl", &all);
        let (body, rest) = outcome
            .stdout
            .rsplit_once(MARK)
            .unwrap_or((&outcome.stdout, ""));
        let (status, headers) = rest.split_once('\n').unwrap_or((rest, ""));
        Reply {
            status: status.parse().unwrap_or(0),
            headers: headers_of(headers),
            body: body.to_owned(),
            exit: outcome.code,
            error: outcome.stderr.trim().to_owned(),
        }
    }

    /// The bodies, one a line, of `count` requests for `url` over one curl process.
    pub fn curl_many(&self, count: u32, url: &str, arguments: &[&str]) -> Vec<String> {
        let urls = format!("{url}?request=[1-{count}]");
        let mut all = vec!["--silent", "--show-error", "--max-time", "50"];
        all.extend(arguments);
        all.push(&urls);
        let outcome = self.run("curl", &all);
        assert_eq!(outcome.code, 0, "curl failed: {}", outcome.stderr);
        outcome.stdout.lines().map(str::to_owned).collect()
    }

    /// The same over one HTTP/2 connection, all at once, by nghttp (curl 7.88
    /// cannot use a connection twice with prior knowledge).
    ///
    /// # Panics
    ///
    /// Where nghttp fails.
    pub fn nghttp_many(&self, count: u32, url: &str, headers: &[&str]) -> Vec<String> {
        let count = format!("--multiply={count}");
        let mut all = vec!["--no-dep", "--timeout=50", &count];
        all.extend(headers.iter().flat_map(|header| ["--header", header]));
        all.push(url);
        self.run("nghttp", &all)
            .success()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

/// curl's `header_json`: names in lower case, each with all its values.
fn headers_of(json: &str) -> BTreeMap<String, String> {
    let value: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, values)| {
            let values: Vec<_> = values
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|value| value.as_str())
                .collect();
            (name.to_lowercase(), values.join(", "))
        })
        .collect()
}
