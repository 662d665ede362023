//! What the kernel counts of connections on one node is exact, however their bytes travel.

use crate::short_circuit::{VIP, pair};

#[test]
fn the_account_of_a_direct_flow_is_exact_at_both_ends() {
    let pair = pair(true, "on");
    assert_eq!(pair.sees("once"), "echo 1234567890\n");
    let flows = pair.agent.meshctl_json(&["flows"]);
    let flow = |direction: &str| {
        (flows.as_array().into_iter().flatten())
            .find(|flow| flow["direction"] == direction)
            .unwrap_or_else(|| panic!("no {direction} flow: {flows}"))
            .clone()
    };
    let (out, inward) = (flow("outbound"), flow("inbound"));
    // "echo\n" and ten bytes there, ten bytes back.
    for (sent, received) in [(&out, &inward), (&inward, &out)] {
        assert_eq!(sent["bytes_sent"], received["bytes_received"], "{flows}");
        assert_eq!(
            sent["short_circuit_sent"], received["short_circuit_received"],
            "{flows}"
        );
    }
    assert_eq!(
        (&out["bytes_sent"], &out["bytes_received"]),
        (&15.into(), &10.into()),
        "{flows}"
    );
    assert!(out["short_circuit_sent"].as_u64() > Some(0), "{flows}");
    for flow in [&out, &inward] {
        assert_eq!(flow["verdict"], "direct");
        assert_eq!(
            flow["source_identity"],
            "spiffe://cluster.local/ns/default/sa/client"
        );
        assert_eq!(
            flow["destination_identity"],
            "spiffe://cluster.local/ns/default/sa/server"
        );
        assert_eq!(flow["security"], "same_node");
    }
    assert_eq!(out["destination"], format!("{VIP}:80"));
    assert_eq!(out["endpoint"], format!("{}:7000", pair.server.v4));
    assert!(out["connect_us"].as_u64() > Some(0), "{flows}");
}

#[test]
fn the_account_is_exact_when_the_server_closes_first_after_many_messages() {
    for direct in [true, false] {
        let pair = pair(direct, "on");
        assert_eq!(pair.sees("farewell"), "farewell 10000\n");
        let flows = pair.agent.meshctl_json(&["flows"]);
        let counted = |direction: &str| {
            (flows.as_array().into_iter().flatten())
                .find(|flow| flow["direction"] == direction)
                .map(|flow| (flow["bytes_sent"].clone(), flow["bytes_received"].clone()))
        };
        // "farewell 1000\n" there, a thousand messages back.
        let (there, back) = (14.into(), 10_000.into());
        assert_eq!(counted("outbound"), Some((there, back)), "{flows}");
        let (back, there) = (10_000.into(), 14.into());
        assert_eq!(counted("inbound"), Some((back, there)), "{flows}");
        assert!(pair.handed_over() > 0);
    }
}

/// However they travel: a thousand calls of 100 and 900 bytes, and the line that asks for them.
#[test]
fn every_byte_of_a_thousand_calls_is_in_the_account_of_both_ends() {
    for (direct, short_circuit) in [(true, "on"), (true, "off"), (false, "on"), (false, "off")] {
        let pair = pair(direct, short_circuit);
        assert_eq!(pair.sees("calls"), "calls 1000\n");
        let flows = pair.agent.meshctl_json(&["flows"]);
        let (there, back) = (100_004.into(), 900_000.into());
        for (direction, sent, received) in [("outbound", &there, &back), ("inbound", &back, &there)]
        {
            let mut all = flows.as_array().into_iter().flatten();
            let flow = all.find(|flow| flow["direction"] == direction);
            let flow = flow.unwrap_or_else(|| panic!("no {direction} flow: {flows}"));
            assert_eq!(
                (&flow["bytes_sent"], &flow["bytes_received"]),
                (sent, received),
                "{short_circuit}: {flow}"
            );
            let handed_over = flow["short_circuit_sent"].as_u64();
            assert_eq!(handed_over > Some(0), short_circuit == "on", "{flow}");
        }
    }
}
