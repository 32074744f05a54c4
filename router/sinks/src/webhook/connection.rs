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
use crate::settings::Webhook;

/// A connection and the task that drives it; dropping this ends both.
#[derive(Debug)]
pub(super) struct Connection {
    requests: SendRequest<Full<Bytes>>,
    carrier: JoinSet<hyper::Result<()>>,
}

impl Connection {
    pub(super) async fn connect(settings: &Webhook) -> Result<Self, String> {
        let url = &settings.url;
        let failed = |error: &dyn fmt::Display| format!("{}: {error}", url.authority);
        let stream = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(|it| failed(&it))?;
        // A document is one small request: it must not wait for the previous answer.
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
            // The task's error has the cause: a receiver may refuse a certificate before it reads a
            // request.
            Err(error) if error.is_closed() || error.is_canceled() => match self.carrier.join_next().await {
                Some(Ok(Err(ended))) => Err(with_cause(&ended)),
                _ => Err(with_cause(&error)),
            },
            Err(error) => Err(with_cause(&error)),
        }
    }
}

/// hyper's error names the step, its source the cause.
fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
