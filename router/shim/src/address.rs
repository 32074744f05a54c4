//! What a shim's `start` prints: where its Task service listens.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::SUN_PATH;

/// What the proxy's socket is called after the inner shim's.
const SUFFIX: &str = ".c";

/// Why a shim gets no proxy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    /// Neither an address nor containerd 2's object.
    #[error("the shim printed no address that is known here")]
    Unknown,
    /// Task over gRPC, say.
    #[error("the shim speaks \"{0}\" and not ttrpc")]
    Protocol(String),
    /// No room for the suffix: unix(7).
    #[error("the shim's socket has a path too long for another beside it")]
    Long,
}

/// A shim's answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    /// The inner shim's socket.
    pub(crate) inner: PathBuf,
    /// The proxy's, beside it.
    pub(crate) proxy: PathBuf,
    /// containerd 2's object; older ones read the bare address.
    object: Option<serde_json::Map<String, Value>>,
}

impl Answer {
    /// Reads what was printed.
    pub(crate) fn parse(printed: &[u8]) -> Result<Self, AddressError> {
        let text = std::str::from_utf8(printed).map_err(|_| AddressError::Unknown)?.trim();
        let object = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Some(object),
            _ => None,
        };
        let address = match &object {
            Some(object) => {
                let field = |name| object.get(name).and_then(Value::as_str);
                match field("protocol") {
                    Some("ttrpc") => field("address").ok_or(AddressError::Unknown)?,
                    other => return Err(AddressError::Protocol(other.unwrap_or_default().to_owned())),
                }
            }
            None => text,
        };
        let inner = address.strip_prefix("unix://").ok_or(AddressError::Unknown)?;
        if !inner.starts_with('/') || inner.contains(char::is_whitespace) {
            return Err(AddressError::Unknown);
        }
        if inner.len() + SUFFIX.len() > SUN_PATH {
            return Err(AddressError::Long);
        }
        Ok(Self { inner: inner.into(), proxy: format!("{inner}{SUFFIX}").into(), object })
    }

    /// The proxy's address.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.proxy.display())
    }

    /// What is printed instead, in the form that was printed.
    pub(crate) fn printed(&self) -> String {
        match &self.object {
            Some(object) => {
                let mut object = object.clone();
                object.insert("address".to_owned(), self.address().into());
                Value::Object(object).to_string()
            }
            None => self.address(),
        }
    }
}

/// Puts the proxy's address into the bundle, where containerd 1.6 and 1.7 look for it after a restart. Shims that keep none have none.
pub(crate) fn rewrite(bundle: &Path, address: &str) -> std::io::Result<()> {
    let file = bundle.join("address");
    if !file.exists() {
        return Ok(());
    }
    let next = bundle.join(".address.coroner");
    std::fs::write(&next, address)?;
    std::fs::rename(&next, &file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_printed() {
        let bare = Answer::parse(b"unix:///run/s/a\n").unwrap();
        assert_eq!(
            (bare.inner.as_path(), bare.proxy.as_path()),
            (Path::new("/run/s/a"), Path::new("/run/s/a.c"))
        );
        assert_eq!(bare.printed(), "unix:///run/s/a.c");
        let object = br#"{"version":3,"address":"unix:///run/s/a","protocol":"ttrpc","metadata":{"x":"y"}}"#;
        let printed: Value = serde_json::from_str(&Answer::parse(object).unwrap().printed()).unwrap();
        let expect = serde_json::json!({
            "version": 3, "address": "unix:///run/s/a.c", "protocol": "ttrpc", "metadata": {"x": "y"}
        });
        assert_eq!(printed, expect);
    }

    #[test]
    fn what_cannot_have_a_proxy_is_told() {
        let long = format!("unix:///{}", "a".repeat(105));
        assert!(Answer::parse(&long.as_bytes()[..long.len() - 1]).is_ok());
        for (printed, expect) in [
            (long.as_str(), AddressError::Long),
            ("", AddressError::Unknown),
            ("vsock://3:1", AddressError::Unknown),
            ("unix://a", AddressError::Unknown),
            ("unix:///a\nunix:///b", AddressError::Unknown),
            ("{\"protocol\":\"ttrpc\"}", AddressError::Unknown),
            ("{\"address\":\"unix:///a\",\"protocol\":\"grpc\"}", AddressError::Protocol("grpc".into())),
        ] {
            assert_eq!(Answer::parse(printed.as_bytes()), Err(expect), "{printed}");
        }
    }

    #[test]
    fn only_an_address_that_is_there_is_rewritten() {
        let bundle = tempfile::tempdir().unwrap();
        rewrite(bundle.path(), "unix:///a.c").unwrap();
        assert_eq!(std::fs::read_dir(bundle.path()).unwrap().count(), 0);
        std::fs::write(bundle.path().join("address"), "unix:///a").unwrap();
        rewrite(bundle.path(), "unix:///a.c").unwrap();
        assert_eq!(std::fs::read_to_string(bundle.path().join("address")).unwrap(), "unix:///a.c");
        assert_eq!(std::fs::read_dir(bundle.path()).unwrap().count(), 1);
    }
}
