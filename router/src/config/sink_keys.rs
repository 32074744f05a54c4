//! The keys of `[[sink]]`: which type has which, and what is wrong with them.

use std::path::PathBuf;
use std::time::Duration;

use coroner_core::table::{Table, UNKNOWN};

use super::{Jsonl, Overflow, Queue, SinkKind, SinkSettings, Url, Webhook};

/// Keys that some types of sink have and others have not.
const OF_TYPES: [&str; 17] = [
    "path",
    "rotate_size",
    "rotate_keep",
    "fsync",
    "url",
    "format",
    "timeout",
    "ca_file",
    "client_certificate_file",
    "client_key_file",
    "token_file",
    "hmac_secret_file",
    "queue",
    "overflow",
    "batch",
    "deadline",
    "dead_letter",
];

/// One request of a webhook, by default.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Documents a queue may hold at most: each takes some kilobytes, and without the limit the router
/// could take a node's memory.
const MOST: usize = 1 << 20;

/// Reads a sink.
pub(super) fn read(mut table: Table<'_>) -> Option<SinkSettings> {
    let before = table.mistakes.count();
    let name = table.name();
    let kinds = ["containerd", "oom-file", "jsonl", "webhook", "unix"].map(|kind| (kind, kind));
    let kind = table.required_choice("type", &kinds);
    let is_lifecycle = matches!(kind, Some("containerd" | "oom-file"));
    let queue = if is_lifecycle { Queue::default() } else { queue(&mut table) };
    let read = match kind {
        Some("containerd") => Some(SinkKind::Containerd),
        Some("oom-file") => Some(SinkKind::OomFile),
        Some("jsonl") => jsonl(&mut table).map(SinkKind::Jsonl),
        Some("webhook") => webhook(&mut table).map(|it| SinkKind::Webhook(Box::new(it))),
        Some("unix") => {
            let path = table.socket("path");
            table.required("path", path, "the socket that your program listens on").map(SinkKind::Unix)
        }
        Some(_) | None => None,
    };
    let is_read = table.mistakes.count() == before;
    table.end_with(|key| match (kind, OF_TYPES.contains(&key)) {
        (_, false) => Some(UNKNOWN.to_owned()),
        (Some(kind), true) => Some(format!("is not a key of type \"{kind}\"")),
        // Without a type its keys cannot be judged.
        (None, true) => None,
    });
    is_read.then_some(SinkSettings { name: name?, kind: read?, queue })
}

fn queue(table: &mut Table<'_>) -> Queue {
    let default = Queue::default();
    let overflow = [("drop-newest", Overflow::DropNewest), ("drop-oldest", Overflow::DropOldest)];
    Queue {
        documents: documents(table, "queue").unwrap_or(default.documents),
        overflow: table.choice("overflow", &overflow).unwrap_or(default.overflow),
        batch: documents(table, "batch").unwrap_or(default.batch),
        deadline: table.time("deadline").unwrap_or(default.deadline),
        dead_letter: table.path("dead_letter"),
    }
}

fn documents(table: &mut Table<'_>, name: &str) -> Option<usize> {
    let number = table.number(name)?;
    if number > MOST {
        table.wrong(name, format_args!("is over {MOST}"));
    }
    Some(number)
}

fn jsonl(table: &mut Table<'_>) -> Option<Jsonl> {
    let path = table.parsed("path", |text| match text {
        "-" => Ok(None),
        path if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
        path => Err(format!("`{path}` is neither an absolute path nor \"-\"")),
    });
    let rotate_size = table.size("rotate_size");
    let rotate_keep = table.number("rotate_keep");
    let fsync = table.choice("fsync", &[("never", false), ("batch", true)]);
    let path = table.required("path", path, "a file, or \"-\" for standard output")?;
    if path.is_none() {
        for (name, set) in [("rotate_size", rotate_size.is_some()), ("fsync", fsync == Some(true))] {
            if set {
                table.wrong(name, "is for a file, and path is standard output");
            }
        }
    }
    if rotate_keep.is_some() && rotate_size.is_none() {
        table.wrong("rotate_keep", "has no effect without rotate_size");
    }
    let default = Jsonl::at(path);
    Some(Jsonl {
        rotate_size,
        rotate_keep: rotate_keep.unwrap_or(default.rotate_keep),
        fsync: fsync.unwrap_or(default.fsync),
        ..default
    })
}

fn webhook(table: &mut Table<'_>) -> Option<Webhook> {
    let url = table.parsed("url", str::parse::<Url>);
    let url = table.required("url", url, "http://HOST/PATH or https://HOST/PATH");
    let is_clear = url.as_ref().is_some_and(|url| !url.tls);
    for name in ["ca_file", "client_certificate_file", "client_key_file"] {
        if is_clear && table.has(name) {
            table.wrong(name, "is for https, and url is http");
        }
    }
    let batched = table.choice("format", &[("structured", false), ("batch", true)]);
    let timeout = table.time("timeout").unwrap_or(TIMEOUT);
    let ca_file = table.path("ca_file");
    let client = match (table.path("client_certificate_file"), table.path("client_key_file")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => table.required("client_key_file", None, "the key of client_certificate_file"),
        (None, Some(_)) => {
            table.required("client_certificate_file", None, "the certificate of client_key_file")
        }
    };
    let (token_file, hmac_secret_file) = (table.path("token_file"), table.path("hmac_secret_file"));
    let batched = batched.unwrap_or(false);
    Some(Webhook { url: url?, batched, timeout, ca_file, client, token_file, hmac_secret_file })
}
