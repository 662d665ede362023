//! What kernels can and cannot do beside the short-circuit.

use crate::short_circuit::{Pair, VIP, pair, pair_with};

const KTLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/short_circuit/ktls.py");

/// With the short-circuit on, it may not: `TCP_ULP` on a socket in a map of sockets is EINVAL (Linux 6.1.192).
#[test]
fn by_default_an_application_may_have_the_kernel_do_its_tls() {
    for direct in [true, false] {
        let mut pair = pair(direct, "auto");
        pair.serving.kill();
        pair.serving = pair.server.serve(7000, "python3", &[KTLS, "serve", "7000"]);
        let said = pair.client.run("python3", &[KTLS, VIP]).success();
        if said == "no TLS in this kernel\n" {
            println!("skipped: {said}");
            return;
        }
        assert_eq!(said, "heard by the kernel\n", "direct: {direct}");
    }
}

/// `cargo xtask test --kernel 6.1 --kernel-options lockdown=confidentiality lockdown`
#[test]
fn a_kernel_in_lockdown_lets_nobody_read_its_memory_and_all_the_rest_works() {
    let options = std::fs::read_to_string("/proc/cmdline").expect("proc is mounted");
    if !options.contains("lockdown=confidentiality") {
        println!("skipped: this kernel is not in lockdown");
        return;
    }
    works_without_short_circuit(&pair(true, "on"));
}

#[test]
fn a_kernel_that_does_not_say_how_it_is_built_gets_no_short_circuit_and_all_the_rest() {
    let pair = pair_with(true, "on", |lab| {
        let nothing = lab.folder().join("no-btf");
        std::fs::write(&nothing, "").expect("the lab's folder is writable");
        vec![(nothing, "/sys/kernel/btf/vmlinux")]
    });
    works_without_short_circuit(&pair);
}

fn works_without_short_circuit(pair: &Pair) {
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    assert_eq!(
        pair.sees("half-close"),
        "digest True\nanswer True\nend once True\n"
    );
    assert_eq!(pair.handed_over(), 0, "{:?}", pair.counters());
    let said = pair.agent.meshctl(&["check"]).stdout;
    for line in [
        "short-circuit to the agent",
        "short-circuit to applications",
    ] {
        let found = said.lines().find(|l| l.contains(line));
        assert!(found.is_some_and(|l| l.contains("off: ")), "{said}");
    }
}
