//! What each service answers.

use hyper::{HeaderMap, StatusCode};

use crate::client;
use crate::http::{Asked, Page};

/// Port under which the services know one another.
const PORT: u16 = 80;

/// `{"id": "v1", "reviews": ["good", "average"]}`
pub async fn reviews(asked: Asked) -> Page {
    ok(format!(
        "{{\"id\": \"{}\", \"reviews\": [\"good\", \"average\"]}}\n",
        asked.version
    ))
}

/// `{"id": "v1", "ratings": [5, 4]}`
pub async fn ratings(asked: Asked) -> Page {
    ok(format!(
        "{{\"id\": \"{}\", \"ratings\": [5, 4]}}\n",
        asked.version
    ))
}

/// `{"id": "v1", "author": "William Shakespeare", "pages": 200}`
pub async fn details(asked: Asked) -> Page {
    ok(format!(
        "{{\"id\": \"{}\", \"author\": \"William Shakespeare\", \"pages\": 200}}\n",
        asked.version
    ))
}

/// Asks details, reviews and ratings by their names, and puts the answers together.
pub async fn productpage(asked: Asked) -> Page {
    let mut status = StatusCode::OK;
    let mut parts = Vec::new();
    for name in ["details", "reviews", "ratings"] {
        let (part_status, part) = part(name, &asked.headers).await;
        if part_status != StatusCode::OK {
            status = StatusCode::BAD_GATEWAY;
        }
        parts.push(format!("\"{name}\": {part}"));
    }
    Page {
        status,
        body: format!("{{\"id\": \"{}\", {}}}\n", asked.version, parts.join(", ")),
    }
}

async fn part(name: &str, headers: &HeaderMap) -> (StatusCode, String) {
    match client::get(name, PORT, headers).await {
        Ok((StatusCode::OK, body)) => (StatusCode::OK, body),
        Ok((status, body)) => (status, format!("{:?}", format!("{status}: {body}"))),
        Err(error) => (
            StatusCode::BAD_GATEWAY,
            format!("{:?}", format!("{error:#}")),
        ),
    }
}

fn ok(body: String) -> Page {
    Page {
        status: StatusCode::OK,
        body,
    }
}
