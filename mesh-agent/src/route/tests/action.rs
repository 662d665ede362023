//! What rules do with a request: rewrite, edit, redirect, answer, fault, retry.

use std::time::Duration;

use http::HeaderMap;

use super::*;

/// A mesh with one rule for `reviews`.
fn rule(rest: &str) -> Mesh {
    let spec = format!("{{hosts: [reviews], http: [{{{rest}}}]}}");
    Mesh::new(&[("default/reviews", &spec)], &[])
}

const TO_REVIEWS: &str = "route: [{destination: {host: reviews}}]";

#[test]
fn a_rewrite_replaces_the_matched_prefix() {
    for (block, uri, request, expected) in [
        (
            "match: [{uri: {prefix: /old}}]",
            "/new",
            "GET reviews/old/a?b=c",
            "/new/a?b=c",
        ),
        (
            "match: [{uri: {prefix: /old/}}]",
            "/",
            "GET reviews/old/a",
            "/a",
        ),
        (
            "match: [{uri: {prefix: /old}}]",
            "/",
            "GET reviews/old/a",
            "//a",
        ),
        (
            "match: [{uri: {prefix: /OLD}, ignoreUriCase: true}]",
            "/new",
            "GET reviews/old",
            "/new",
        ),
        (
            "match: [{uri: {exact: /old}}]",
            "/new",
            "GET reviews/old?q",
            "/new?q",
        ),
        (
            "match: [{uri: {regex: '/o.*'}}]",
            "/new",
            "GET reviews/old/a",
            "/new",
        ),
        ("name: all", "/new/", "GET reviews/a", "/new/a"),
    ] {
        let mut mesh = rule(&format!("{block}, rewrite: {{uri: {uri}}}, {TO_REVIEWS}"));
        let rewritten = mesh.plan(request).rewritten;
        assert_eq!(
            rewritten.path_and_query.as_deref(),
            Some(expected),
            "{block} {uri}"
        );
    }
    let mut mesh = rule(&format!(
        r"rewrite: {{uriRegexRewrite: {{match: '/v(\d)/', rewrite: '/\1/'}}}}, {TO_REVIEWS}"
    ));
    assert_eq!(
        mesh.plan("GET reviews/v2/a?x=/v3/")
            .rewritten
            .path_and_query
            .as_deref(),
        Some("/2/a?x=/v3/")
    );
}

#[test]
fn the_authority_is_the_rewrites_then_the_rules_then_the_destinations() {
    let destination =
        "route: [{destination: {host: reviews}, headers: {request: {set: {Host: third}}}}]";
    let header = "headers: {request: {set: {':authority': second}}}";
    for (rest, expected) in [
        (
            format!("rewrite: {{authority: first}}, {header}, {destination}"),
            Some("first"),
        ),
        (format!("{header}, {destination}"), Some("second")),
        (destination.to_owned(), Some("third")),
        (TO_REVIEWS.to_owned(), None),
    ] {
        let authority = rule(&rest).plan("GET reviews/").rewritten.authority;
        assert_eq!(
            authority.as_ref().map(|authority| authority.as_bytes()),
            expected.map(str::as_bytes)
        );
    }
}

#[test]
fn headers_are_edited_by_destination_and_rule() {
    let mut mesh = rule(
        "headers: {request: {set: {x-level: rule}, remove: [x-secret]}, response: {add: {x-answer: rule}}}, \
         route: [{destination: {host: reviews}, headers: {request: {set: {x-level: destination, x-own: a}}, response: {set: {x-answer: destination}}}}]",
    );
    let plan = mesh.plan("GET reviews/");
    let mut headers = HeaderMap::new();
    headers.insert("x-secret", "1".parse().expect("a value"));
    plan.edit_request(&mut headers);
    assert_eq!(headers["x-level"], "rule");
    assert_eq!(headers["x-own"], "a");
    assert!(!headers.contains_key("x-secret"));
    let mut headers = HeaderMap::new();
    plan.edit_response(&mut headers);
    let values: Vec<_> = headers.get_all("x-answer").iter().collect();
    assert_eq!(values, ["destination", "rule"]);
}

#[test]
fn redirections_say_where() {
    for (redirect, request, expected) in [
        (
            "{uri: /new}",
            "GET reviews/old?a=b",
            "301 http://reviews/new?a=b",
        ),
        (
            "{authority: shop, redirectCode: 308}",
            "GET reviews:80/a",
            "308 http://shop/a",
        ),
        (
            "{scheme: https}",
            "GET reviews:80/a",
            "301 https://reviews/a",
        ),
        (
            "{scheme: https}",
            "GET reviews:8080/a",
            "301 https://reviews:8080/a",
        ),
        (
            "{scheme: https, port: 443}",
            "GET reviews/a",
            "301 https://reviews/a",
        ),
        (
            "{port: 8443, scheme: https}",
            "GET reviews:80/a",
            "301 https://reviews:8443/a",
        ),
        (
            "{authority: shop, scheme: https, derivePort: FROM_REQUEST_PORT}",
            "GET reviews/a",
            "301 https://shop:80/a",
        ),
    ] {
        let outcome = rule(&format!("redirect: {redirect}")).outcome(&CLIENT, request);
        assert_eq!(outcome, expected, "{redirect}");
    }
    let mut mesh = rule("match: [{uri: {prefix: /foo}}], redirect: {prefixRewrite: /}");
    assert_eq!(
        mesh.outcome(&CLIENT, "GET reviews/foo/baz"),
        "301 http://reviews//baz"
    );
}

#[test]
fn a_rule_can_answer_itself() {
    let mut mesh = rule(
        "directResponse: {status: 503, body: {string: 'closed'}}, headers: {response: {set: {x-a: b}}}",
    );
    let decision = mesh.decide(&CLIENT, "GET reviews/");
    let Outcome::Direct(answer) = &decision.outcome else {
        panic!("{decision:?}")
    };
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_ref()),
        (503, &b"closed"[..])
    );
    let mut headers = HeaderMap::new();
    decision.edit_own_response(&mut headers);
    assert_eq!(headers["x-a"], "b");
    let mut mesh = rule("directResponse: {status: 200, body: {bytes: AAE=}}");
    let Outcome::Direct(answer) = mesh.decide(&CLIENT, "GET reviews/").outcome else {
        panic!("no answer")
    };
    assert_eq!(answer.body.as_ref(), [0, 1]);
}

#[test]
fn faults_hit_their_share() {
    let mut mesh = rule(&format!(
        "fault: {{delay: {{fixedDelay: 5s, percentage: {{value: 20}}}}, abort: {{httpStatus: 418, percentage: {{value: 50}}}}}}, {TO_REVIEWS}"
    ));
    let (mut delayed, mut aborted, mut both) = (0u32, 0u32, 0u32);
    for _ in 0..10_000 {
        let decision = mesh.decide(&CLIENT, "GET reviews/");
        let abort =
            matches!(decision.outcome, Outcome::Abort(Abort::Http(status)) if status == 418);
        delayed += u32::from(decision.delay == Some(Duration::from_secs(5)));
        aborted += u32::from(abort);
        both += u32::from(abort && decision.delay.is_some());
    }
    assert!(delayed.abs_diff(2000) < 150, "{delayed}");
    assert!(aborted.abs_diff(5000) < 200, "{aborted}");
    assert!(both.abs_diff(1000) < 120, "{both}");
    let mut mesh = rule(&format!(
        "fault: {{abort: {{grpcStatus: UNAVAILABLE, percentage: {{value: 100}}}}}}, {TO_REVIEWS}"
    ));
    assert_eq!(mesh.outcome(&CLIENT, "GET reviews/"), "Grpc(14)");
    let mut mesh = rule(&format!(
        "fault: {{abort: {{httpStatus: 418}}}}, {TO_REVIEWS}"
    ));
    assert_eq!(mesh.outcome(&CLIENT, "GET reviews/"), "reviews.default:80");
}

#[test]
fn retries_are_istios_unless_a_rule_says_otherwise() {
    let mut mesh = rule(TO_REVIEWS);
    let plan = mesh.plan("GET reviews/");
    assert_eq!((plan.retries.attempts, plan.timeout), (2, None));
    assert!(
        plan.retries.on.connect() && plan.retries.on.ended(true) && !plan.retries.on.ended(false)
    );
    let mut mesh = rule(&format!(
        "timeout: 3s, retries: {{attempts: 5, perTryTimeout: 250ms, retryOn: 'gateway-error, 429'}}, {TO_REVIEWS}"
    ));
    let plan = mesh.plan("GET reviews/");
    assert_eq!(plan.timeout, Some(Duration::from_secs(3)));
    assert_eq!(
        (plan.retries.attempts, plan.retries.per_try_timeout),
        (5, Some(Duration::from_millis(250)))
    );
    let on = |status: u16| {
        plan.retries
            .on
            .answer(status.try_into().expect("a status"), &HeaderMap::new())
    };
    assert!(on(502) && on(503) && on(504) && on(429));
    assert!(!on(500) && !on(409) && !on(200));
    let mut mesh = rule(&format!(
        "timeout: 0s, retries: {{attempts: 0}}, {TO_REVIEWS}"
    ));
    let plan = mesh.plan("GET reviews/");
    assert_eq!((plan.timeout, plan.retries.attempts), (None, 0));
}

#[test]
fn grpc_statuses_ask_for_a_retry() {
    let on = Retries::default().on;
    let answer = |code: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static(code));
        on.answer(http::StatusCode::OK, &headers)
    };
    assert!(answer("14") && answer("1"));
    assert!(!answer("0") && !answer("4") && !answer("x"));
}

#[test]
fn the_wait_before_a_retry_grows_to_ten_times_its_base() {
    let retries = Retries::default();
    let mut random = StdRng::seed_from_u64(3);
    for (retry, most) in [(1, 25), (2, 75), (3, 175), (4, 250), (60, 250)] {
        for _ in 0..100 {
            assert!(retries.wait(retry, &mut random) <= Duration::from_millis(most));
        }
    }
}

#[test]
fn a_rule_is_named_for_the_log() {
    for (rest, name) in [
        ("name: a, ", "a"),
        ("match: [{name: m, uri: {prefix: /}}], ", "m"),
        ("name: a, match: [{name: m, uri: {prefix: /}}], ", "a.m"),
        ("", "default"),
    ] {
        let mut mesh = rule(&format!("{rest}{TO_REVIEWS}"));
        assert_eq!(mesh.decide(&CLIENT, "GET reviews/").route_name, name);
    }
}
