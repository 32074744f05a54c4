//! The sink `webhook`: posts documents as CloudEvents 1.0 over HTTP/1.1.

mod cloud_event;
mod credentials;
mod connection;
mod tls;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode};

use self::connection::Connection;
use super::{Document, Sink, SinkError};
use crate::settings;

/// Bytes of an answer's body that are read. Without it a receiver could have the router read for
/// ever.
const BODY: usize = 16 << 10;
/// Characters of the body that are shown as the reason.
const SHOWN: usize = 200;

/// A receiver of CloudEvents.
#[derive(Debug)]
pub(super) struct WebhookSink {
    settings: settings::Webhook,
    /// `/coroner/NODE`
    source: String,
    /// Taken during a request: a request that was cut short ends with its connection.
    connection: Option<Connection>,
}

impl WebhookSink {
    pub(super) fn new(settings: settings::Webhook, node: &str) -> Self {
        Self { settings, source: format!("/coroner/{node}"), connection: None }
    }

    fn body(&self, batch: &[Arc<Document>]) -> (&'static str, String) {
        let events: Vec<String> = batch.iter().map(|it| cloud_event::of(it, &self.source)).collect();
        if self.settings.batched {
            ("application/cloudevents-batch+json", format!("[{}]", events.join(",")))
        } else {
            ("application/cloudevents+json", events.concat())
        }
    }

    async fn request(&self, batch: &[Arc<Document>]) -> Result<Request<Full<Bytes>>, String> {
        let (content_type, body) = self.body(batch);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.settings.url.path)
            .header(HOST, &self.settings.url.authority)
            .header(USER_AGENT, concat!("coroner/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, content_type);
        if let Some(path) = &self.settings.token_file {
            request = request.header(AUTHORIZATION, credentials::bearer(path).await?);
        }
        if let Some(path) = &self.settings.hmac_secret_file {
            request = request.header(credentials::SIGNATURE, credentials::signature(path, &body).await?);
        }
        request.body(Full::from(body)).map_err(|error| error.to_string())
    }

    async fn post(&mut self, batch: &[Arc<Document>]) -> Result<(), SinkError> {
        let request = self.request(batch).await.map_err(SinkError::again)?;
        let mut connection = match self.connection.take().filter(Connection::is_open) {
            Some(connection) => connection,
            None => Connection::connect(&self.settings).await.map_err(SinkError::again)?,
        };
        let response = connection.send(request).await.map_err(SinkError::again)?;
        let (head, body) = response.into_parts();
        let text = read(body).await;
        if text.is_some() {
            self.connection = Some(connection);
        }
        judge(head.status, &head.headers, &text.unwrap_or_default())
    }
}

#[async_trait]
impl Sink for WebhookSink {
    async fn deliver(&mut self, batch: &[Arc<Document>]) -> Result<(), SinkError> {
        let timeout = self.settings.timeout;
        let posted = tokio::time::timeout(timeout, self.post(batch)).await;
        posted.unwrap_or_else(|_| Err(SinkError::again(format!("no answer in {timeout:?}"))))
    }

    fn most(&self) -> usize {
        if self.settings.batched { usize::MAX } else { 1 }
    }
}

/// Reads the body. `None`: it is too long or broke off, and the connection cannot be reused.
async fn read(body: Incoming) -> Option<Bytes> {
    let read = Limited::new(body, BODY).collect().await;
    read.ok().map(|body| body.to_bytes())
}

fn judge(status: StatusCode, headers: &HeaderMap, text: &[u8]) -> Result<(), SinkError> {
    if status.is_success() {
        return Ok(());
    }
    let text: String =
        String::from_utf8_lossy(text).chars().take(SHOWN).filter(|c| !c.is_control()).collect();
    let error = if text.is_empty() { status.to_string() } else { format!("{status}: {text}") };
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Err(SinkError::Again { error, after: after(headers) })
        }
        status if status.is_server_error() => Err(SinkError::Again { error, after: after(headers) }),
        _ => Err(SinkError::Refused(error)),
    }
}

/// `Retry-After`: seconds, or a date.
fn after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, retry_after: Option<&str>, expect: Option<Option<u64>>) {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        let judged = judge(StatusCode::from_u16(status).unwrap(), &headers, b"no\nroom");
        match (judged.unwrap_err(), expect) {
            (SinkError::Again { after, error }, Some(expect)) => {
                assert_eq!(after.map(|it| it.as_secs()), expect, "{status}");
                assert!(error.ends_with(": noroom"), "{error}");
            }
            (SinkError::Refused(_), None) => {}
            (judged, expect) => panic!("{status}: {judged:?}, not {expect:?}"),
        }
    }

    #[test]
    fn http_status_maps_to_retry_or_refusal() {
        assert!(judge(StatusCode::ACCEPTED, &HeaderMap::new(), b"").is_ok());
        for again in [408, 425, 429, 500, 502, 503, 504] {
            check(again, None, Some(None));
            check(again, Some("7"), Some(Some(7)));
        }
        for refused in [301, 304, 400, 401, 404, 410, 413, 422] {
            check(refused, Some("7"), None);
        }
        check(503, Some("soon"), Some(None));
        check(503, Some("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Some(0)));
    }
}
