//! QEMU's control protocol: JSON lines on a unix socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::qemu;

/// How long one answer may need; a state is loaded and saved in the background.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a state may need.
const STATE: Duration = Duration::from_secs(600);

pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects with the machine of a node's folder.
    pub(super) fn connect(folder: &Path) -> anyhow::Result<Self> {
        // Through the open folder: the path of a socket has at most 107 bytes, a tree may be deep.
        let open = File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
        let path = format!("/proc/self/fd/{}/{}", open.as_raw_fd(), qemu::QMP);
        let stream = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {}/{}", folder.display(), qemu::QMP))?;
        stream.set_read_timeout(Some(ANSWER)).context("a read timeout can be set")?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        qmp.read()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command, and answers what it returns.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.reader.get_mut().write_all(line.as_bytes()).context("cannot write to QEMU")?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or_default());
            }
            // What else comes is an event.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Stops the machine and writes its memory and devices into a file.
    pub(super) fn save(&mut self, file: &Path) -> anyhow::Result<()> {
        self.execute("stop", json!({}))?;
        // Else QEMU limits itself for a network's sake.
        self.execute("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 }))?;
        self.execute("migrate", json!({ "uri": format!("exec:cat > {}", quoted(file)?) }))?;
        self.wait_for_migration()
    }

    /// Reads memory and devices from a file, and lets the machine run.
    pub(super) fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        self.execute("migrate-incoming", json!({ "uri": format!("exec:cat {}", quoted(file)?) }))?;
        self.wait_for_migration()?;
        self.execute("cont", json!({})).map(drop)
    }

    fn wait_for_migration(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < STATE {
            let migration = self.execute("query-migrate", json!({}))?;
            match migration["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("QEMU cannot move its state: {migration}"),
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        bail!("QEMU did not move its state within {} s", STATE.as_secs())
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("QEMU does not answer")? == 0 {
            bail!("QEMU closed its control socket");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU answered {line:?}"))
    }
}

/// For the shell that QEMU starts.
fn quoted(file: &Path) -> anyhow::Result<String> {
    let path = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
    Ok(super::ssh::quoted(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A QEMU that answers with these lines, one for the greeting and one after each request.
    fn answering(
        lines: &'static [&'static str],
    ) -> (tempfile::TempDir, std::thread::JoinHandle<Vec<String>>) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(qemu::QMP)).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut requests = Vec::new();
            for line in lines {
                writeln!(reader.get_mut(), "{line}").unwrap();
                let mut request = String::new();
                if reader.read_line(&mut request).unwrap() > 0 {
                    requests.push(request);
                }
            }
            requests
        });
        (folder, thread)
    }

    #[test]
    fn answer_is_found_after_an_event() {
        let (folder, thread) = answering(&[
            r#"{"QMP": {}}"#,
            r#"{"return": {}}"#,
            "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}}",
        ]);
        let mut qmp = Qmp::connect(folder.path()).unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).unwrap()["status"], "paused");
        drop(qmp);
        assert!(thread.join().unwrap()[1].contains("query-status"));
    }

    #[test]
    fn refused_command_is_an_error_with_its_reason() {
        let (folder, thread) =
            answering(&[r#"{"QMP": {}}"#, r#"{"return": {}}"#, r#"{"error": {"desc": "busy"}}"#]);
        let mut qmp = Qmp::connect(folder.path()).unwrap();
        let error = qmp.execute("cont", json!({})).unwrap_err().to_string();
        assert_eq!(error, "QEMU refused cont: busy");
        drop(qmp);
        thread.join().unwrap();
    }
}
