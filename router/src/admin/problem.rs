//! Errors as the server returns them: a status code and one JSON document.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode, header::CONTENT_TYPE};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

use crate::guests::GuestError;

/// The body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What happened.
    pub error: String,
    /// What to do.
    pub hint: String,
}

/// A [`Refusal`] with its status code.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    refusal: Refusal,
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status, refusal: Refusal { error: error.into(), hint: hint.into() } }
    }

    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the router is stopping", "retry once it runs again")
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, "docs/reference/admin-api.md has what each route takes")
    }

    /// No route has this path.
    pub(super) async fn no_route(request: Request) -> Self {
        let error = format!("no route {}", request.uri().path());
        Self::new(
            StatusCode::NOT_FOUND,
            error,
            "docs/reference/admin-api.md has the routes; GET /status is one",
        )
    }

    /// The route does not take this method.
    pub(super) async fn wrong_method(request: Request) -> Self {
        let error = format!("{} does not take {}", request.uri().path(), request.method());
        Self::new(StatusCode::METHOD_NOT_ALLOWED, error, "the header Allow has the methods it takes")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        json(self.status, &self.refusal)
    }
}

impl From<GuestError> for Problem {
    fn from(error: GuestError) -> Self {
        let (status, hint) = match &error {
            GuestError::Wrong(_) => (StatusCode::BAD_REQUEST, "correct the keys that are named"),
            GuestError::Taken(_) => {
                (StatusCode::CONFLICT, "choose another name; GET /guests has those in use")
            }
            GuestError::Unknown { .. } => (StatusCode::NOT_FOUND, "GET /guests has the names"),
            GuestError::Configured(_) => {
                (StatusCode::CONFLICT, "remove it from the configuration file and restart the router")
            }
            GuestError::Full => (StatusCode::SERVICE_UNAVAILABLE, "remove guests that are gone"),
            GuestError::Keep { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "make the directory writable for the router")
            }
            GuestError::Stopping => return Self::stopping(),
        };
        Self::new(status, error.to_string(), hint)
    }
}

/// A JSON document as a response.
pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(document).expect("documents have only string keys");
    // A line feed, for terminals.
    text.push(b'\n');
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a header's value"));
    response
}
