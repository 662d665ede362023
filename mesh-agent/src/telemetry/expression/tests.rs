use proptest::prelude::*;

use super::*;

struct Request;

impl Facts for Request {
    fn get(&self, attribute: &Attribute) -> Option<Value<'_>> {
        Some(match attribute {
            Attribute::Code => Value::Int(503),
            Attribute::UrlPath => Value::Text("/api/items".into()),
            Attribute::Host => Value::Text("reviews".into()),
            Attribute::Mtls => Value::Bool(true),
            Attribute::Duration => Value::Duration(Duration::from_millis(700)),
            Attribute::RequestHeader(name) if name == "x-user" => Value::Text("jason".into()),
            _ => return None,
        })
    }
}

fn holds(text: &str) -> bool {
    Expression::parse(text).expect(text).holds(&Request)
}

#[test]
fn conditions_as_operators_write_them() {
    for text in [
        "response.code >= 400",
        "response.code >= 400 && response.code < 600",
        "response.code == 200 || connection.mtls",
        "!(response.code < 400)",
        "connection.mtls == true",
        "response.code in [404, 503]",
        "request.url_path.startsWith('/api')",
        "!request.url_path.contains(\"health\")",
        "request.url_path.matches('^/api/[a-z]+$')",
        "request.host.endsWith(r'views')",
        "request.headers['X-User'] == 'jason'",
        "'x-user' in request.headers && !('x-b' in request.headers)",
        "has(response.code) && !has(response.grpc_status)",
        "request.duration > duration('500ms')",
        "response.code > 502.5 ? true : false",
        "string(response.code) == '503'",
        "-1 < response.code",
        // One side decides, though the other is not there.
        "response.code == 503 || request.headers['missing'] == 'x'",
        "request.headers['missing'] == 'x' || response.code == 503",
    ] {
        assert!(holds(text), "{text}");
    }
    for text in [
        "response.code < 400",
        "response.code == '503'",
        "request.headers['missing'] == 'x'",
        "request.headers['missing'] != 'x'",
        "!(request.headers['missing'] == 'x')",
        "response.code == 503 && response.grpc_status == 0",
        "response.code",
        "request.url_path.matches('^api')",
    ] {
        assert!(!holds(text), "{text}");
    }
}

#[test]
fn values_are_texts() {
    let text = |text: &str| Expression::parse(text).expect(text).text(&Request);
    assert_eq!(text("'constant'").as_deref(), Some("constant"));
    assert_eq!(text("response.code").as_deref(), Some("503"));
    assert_eq!(text("response.grpc_status"), None);
}

#[test]
fn what_is_no_expression_is_told_from_what_is_not_known() {
    for (text, expected) in [
        ("", "at character 1: a value is expected"),
        ("response.code >= ", "at character 18: a value is expected"),
        (
            "response.code = 4",
            "at character 15: an operator is expected",
        ),
        ("(true", "at character 6: \")\" is expected"),
        ("'a", "at character 1: the text has no end"),
        (
            "request.host.matches(host)",
            "at character 22: a text in quotes is expected",
        ),
        ("source.colour == 'x'", "source.colour is not known here"),
        ("size(request.host) > 3", "size() is not known here"),
        ("request.host.lower() == 'x'", "lower() is not known here"),
        (
            "node.metadata['NAME'] == 'x'",
            "node.metadata[\"NAME\"] is not known here",
        ),
    ] {
        let error = Expression::parse(text).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text}");
    }
    let deep = "(".repeat(100_000);
    assert!(Expression::parse(&deep).is_err());
    assert!(Expression::parse(&"!".repeat(1000)).is_err());
}

#[test]
fn what_it_asks_for_is_known() {
    let asks = |text: &str| {
        Expression::parse(text)
            .expect(text)
            .names(&Attribute::is_header)
    };
    assert!(asks("response.code == 200 || request.headers['a'] == 'b'"));
    assert!(asks("'a' in request.headers"));
    assert!(!asks("response.code == 200 || request.host == 'a'"));
}

proptest! {
    #[test]
    fn any_text_is_an_expression_or_refused(text in "[a-z.()'!&|=<>0-9\\[\\] ?:\\\\é-]{0,60}") {
        if let Ok(expression) = Expression::parse(&text) {
            expression.holds(&Request);
        }
    }
}
