//! One connection to a receiver, kept from request to request.

use std::fmt;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::tls;
use crate::config::Webhook;

/// A connection, and the task that reads and writes it; both end with this.
#[derive(Debug)]
pub(super) struct Link {
    requests: SendRequest<Full<Bytes>>,
    carrier: JoinSet<hyper::Result<()>>,
}

impl Link {
    pub(super) async fn connect(settings: &Webhook) -> Result<Self, String> {
        let url = &settings.url;
        let failed = |error: &dyn fmt::Display| format!("{}: {error}", url.authority);
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(|it| failed(&it))?;
        // A document is one small request: it must not wait for the answer to the one before.
        stream.set_nodelay(true).map_err(|it| failed(&it))?;
        if url.tls {
            let stream = tls::secure(stream, settings).await.map_err(|it| failed(&it))?;
            Self::over(stream).await.map_err(|it| failed(&it))
        } else {
            Self::over(stream).await.map_err(|it| failed(&it))
        }
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> hyper::Result<Self> {
        let (requests, connection) = handshake(TokioIo::new(stream)).await?;
        let mut carrier = JoinSet::new();
        carrier.spawn(connection);
        Ok(Self { requests, carrier })
    }

    /// Whether another request may be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.requests.is_closed()
    }

    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let sent = match self.requests.ready().await {
            Ok(()) => self.requests.send_request(request).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(response) => Ok(response),
            // Why the connection ended says more than that it has: a receiver may refuse a certificate before it hears of a request.
            Err(error) if error.is_closed() || error.is_canceled() => match self.carrier.join_next().await {
                Some(Ok(Err(ended))) => Err(told(&ended)),
                _ => Err(told(&error)),
            },
            Err(error) => Err(told(&error)),
        }
    }
}

/// hyper says what, its source says why.
fn told(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
