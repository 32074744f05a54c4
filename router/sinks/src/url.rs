//! The URL of a webhook.

use std::str::FromStr;

/// `http://HOST[:PORT][/PATH]` or `https://...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `https`.
    pub tls: bool,
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// 80 or 443 unless the URL has a port.
    pub port: u16,
    /// Host and port as they were written.
    pub authority: String,
    /// With its query; at least `/`.
    pub path: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("`{text}` {why}: write for example https://events.example.com/coroner");
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(wrong("is neither http:// nor https://")),
        };
        if !rest.bytes().all(|b| b.is_ascii_graphic()) || rest.contains('#') {
            return Err(wrong("contains a character that a URL cannot contain"));
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(wrong("contains a user: use token_file for credentials"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(address) => address.split_once(']').ok_or_else(|| wrong("has no ]"))?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(digits) => digits.parse::<u16>().ok().filter(|port| *port > 0),
            None if port.is_empty() => Some(if tls { 443 } else { 80 }),
            None => None,
        };
        let port = port.ok_or_else(|| wrong("has an invalid port"))?;
        if host.is_empty() {
            return Err(wrong("has no host"));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { tls, host: host.to_owned(), port, authority: authority.to_owned(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_parts_parsed_and_bad_url_refused() {
        for (text, tls, host, port, path) in [
            ("https://e.example.com", true, "e.example.com", 443, "/"),
            ("http://e:8080/a/b?c=d", false, "e", 8080, "/a/b?c=d"),
            ("https://[::1]:9/x", true, "::1", 9, "/x"),
            ("http://10.0.0.1?x", false, "10.0.0.1", 80, "/?x"),
        ] {
            let url: Url = text.parse().unwrap();
            assert_eq!((url.tls, url.host.as_str(), url.port, url.path.as_str()), (tls, host, port, path));
        }
        for wrong in [
            "ftp://x",
            "https://",
            "http://:80/",
            "http://x:0",
            "http://x:y",
            "http://[::1",
            "http://[::1]x",
            "http://a@b/",
            "http://a/ b",
            "http://a/#b",
        ] {
            assert!(wrong.parse::<Url>().unwrap_err().contains("write for example"), "{wrong}");
        }
    }
}
