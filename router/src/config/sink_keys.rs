//! The keys of `[[sink]]`: which type has which, and what is wrong with them.

use std::path::PathBuf;
use std::time::Duration;

use super::check::Check;
use super::sinks::{Jsonl, Overflow, Queue, Sink, SinkKind, Webhook};
use super::{Url, raw};

/// Keys that some types of sink have and others do not.
const OWN: [(&str, &[&str]); 12] = [
    ("path", &["jsonl", "unix"]),
    ("rotate_size", &["jsonl"]),
    ("rotate_keep", &["jsonl"]),
    ("fsync", &["jsonl"]),
    ("url", &["webhook"]),
    ("format", &["webhook"]),
    ("timeout", &["webhook"]),
    ("ca_file", &["webhook"]),
    ("client_certificate_file", &["webhook"]),
    ("client_key_file", &["webhook"]),
    ("token_file", &["webhook"]),
    ("hmac_secret_file", &["webhook"]),
];
/// Keys of every sink that has a queue.
const SHARED: [&str; 5] = ["queue", "overflow", "batch", "deadline", "dead_letter"];

/// One request of a webhook, unless the configuration says otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Documents a queue may hold at most: each takes some kilobytes, and a router must not be what eats a node's memory.
const MOST: u64 = 1 << 20;

impl Check {
    pub(super) fn sink(&mut self, at: usize, mut raw: raw::Sink) -> Option<Sink> {
        let key = |name: &str| format!("sink[{at}].{name}");
        let name = self.name(&key("name"), raw.name.take());
        let kinds = ["containerd", "oom-file", "jsonl", "webhook", "unix"].map(|kind| (kind, kind));
        let kind = self.choice(&key("type"), raw.r#type.take(), &kinds);
        self.foreign(at, kind, &mut raw);
        let before = self.count();
        let queue = self.queue(at, &mut raw);
        let kind = match kind? {
            "jsonl" => SinkKind::Jsonl(self.jsonl(at, &mut raw)?),
            "webhook" => SinkKind::Webhook(Box::new(self.webhook(at, &mut raw)?)),
            "unix" => match self.absolute(&key("path"), raw.take("path")) {
                Some(path) => SinkKind::Unix(path),
                None => {
                    self.required(&key("path"), "the socket that somebody listens on");
                    return None;
                }
            },
            "oom-file" => SinkKind::OomFile,
            _ => SinkKind::Containerd,
        };
        (self.count() == before).then_some(Sink { name: name?, kind, queue })
    }

    /// Keys nobody knows, and keys that only other types have.
    fn foreign(&mut self, at: usize, kind: Option<&str>, raw: &mut raw::Sink) {
        let mut wrong = Vec::new();
        for key in raw.keys.keys() {
            let own = OWN.iter().find(|(name, _)| name == key).map(|(_, kinds)| *kinds);
            let shared = SHARED.contains(&key.as_str());
            match (own, kind) {
                (None, _) if !shared => wrong.push((key.clone(), None)),
                (None, Some(kind @ ("containerd" | "oom-file"))) => wrong.push((key.clone(), Some(kind))),
                (Some(kinds), Some(kind)) if !kinds.contains(&kind) => wrong.push((key.clone(), Some(kind))),
                (Some(_) | None, _) => {}
            }
        }
        for (name, kind) in wrong {
            raw.keys.remove(&name);
            let key = format!("sink[{at}].{name}");
            match kind {
                Some(kind) => self.mistake(&key, &format!("is not a key of type \"{kind}\"")),
                None => self.mistake(&key, "is not a key; docs/configuration.md lists them"),
            }
        }
    }

    fn queue(&mut self, at: usize, raw: &mut raw::Sink) -> Queue {
        let key = |name: &str| format!("sink[{at}].{name}");
        let standard = Queue::default();
        let choices = [("drop-newest", Overflow::DropNewest), ("drop-oldest", Overflow::DropOldest)];
        Queue {
            documents: self.documents(&key("queue"), raw.take("queue")).unwrap_or(standard.documents),
            overflow: raw
                .take("overflow")
                .and_then(|value| self.choice(&key("overflow"), Some(value), &choices))
                .unwrap_or(standard.overflow),
            batch: self.documents(&key("batch"), raw.take("batch")).unwrap_or(standard.batch),
            deadline: self.time(&key("deadline"), raw.take("deadline")).unwrap_or(standard.deadline),
            dead_letter: self.absolute(&key("dead_letter"), raw.take("dead_letter")),
        }
    }

    fn documents(&mut self, key: &str, value: Option<toml::Value>) -> Option<usize> {
        let number = self.positive(key, value)?;
        if number > MOST {
            self.mistake(key, &format!("is over {MOST}"));
        }
        usize::try_from(number).ok()
    }

    fn jsonl(&mut self, at: usize, raw: &mut raw::Sink) -> Option<Jsonl> {
        let key = |name: &str| format!("sink[{at}].{name}");
        let rotate_size = self.size(&key("rotate_size"), raw.take("rotate_size"));
        let rotate_keep = self.positive(&key("rotate_keep"), raw.take("rotate_keep"));
        let fsync = raw.take("fsync");
        let fsync = fsync
            .and_then(|value| self.choice(&key("fsync"), Some(value), &[("never", false), ("batch", true)]));
        let path = match self.text(&key("path"), raw.take("path")) {
            Some(path) if path == "-" => None,
            Some(path) if path.starts_with('/') => Some(PathBuf::from(path)),
            Some(path) => {
                let message = format!("`{path}` is neither an absolute path nor \"-\"");
                self.mistake(&key("path"), &message);
                return None;
            }
            None => {
                self.required(&key("path"), "a file, or \"-\" for standard output");
                return None;
            }
        };
        if path.is_none() {
            for (name, set) in [("rotate_size", rotate_size.is_some()), ("fsync", fsync == Some(true))] {
                if set {
                    self.mistake(&key(name), "is for a file, and path is standard output");
                }
            }
        }
        if rotate_keep.is_some() && rotate_size.is_none() {
            self.mistake(&key("rotate_keep"), "says nothing without rotate_size");
        }
        let standard = Jsonl::at(path);
        Some(Jsonl {
            rotate_size,
            rotate_keep: rotate_keep.unwrap_or(standard.rotate_keep),
            fsync: fsync.unwrap_or(standard.fsync),
            ..standard
        })
    }

    fn webhook(&mut self, at: usize, raw: &mut raw::Sink) -> Option<Webhook> {
        let key = |name: &str| format!("sink[{at}].{name}");
        let url = match self.text(&key("url"), raw.take("url")).map(|text| text.parse::<Url>()) {
            Some(Ok(url)) => Some(url),
            Some(Err(error)) => {
                self.mistake(&key("url"), &error);
                None
            }
            None => {
                self.required(&key("url"), "http://HOST/PATH or https://HOST/PATH");
                None
            }
        };
        let format = raw.take("format");
        let batched = format.and_then(|value| {
            self.choice(&key("format"), Some(value), &[("structured", false), ("batch", true)])
        });
        let timeout = self.time(&key("timeout"), raw.take("timeout")).unwrap_or(TIMEOUT);
        let mut file = |name: &str| {
            let path = self.absolute(&key(name), raw.take(name));
            let clear = url.as_ref().is_some_and(|url| !url.tls);
            if clear && path.is_some() && !["token_file", "hmac_secret_file"].contains(&name) {
                self.mistake(&key(name), "is for https, and url is http");
            }
            path
        };
        let ca_file = file("ca_file");
        let (certificate, private) = (file("client_certificate_file"), file("client_key_file"));
        let (token_file, hmac_secret_file) = (file("token_file"), file("hmac_secret_file"));
        let client = match (certificate, private) {
            (Some(certificate), Some(private)) => Some((certificate, private)),
            (None, None) => None,
            (Some(_), None) => {
                self.required(&key("client_key_file"), "the key of client_certificate_file");
                None
            }
            (None, Some(_)) => {
                self.required(&key("client_certificate_file"), "the certificate of client_key_file");
                None
            }
        };
        let batched = batched.unwrap_or(false);
        Some(Webhook { url: url?, batched, timeout, ca_file, client, token_file, hmac_secret_file })
    }
}
