//! Where metrics are served: on this machine alone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// `http://127.0.0.1:9464` or `unix:///path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A loopback address: metrics name pods and policies, and nobody is asked who they are.
    Http(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(format!("`{text}` has no absolute path: unix:///run/coroner/metrics.sock, say"))
            };
        }
        let address =
            text.strip_prefix("http://").and_then(|it| it.trim_end_matches('/').parse::<SocketAddr>().ok());
        match address {
            Some(address) if address.ip().is_loopback() => Ok(Self::Http(address)),
            Some(address) => Err(format!(
                "`{}` is not an address of this machine alone: use 127.0.0.1 or [::1], and a proxy that knows who may ask",
                address.ip()
            )),
            None => Err(format!("`{text}` is neither http://127.0.0.1:9464 nor unix:///path")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_ask() {
        let parse = |text: &str| text.parse::<MetricsAddress>();
        assert_eq!(parse("http://127.0.0.1:9464"), Ok(MetricsAddress::Http(([127, 0, 0, 1], 9464).into())));
        assert!(matches!(parse("http://[::1]:9464/"), Ok(MetricsAddress::Http(_))));
        assert_eq!(parse("unix:///run/m.sock"), Ok(MetricsAddress::Unix("/run/m.sock".into())));
        assert!(parse("http://0.0.0.0:9464").unwrap_err().contains("this machine alone"));
        for wrong in ["127.0.0.1:9464", "unix://m.sock", "http://localhost:9464", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
