//! Makes a container image of one file: an OCI layout archive that `ctr images import` takes.
//!
//! Names and media types are those of the OCI image specification 1.0; the annotation
//! `io.containerd.image.name` is where containerd finds the image's name.

use anyhow::Result;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::binary::digest_of;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The one program of an image.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Its name in `/bin`.
    pub name: &'a str,
    /// The file.
    pub bytes: &'a [u8],
    /// More names in `/bin`, as links.
    pub links: &'a [&'a str],
}

/// An archive of the image `reference`: `program`, run with `entrypoint`.
pub fn archive(reference: &str, program: Program, entrypoint: &[&str]) -> Result<Vec<u8>> {
    let layer = layer(program)?;
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Entrypoint": entrypoint, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&layer)] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    }))?;
    let mut named = descriptor(MANIFEST, &manifest);
    named["platform"] = json!({ "os": "linux", "architecture": architecture() });
    named["annotations"] = json!({ "io.containerd.image.name": reference });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [named] }))?;

    let mut archive = Builder::new(Vec::new());
    file(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    for blob in [&layer, &config, &manifest] {
        let path = digest_of(blob).replace(':', "/");
        file(&mut archive, &format!("blobs/{path}"), blob, 0o644)?;
    }
    file(&mut archive, "index.json", &index, 0o644)?;
    Ok(archive.into_inner()?)
}

fn layer(program: Program) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        let mut header = header(0, 0o755);
        header.set_entry_type(EntryType::Directory);
        layer.append_data(&mut header, directory, std::io::empty())?;
    }
    file(&mut layer, &format!("bin/{}", program.name), program.bytes, 0o755)?;
    for link in program.links {
        let mut header = header(0, 0o777);
        header.set_entry_type(EntryType::Symlink);
        layer.append_link(&mut header, format!("bin/{link}"), program.name)?;
    }
    Ok(layer.into_inner()?)
}

fn file(archive: &mut Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let size = bytes.len().try_into()?;
    Ok(archive.append_data(&mut header(size, mode), path, bytes)?)
}

fn header(size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest_of(blob), "size": blob.len() })
}

/// What Go calls this machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
