//! One function per scene. A scene that does not show what it announces is an error.

use std::process::Command;

use anyhow::{Result, ensure};
use mesh_tests::{Capture, Node, contains, outcome};

use super::say;
use super::stage::Stage;

/// Requests behind each figure.
const REQUESTS: u32 = 200;

/// Shares of a 90/10 split, in requests of `REQUESTS`, that chance does not
/// leave (five standard deviations).
const CANARY_SHARE: std::ops::RangeInclusive<usize> = 1..=41;

/// Names work, for a person and between services.
pub fn names(stage: &Stage) -> Result<()> {
    say::title("Names: unmodified curl, unmodified services");
    let reply = curl(stage, &["http://reviews.default.svc.cluster.local/"]);
    ensure!(reply.contains("\"reviews\""), "reviews does not answer");
    let page = curl(stage, &["http://productpage/"]);
    for part in ["details", "reviews", "ratings"] {
        ensure!(
            page.contains(&format!("\"{part}\": {{\"id\"")),
            "productpage has not got {part}"
        );
    }
    say::shown(
        "productpage has called details, reviews and ratings by their names, from node a to node b",
    );
    Ok(())
}

/// The guide's VirtualService, as printed.
pub fn routing_by_header(stage: &Stage) -> Result<()> {
    say::title("Routing by header: the guide's virtual-service.yaml, as printed");
    stage.apply("tests/data/guide/virtual-service.yaml")?;
    let version = |arguments: &[&str], version: &str| {
        let answers = stage
            .sleep
            .curl_many(REQUESTS, "http://reviews/", arguments);
        answers
            .iter()
            .filter(|answer| answer.contains(&format!("\"{version}\"")))
            .count()
    };
    stage.until("everybody gets v1", || {
        version(&[], "v1") == REQUESTS as usize
    })?;
    curl(stage, &["http://reviews/"]);
    let jason = ["--header", "end-user: jason"];
    curl(stage, &[jason[0], jason[1], "http://reviews/"]);
    let got = version(&jason, "v2");
    ensure!(
        got == REQUESTS as usize,
        "jason got v2 {got} times of {REQUESTS}"
    );
    say::shown(&format!(
        "{REQUESTS} of {REQUESTS} requests of jason get v2, {REQUESTS} of {REQUESTS} others v1"
    ));
    Ok(())
}

/// The guide's canary, first without the subsets that it forgets.
pub fn canary(stage: &Stage) -> Result<()> {
    say::title("A canary: nine of ten requests to the stable version");
    stage.apply("tests/data/guide/canary-rollout.yaml")?;
    stage.until("myapp answers 503", || {
        stage.sleep.curl(&["http://myapp/"]).status == 503
    })?;
    curl(stage, &["http://myapp/"]);
    say::shown("the guide forgets to say what stable and canary are: the answer is 503 and tells");
    stage.apply("examples/bookinfo/mesh/myapp-subsets.yaml")?;
    stage.until("myapp answers", || {
        stage.sleep.curl(&["http://myapp/"]).status == 200
    })?;
    let answers = stage
        .sleep
        .curl_many(REQUESTS, "http://myapp/", &["--fail"]);
    let canary = answers
        .iter()
        .filter(|answer| answer.contains("\"v2\""))
        .count();
    ensure!(
        CANARY_SHARE.contains(&canary),
        "{canary} of {REQUESTS} requests went to the canary"
    );
    say::shown(&format!(
        "{} of {REQUESTS} requests went to stable, {canary} to the canary",
        answers.len() - canary
    ));
    Ok(())
}

/// What passes between the nodes.
pub fn encryption(stage: &Stage) -> Result<()> {
    say::title("On the wire: mutual TLS, not a byte of the application");
    let capture = Capture::start(&stage.lab);
    curl(stage, &["--data", "the-secret-word", "http://reviews/echo"]);
    let packets = capture.stop();
    ensure!(
        !contains(&packets, b"the-secret-word"),
        "the secret word was on the wire"
    );
    ensure!(
        contains(&packets, &[0x17, 0x03, 0x03]),
        "no TLS was on the wire"
    );
    say::shown(&format!(
        "tcpdump between the nodes has {} bytes, the secret word is not among them",
        packets.len()
    ));
    Ok(())
}

/// Plaintext from outside, before and after STRICT.
pub fn strict(stage: &Stage) -> Result<()> {
    say::title("STRICT: whoever cannot prove who he is stays outside");
    let url = format!("http://{}:9080/", stage.reviews_v1.v4);
    let before = stage.outside.curl(&[&url]);
    say::command(&format!("curl {url}      # outside of the mesh"));
    say::printed(&before.body);
    ensure!(
        before.status == 200,
        "PERMISSIVE does not let plaintext in: {before:?}"
    );
    stage.apply("examples/bookinfo/mesh/strict.yaml")?;
    stage.until("plaintext is refused", || {
        stage.outside.curl(&[&url]).status == 0
    })?;
    say::command(&format!("curl {url}      # outside of the mesh"));
    say::printed(&stage.outside.curl(&[&url]).error);
    let inside = stage.sleep.curl(&["http://reviews/"]);
    ensure!(
        inside.status == 200,
        "the mesh itself is refused: {inside:?}"
    );
    say::shown("plaintext is refused; within the mesh all goes on");
    Ok(())
}

/// What the operator sees.
pub fn insight(stage: &Stage) -> Result<()> {
    say::title("Insight: what the kernel and the agents know");
    for (arguments, max_lines) in [
        (&["check"][..], 40),
        (&["workloads"], 20),
        (&["services"], 20),
        (&["authn", "tls-check", "sleep.default"], 20),
        (&["flows"], 8),
    ] {
        say::command(&format!("meshctl {}", arguments.join(" ")));
        let said = stage.a.meshctl(arguments);
        say::beginning(&said.stdout, max_lines);
        ensure!(
            said.code == 0,
            "meshctl {} failed: {}",
            arguments.join(" "),
            said.stderr
        );
    }
    let flows = stage.lab.bpffs(Node::A).join("flows");
    say::command(&format!("bpftool map dump pinned {}", flows.display()));
    let dump = outcome(
        Command::new("bpftool")
            .args(["map", "dump", "pinned"])
            .arg(&flows),
    )?;
    say::beginning(&dump.stdout, 24);
    ensure!(
        dump.stdout.contains("bytes_sent"),
        "bpftool does not name the fields: {}",
        dump.stderr
    );
    say::shown("the same account for machines: every map prints named fields");
    Ok(())
}

/// What the mesh has not touched.
pub fn untouched(stage: &Stage) -> Result<()> {
    say::title("And without iptables");
    let rules = stage.sleep.run("iptables-save", &[""; 0]).stdout
        + &stage.sleep.run("nft", &["list", "ruleset"]).stdout;
    say::command("iptables-save; nft list ruleset      # in sleep");
    say::printed(&rules);
    ensure!(
        !rules.lines().any(|line| line.starts_with("-A")),
        "there are rules: {rules}"
    );
    say::shown("no rule, no sidecar, no reserved port in any workload");
    Ok(())
}

fn curl(stage: &Stage, arguments: &[&str]) -> String {
    let quoted: Vec<_> = arguments
        .iter()
        .map(|argument| {
            if argument.contains(' ') {
                format!("'{argument}'")
            } else {
                (*argument).to_owned()
            }
        })
        .collect();
    say::command(&format!("curl {}", quoted.join(" ")));
    let reply = stage.sleep.curl(arguments);
    say::printed(&if reply.exit == 0 {
        reply.body.clone()
    } else {
        reply.error
    });
    reply.body
}
