use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};

use super::*;

fn line(format: &str, encoding: Encoding) -> String {
    let headers = |name: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static("value"));
        headers
    };
    let (request, response) = (headers("x-tenant"), headers("x-cache"));
    let entry = Entry {
        start_time: UNIX_EPOCH + Duration::from_millis(1_709_251_199_045),
        method: Some("GET"),
        path: Some("/a?b"),
        protocol: Some("HTTP/1.1"),
        response_code: 503,
        response_code_details: Some("no way out"),
        bytes_sent: 91,
        duration: Duration::from_micros(4_900),
        user_agent: Some(b"curl"),
        upstream_host: Some("10.1.0.2:9080"),
        upstream_service_time: Some(4),
        downstream_remote_address: Some(([10, 1, 0, 3], 4000).into()),
        request_headers: Some(&request),
        response_headers: Some(&response),
        ..Entry::default()
    };
    let mut line = Vec::new();
    let format = Format::parse(format, encoding).unwrap_or_else(|error| panic!("{error}"));
    format.write(&entry, &mut line);
    String::from_utf8(line).expect("text")
}

#[test]
fn texts_say_what_they_are_asked_for() {
    for (format, expected) in [
        ("%RESPONSE_CODE% 100%%\n", "503 100%"),
        (
            "[%START_TIME(%s)%] %START_TIME%",
            "[1709251199] 2024-02-29T23:59:59.045Z",
        ),
        (
            "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
            "GET /a?b",
        ),
        ("%REQ_WITHOUT_QUERY(:PATH)% %REQ(X-Tenant):3%", "/a val"),
        (
            "%RESP(X-Cache)% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
            "value 4",
        ),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%",
            "10.1.0.3 4000",
        ),
        (
            "%UPSTREAM_REMOTE_PORT% %UPSTREAM_HOST%",
            "9080 10.1.0.2:9080",
        ),
        (
            "%RESPONSE_CODE_DETAILS% %ROUTE_NAME% %REQ(missing)%",
            "no_way_out - -",
        ),
        (
            "%DURATION% %GRPC_STATUS_NUMBER% %REQ(USER-AGENT)%",
            "4 - curl",
        ),
    ] {
        assert_eq!(line(format, Encoding::Text), expected, "{format}");
    }
}

#[test]
fn values_of_objects_keep_their_types() {
    let format = r#"{"code": "%RESPONSE_CODE%", "what": "%PROTOCOL% %BYTES_SENT%", "route": "%ROUTE_NAME%",
                     "mesh": {"name": "one", "since": 3}}"#;
    let line: Value = serde_json::from_str(&line(format, Encoding::Json)).expect("JSON");
    let expected = serde_json::json!({
        "code": 503, "what": "HTTP/1.1 91", "route": null, "mesh": {"name": "one", "since": 3}
    });
    assert_eq!(line, expected);
}

#[test]
fn what_is_no_format_is_refused_by_name() {
    for (format, encoding, expected) in [
        ("50% off", Encoding::Text, "has a % that begins no command"),
        (
            "%DOWNSTREAM_TLS_VERSION%",
            Encoding::Text,
            "%DOWNSTREAM_TLS_VERSION% is not known",
        ),
        (
            "%FILTER_STATE(a:PLAIN)%",
            Encoding::Text,
            "%FILTER_STATE(a:PLAIN)% is not known",
        ),
        ("%REQ()%", Encoding::Text, "begins no command"),
        ("%START_TIME(%Q)%", Encoding::Text, "is not known"),
        ("%PROTOCOL%", Encoding::Json, "must be a JSON object"),
        (r#"{"a": "%NO%"}"#, Encoding::Json, "%NO% is not known"),
    ] {
        let error = Format::parse(format, encoding).expect_err(format);
        assert!(error.to_string().contains(expected), "{format}: {error}");
    }
}

#[test]
fn header_fields_are_kept_only_where_they_are_asked_for() {
    let needs =
        |text| Format::parse(text, Encoding::Text).is_ok_and(|format| format.needs_headers());
    assert!(needs("%REQ(X-Tenant)%") && needs("%RESP(Server)%") && needs("%REQ(:PATH?x)%"));
    assert!(!needs("%REQ(:PATH)% %REQ(User-Agent)% %RESPONSE_CODE%"));
}
