//! The address that serves metrics, reachable from this machine alone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use coroner_core::table;

/// `http://127.0.0.1:9464` or `unix:///path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A loopback address: metrics name pods and policies, and clients are not
    /// authenticated.
    Http(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => table::socket(path.into()).map(Self::Unix),
                false => {
                    Err(format!("`{text}` has no absolute path, such as unix:///run/coroner/metrics.sock"))
                }
            };
        }
        let address =
            text.strip_prefix("http://").and_then(|it| it.trim_end_matches('/').parse::<SocketAddr>().ok());
        match address {
            Some(address) if address.ip().is_loopback() => Ok(Self::Http(address)),
            Some(address) => Err(format!(
                "`{}` is not an address of this machine alone: use 127.0.0.1 or [::1], and a proxy that authenticates",
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
    fn address_outside_this_machine_is_refused() {
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
