//! What a configuration needs of this machine: folders and files that `coroner check` inspects and
//! changes nothing of.
//!
//! `coroner run` does not refuse them: a token may come later, and a sink retries until its folder
//! is there.

use std::fs::{self, File};
use std::path::Path;

use coroner_core::table::{Mistake, Mistakes};
use rustix::fs::{Access, PROC_SUPER_MAGIC, access, statfs};

use super::{Config, SinkKind, SinkSettings};

impl Config {
    /// Everything that is missing on this machine, each with its key. Empty: nothing is.
    pub fn missing_here(&self) -> Vec<Mistake> {
        let mistakes = Mistakes::default();
        let mut made = vec![("guests.directory", &self.guests_directory)];
        made.extend(self.journal.iter().map(|it| ("journal.directory", &it.directory)));
        for (key, directory) in made {
            can_be_made(key, directory, &mistakes);
        }
        for (at, sink) in self.sinks.iter().enumerate() {
            files_of(sink, &format!("sink[{at}]"), &mistakes);
        }
        mistakes.all()
    }
}

/// The router makes the folder with all that is above it.
fn can_be_made(key: &str, directory: &Path, mistakes: &Mistakes) {
    let Some(there) = directory.ancestors().find(|it| fs::symlink_metadata(it).is_ok()) else { return };
    let directory = directory.display();
    if !there.is_dir() {
        mistakes.add(key, format_args!("{directory} cannot be made: {} is not a folder", there.display()));
    } else if statfs(there).is_ok_and(|it| it.f_type == PROC_SUPER_MAGIC) {
        mistakes.add(key, format_args!("{directory} cannot be made: {} takes no files", there.display()));
    } else if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        mistakes.add(key, format_args!("{directory} cannot be written: {}: {error}", there.display()));
    }
}

fn files_of(sink: &SinkSettings, key: &str, mistakes: &Mistakes) {
    let written = |name: &str, path: Option<&Path>| {
        let folder = path.and_then(Path::parent).filter(|folder| !folder.is_dir());
        if let Some(folder) = folder {
            let message = format_args!("the folder {} is missing: make it", folder.display());
            mistakes.add(&format!("{key}.{name}"), message);
        }
    };
    written("dead_letter", sink.queue.dead_letter.as_deref());
    match &sink.kind {
        SinkKind::Jsonl(file) => written("path", file.path.as_deref()),
        SinkKind::Unix(path) => written("path", Some(path)),
        SinkKind::Webhook(webhook) => {
            let (certificate, private) = webhook.client.as_ref().map(|(one, other)| (one, other)).unzip();
            for (name, path) in [
                ("ca_file", webhook.ca_file.as_ref()),
                ("client_certificate_file", certificate),
                ("client_key_file", private),
                ("token_file", webhook.token_file.as_ref()),
                ("hmac_secret_file", webhook.hmac_secret_file.as_ref()),
            ] {
                if let Some((path, Err(error))) = path.map(|path| (path, File::open(path))) {
                    let message = format_args!("{} cannot be read: {error}", path.display());
                    mistakes.add(&format!("{key}.{name}"), message);
                }
            }
        }
        SinkKind::Containerd | SinkKind::OomFile => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_folders_and_files_are_named_with_their_keys() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("file"), "").unwrap();
        let text = |base: &str, journal: &str| {
            format!(
                r#"
                [guests]
                directory = "{guests}"
                [journal]
                directory = "{journal}"
                [[sink]]
                name = "audit"
                type = "jsonl"
                path = "{base}/audit.jsonl"
                [[sink]]
                name = "mine"
                type = "unix"
                path = "{base}/mine.sock"
                [[sink]]
                name = "pager"
                type = "webhook"
                url = "https://example.com/x"
                dead_letter = "{base}/dead.jsonl"
                ca_file = "{base}/file"
                client_certificate_file = "{base}/file"
                client_key_file = "{base}/file"
                token_file = "{base}/file"
                hmac_secret_file = "{base}/file"
                [[route]]
                topics = ["audit"]
                sinks = ["mine", "pager"]
                "#,
                guests = at("deep/guests.d"),
            )
        };
        let keys = |base: &str, journal: &str| {
            let missing = Config::parse(&text(base, journal)).unwrap().missing_here();
            missing.into_iter().map(|it| it.key).collect::<Vec<_>>()
        };
        assert_eq!(keys(&at(""), &at("deep/journal")), Vec::<String>::new());
        let of_sinks = [
            "sink[0].path",
            "sink[1].path",
            "sink[2].dead_letter",
            "sink[2].ca_file",
            "sink[2].client_certificate_file",
            "sink[2].client_key_file",
            "sink[2].token_file",
            "sink[2].hmac_secret_file",
        ];
        assert_eq!(keys(&at("gone"), &at("journal")), of_sinks);
        for journal in [at("file/journal"), "/proc/journal".to_owned()] {
            assert_eq!(keys(&at(""), &journal), ["journal.directory"], "{journal}");
        }
    }
}
