//! Credentials of a request. The files are read for each request, so that a new token needs no
//! restart.

use std::path::Path;
use std::time::{Duration, SystemTime};

use hyper::header::HeaderValue;
use ring::hmac;
use tokio::io::AsyncReadExt;

/// Header of the signature.
pub(super) const SIGNATURE: &str = "coroner-signature";
/// Largest token or secret: with a wrong path the router could otherwise read a whole disk.
const LONGEST: u64 = 64 << 10;

/// The value of `Authorization`.
pub(super) async fn bearer(path: &Path) -> Result<HeaderValue, String> {
    let token = read(path).await?;
    let value = [b"Bearer ", token.as_slice()].concat();
    let mut value = HeaderValue::from_bytes(&value)
        .map_err(|_| format!("{} contains characters that a header cannot contain", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The value of [`SIGNATURE`]: the time, and HMAC-SHA256 of the time and the body.
pub(super) async fn signature(path: &Path, body: &str) -> Result<String, String> {
    let secret = read(path).await?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ok(sign(&secret, since.as_secs(), body))
}

fn sign(secret: &[u8], unix: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, format!("{unix}.{body}").as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={unix},v1={hex}")
}

/// A file's content without surrounding white space: editors add a line feed.
async fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut content = Vec::new();
    file.take(LONGEST).read_to_end(&mut content).await.map_err(failed)?;
    let content = content.trim_ascii();
    if content.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(content.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_matches_openssl() {
        // printf '%s' '1700000000.{}' | openssl dgst -sha256 -hmac key
        let expect = "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae";
        assert_eq!(sign(b"key", 1_700_000_000, "{}"), expect);
    }
}
