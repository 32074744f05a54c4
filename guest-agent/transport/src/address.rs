//! Addresses of links: `unix:///path`, `vsock://CID:PORT` or `hvsock:///path:PORT`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The CID that means "any" in an address to listen on.
pub const ANY_CID: u32 = u32::MAX;

/// An address to dial or to listen on.
///
/// ```
/// use coroner_transport::Address;
///
/// let address: Address = "vsock://-1:1030".parse()?;
/// assert_eq!(address.to_string(), "vsock://-1:1030");
/// # Ok::<(), coroner_transport::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A virtio-vsock port.
    Vsock {
        /// The peer's context id; [`ANY_CID`] when listening.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// A guest's port behind a unix socket of its virtual machine monitor: Firecracker, Cloud
    /// Hypervisor, vhost-device-vsock. It can only be dialled.
    Hvsock {
        /// The unix socket.
        path: PathBuf,
        /// The guest's port.
        port: u32,
    },
}

/// Why a text is not an address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The scheme is unknown.
    #[error("`{0}` is not unix:///path, vsock://CID:PORT or hvsock:///path:PORT")]
    Scheme(String),
    /// A unix path that is not absolute.
    #[error("`{0}` does not name an absolute path: unix:///path has three slashes")]
    Path(String),
    /// A unix path that is longer than the kernel accepts.
    #[error("`{0}` is longer than the 107 bytes a unix socket's path may have")]
    Long(String),
    /// The vsock address is not two numbers.
    #[error("`{0}` is not vsock://CID:PORT: both are numbers, CID -1 is any")]
    Vsock(String),
    /// The hvsock address is not a path and a number.
    #[error("`{0}` is not hvsock:///path:PORT: the monitor's unix socket, and a port of the guest")]
    Hvsock(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // sun_path has 108 bytes, the last a zero: unix(7).
        let unix = |path: &str| match path {
            _ if !path.starts_with('/') => Err(AddressError::Path(text.to_owned())),
            _ if path.len() > 107 => Err(AddressError::Long(text.to_owned())),
            _ => Ok(PathBuf::from(path)),
        };
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(unix(path)?));
        }
        if let Some(rest) = text.strip_prefix("hvsock://") {
            let wrong = || AddressError::Hvsock(text.to_owned());
            let (path, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
            return Ok(Self::Hvsock { path: unix(path)?, port: port.parse().map_err(|_| wrong())? });
        }
        if let Some(rest) = text.strip_prefix("vsock://") {
            let cid = |cid: &str| if cid == "-1" { Some(ANY_CID) } else { cid.parse().ok() };
            return rest
                .split_once(':')
                .and_then(|(peer, port)| Some(Self::Vsock { cid: cid(peer)?, port: port.parse().ok()? }))
                .ok_or_else(|| AddressError::Vsock(text.to_owned()));
        }
        Err(AddressError::Scheme(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Vsock { cid: ANY_CID, port } => write!(f, "vsock://-1:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Hvsock { path, port } => write!(f, "hvsock://{}:{port}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_parse_and_display_round_trip() {
        for text in
            ["unix:///run/a.sock", "vsock://3:1030", "vsock://-1:1030", "hvsock:///run/vm:1/v.sock:1030"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "tcp://1:2",
            "unix://a",
            "vsock://3",
            "vsock://x:1",
            "vsock://3:y",
            "vsock://3:1:2",
            "hvsock://3:1030",
            "hvsock:///run/v.sock",
            "hvsock:///run/v.sock:x",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        let long = format!("unix:///{}", "a".repeat(107));
        assert_eq!(long.parse::<Address>(), Err(AddressError::Long(long.clone())));
    }
}
