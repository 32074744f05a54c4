//! The answer to a shim's `start` on standard output: the address of its Task service.
//!
//! containerd accepts three forms, and so does this module: a bare address (1.6, 1.7), JSON (2.0 to
//! 2.2) and the protobuf message `BootstrapResult` (2.3 and later, api/runtime/bootstrap/v1). The
//! answer is printed again in the form it was read in, with the address of the proxy.

use std::path::{Path, PathBuf};

use coroner_shim_config::SUN_PATH;
use serde_json::Value;

use crate::wire::{self, Fields, Malformed, with_bytes};

/// Suffix of the proxy's socket, after the path of the inner shim's.
const SUFFIX: &str = ".c";
/// Fields of `BootstrapResult`.
const ADDRESS: u32 = 2;
const PROTOCOL: u32 = 3;
/// Bytes of an unknown answer that the log shows: enough to recognize its form.
const SHOWN: usize = 48;

/// Why a shim gets no proxy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    /// None of the three forms, or without the address of a unix socket.
    #[error(
        "the answer of the shim's `start` has no unix:// address as text, JSON or protobuf: \
         {length} bytes, \"{start}\""
    )]
    Unknown { length: usize, start: String },
    /// Another protocol, for example gRPC.
    #[error("the shim's Task service is \"{0}\" and not ttrpc")]
    Protocol(String),
    /// No room for the suffix: unix(7).
    #[error("the shim's socket has a path too long for another beside it")]
    Long,
}

impl AddressError {
    fn unknown(printed: &[u8]) -> Self {
        let start = printed[..printed.len().min(SHOWN)].escape_ascii().to_string();
        Self::Unknown { length: printed.len(), start }
    }
}

/// A shim's answer.
#[derive(Debug, PartialEq)]
pub(crate) struct StartAnswer {
    /// The inner shim's socket.
    pub(crate) inner: PathBuf,
    /// The proxy's socket, beside it.
    pub(crate) proxy: PathBuf,
    form: Form,
}

/// The form of an answer, with all that was in it.
#[derive(Debug, PartialEq)]
enum Form {
    Bare,
    Json(serde_json::Map<String, Value>),
    Protobuf(Vec<u8>),
}

impl StartAnswer {
    /// Reads what was printed. As in containerd, protobuf is tried first: neither an address nor an
    /// object of JSON is a message.
    pub(crate) fn parse(printed: &[u8]) -> Result<Self, AddressError> {
        let unknown = || AddressError::unknown(printed);
        let (form, address, protocol) = match bootstrap_result(printed) {
            Ok((address, protocol)) => (Form::Protobuf(printed.to_owned()), address, protocol),
            Err(Malformed) => text(std::str::from_utf8(printed).map_err(|_| unknown())?.trim()),
        };
        if protocol != "ttrpc" {
            return Err(AddressError::Protocol(protocol));
        }
        let inner = address.strip_prefix("unix://").ok_or_else(unknown)?;
        if !inner.starts_with('/') || inner.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(unknown());
        }
        if inner.len() + SUFFIX.len() > SUN_PATH {
            return Err(AddressError::Long);
        }
        Ok(Self { inner: inner.into(), proxy: format!("{inner}{SUFFIX}").into(), form })
    }

    /// The proxy's address.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.proxy.display())
    }

    /// What is printed instead, in the form that was printed. All else in it stays: fields of a
    /// later containerd too.
    pub(crate) fn printed(&self) -> Vec<u8> {
        let address = self.address();
        match &self.form {
            Form::Bare => address.into_bytes(),
            Form::Json(object) => {
                let mut object = object.clone();
                object.insert("address".to_owned(), address.into());
                Value::Object(object).to_string().into_bytes()
            }
            Form::Protobuf(message) => with_bytes(message, ADDRESS, address.as_bytes())
                .expect("parse has read every field of the message"),
        }
    }
}

/// Address and protocol of a `BootstrapResult`. The last value of a repeated field is valid.
fn bootstrap_result(printed: &[u8]) -> Result<(String, String), Malformed> {
    let (mut address, mut protocol) = (None, None);
    for field in Fields(printed) {
        let field = field?;
        let to = match field.number {
            ADDRESS => &mut address,
            PROTOCOL => &mut protocol,
            _ => continue,
        };
        let wire::Value::Bytes(bytes) = field.value else { return Err(Malformed) };
        *to = Some(std::str::from_utf8(bytes).map_err(|_| Malformed)?);
    }
    // An empty output, and other bytes that happen to be fields, are not an answer.
    let address = address.ok_or(Malformed)?;
    Ok((address.to_owned(), protocol.unwrap_or_default().to_owned()))
}

/// Form, address and protocol of a text.
fn text(text: &str) -> (Form, String, String) {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => {
            let field = |name| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (address, protocol) = (field("address"), field("protocol"));
            (Form::Json(object), address, protocol)
        }
        _ => (Form::Bare, text.to_owned(), "ttrpc".to_owned()),
    }
}

/// Writes the proxy's address to the bundle, where containerd 1.6 and 1.7 read it after a restart.
/// A bundle without the file stays without it.
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

    /// As containerd 2.4.2's shim of runc prints it, with the fields 1 (version 3) and 5
    /// (metadata), and a field 99 of a later version.
    const PROTOBUF: &[u8] =
        b"\x08\x03\x12\x0funix:///run/s/a\x1a\x05ttrpc\x2a\x06\x0a\x01x\x12\x01y\x9a\x06\x02hi";

    #[test]
    fn protobuf_is_printed_with_all_other_fields() {
        let answer = StartAnswer::parse(PROTOBUF).unwrap();
        assert_eq!(answer.inner, Path::new("/run/s/a"));
        let expect =
            b"\x08\x03\x12\x11unix:///run/s/a.c\x1a\x05ttrpc\x2a\x06\x0a\x01x\x12\x01y\x9a\x06\x02hi";
        assert_eq!(answer.printed(), expect);
        // The newline's byte is also a field's tag: it is not trimmed.
        let newline = b"\x12\x0aunix:///a\n\x1a\x05ttrpc";
        assert!(matches!(StartAnswer::parse(newline), Err(AddressError::Unknown { .. })));
        let twice = b"\x12\x09unix:///a\x1a\x05ttrpc\x12\x09unix:///b";
        assert_eq!(StartAnswer::parse(twice).unwrap().printed(), b"\x12\x0bunix:///b.c\x1a\x05ttrpc");
    }

    #[test]
    fn damaged_protobuf_never_panics() {
        let mut parsed = 0;
        for at in 0..PROTOBUF.len() {
            let mut variants: Vec<Vec<u8>> = vec![PROTOBUF[..at].to_owned(), PROTOBUF[at..].to_owned()];
            for byte in 0..=u8::MAX {
                let mut variant = PROTOBUF.to_owned();
                variant[at] = byte;
                variants.push(variant);
            }
            for variant in variants {
                let Ok(answer) = StartAnswer::parse(&variant) else { continue };
                let again = StartAnswer::parse(&answer.printed());
                assert_eq!(again.map(|it| it.inner).as_ref(), Ok(&answer.proxy), "{variant:?}");
                parsed += 1;
            }
        }
        assert!(parsed > 1000, "{parsed}");
    }

    #[test]
    fn text_and_json_are_printed_in_their_form() {
        let bare = StartAnswer::parse(b"unix:///run/s/a\n").unwrap();
        assert_eq!(
            (bare.inner.as_path(), bare.proxy.as_path()),
            (Path::new("/run/s/a"), Path::new("/run/s/a.c"))
        );
        assert_eq!(bare.printed(), b"unix:///run/s/a.c");
        let object = br#"{"version":3,"address":"unix:///run/s/a","protocol":"ttrpc","metadata":{"x":"y"}}"#;
        let printed: Value = serde_json::from_slice(&StartAnswer::parse(object).unwrap().printed()).unwrap();
        let expect = serde_json::json!({
            "version": 3, "address": "unix:///run/s/a.c", "protocol": "ttrpc", "metadata": {"x": "y"}
        });
        assert_eq!(printed, expect);
    }

    #[test]
    fn answer_without_usable_address_is_an_error() {
        let long = format!("unix:///{}", "a".repeat(105));
        assert!(StartAnswer::parse(&long.as_bytes()[..long.len() - 1]).is_ok());
        let protocol = |name: &str| AddressError::Protocol(name.to_owned());
        for (printed, expect) in [
            (long.as_bytes(), AddressError::Long),
            (b"{\"address\":\"unix:///a\",\"protocol\":\"grpc\"}", protocol("grpc")),
            (b"{\"address\":\"unix:///a\"}", protocol("")),
            (b"\x12\x09unix:///a\x1a\x04grpc", protocol("grpc")),
            (b"\x08\x03\x12\x09unix:///a", protocol("")),
        ] {
            assert_eq!(StartAnswer::parse(printed), Err(expect), "{}", printed.escape_ascii());
        }
        for printed in [
            &b""[..],
            b"vsock://3:1",
            b"unix://a",
            b"unix:///a\nunix:///b",
            b"{\"protocol\":\"ttrpc\"}",
            b"\xff\xfe",
            // The address is cut off, absent, empty, a number, not UTF-8.
            b"\x08\x03\x12\x59unix:///a",
            b"\x08\x03\x1a\x05ttrpc",
            b"\x12\x00\x1a\x05ttrpc",
            b"\x10\x01\x1a\x05ttrpc",
            b"\x12\x09unix:///\xff\x1a\x05ttrpc",
        ] {
            assert_eq!(
                StartAnswer::parse(printed),
                Err(AddressError::unknown(printed)),
                "{}",
                printed.escape_ascii()
            );
        }
        let shown = AddressError::unknown(b"\x08\x03\x12").to_string();
        assert!(shown.ends_with("or protobuf: 3 bytes, \"\\x08\\x03\\x12\""), "{shown}");
    }

    #[test]
    fn bundle_address_is_rewritten_only_if_present() {
        let bundle = tempfile::tempdir().unwrap();
        rewrite(bundle.path(), "unix:///a.c").unwrap();
        assert_eq!(std::fs::read_dir(bundle.path()).unwrap().count(), 0);
        std::fs::write(bundle.path().join("address"), "unix:///a").unwrap();
        rewrite(bundle.path(), "unix:///a.c").unwrap();
        assert_eq!(std::fs::read_to_string(bundle.path().join("address")).unwrap(), "unix:///a.c");
        assert_eq!(std::fs::read_dir(bundle.path()).unwrap().count(), 1);
    }
}
