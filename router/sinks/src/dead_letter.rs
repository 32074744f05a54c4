//! The dead-letter file: documents that were dropped.
//! The field's name: dead-letter queue.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::Document;
use super::document::now_ms;
use crate::counts::DropReason;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Letter<'a> {
    at_ms: u64,
    sink: &'a str,
    because: &'a str,
    error: Option<&'a str>,
}

/// Appends a line for each document. The file is opened each time, so that it can be renamed at any
/// time (log rotation).
pub(super) async fn append(
    path: &Path,
    sink: &str,
    documents: &[Arc<Document>],
    reason: DropReason,
    error: Option<&str>,
) -> io::Result<()> {
    let letter = Letter { at_ms: now_ms(), sink, because: reason.name(), error };
    let mut lines = String::new();
    for document in documents {
        lines.push_str(&document.within(&letter, "document"));
        lines.push('\n');
    }
    let path = path.to_owned();
    let write = move || {
        // Documents name pods and images: readable by root only.
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        file.write_all(lines.as_bytes())
    };
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}
