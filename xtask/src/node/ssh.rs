//! Commands in a node, over ssh.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use super::qemu;
use super::record::Record;
use crate::process;

/// How long a node may need to boot: minutes beside other work.
pub(super) const BOOT: Duration = Duration::from_secs(1200);
/// How long a resumed node may need.
pub(super) const RESUME: Duration = Duration::from_secs(180);

/// Becomes ssh: its input, output and exit code are then the command's. It only returns if it
/// cannot.
pub(super) fn replace_this(node: &Record, words: &[String]) -> anyhow::Result<()> {
    let mut ssh = ssh(node);
    ssh.arg("root@127.0.0.1").args(remote(words));
    Err(ssh.exec()).with_context(|| format!("cannot start {}: install openssh-client", process::shown(&ssh)))
}

/// Runs a command and answers what it printed.
pub(super) fn output(node: &Record, words: &[&str]) -> anyhow::Result<String> {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    process::output(ssh(node).args(["-o", "BatchMode=yes", "root@127.0.0.1"]).args(remote(&words)))
}

/// What a person types to reach the node without this program.
pub(super) fn shown(node: &Record) -> String {
    format!("ssh -i {} -p {} root@127.0.0.1", quoted(&node.ssh_key.display().to_string()), node.port)
}

/// Ends the shared connection. There may be none.
pub(super) fn close(node: &Record) {
    let exit = ssh(node).args(["-O", "exit", "root@127.0.0.1"]).stderr(Stdio::null()).status();
    if let Err(error) = exit {
        println!("cannot close the connection with node {}: {error}", node.name);
    }
}

/// The node's clock stopped with its state.
pub(super) fn set_clock(node: &Record) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    output(node, &["date", "-u", "-s", &format!("@{}.{:09}", now.as_secs(), now.subsec_nanos())]).map(drop)
}

pub(super) fn wait_for_login(node: &Record, limit: Duration) -> anyhow::Result<()> {
    wait(node, limit, || output(node, &["true"]).map(drop))
}

pub(super) fn wait_for_ready(node: &Record, limit: Duration) -> anyhow::Result<()> {
    wait(node, limit, || is_ready(node))
}

/// Fails with what is not ready. `node-ready` prints it; a part that hangs would hold it for
/// minutes.
pub(super) fn is_ready(node: &Record) -> anyhow::Result<()> {
    let line = "timeout 30 node-ready && echo ready; [ $? != 124 ] || echo no answer within 30 s";
    let answer = output(node, &[line])?;
    if answer == "ready" { Ok(()) } else { bail!("{answer}") }
}

/// The id of the boot that a node is in.
pub(super) fn boot_id(node: &Record) -> anyhow::Result<String> {
    output(node, &["cat", "/proc/sys/kernel/random/boot_id"])
}

/// Waits until a command runs in another boot than this.
pub(super) fn wait_for_boot(node: &Record, before: &str) -> anyhow::Result<()> {
    wait(node, BOOT, || match boot_id(node)? {
        same if same == before => bail!("the node has not ended its boot {before}"),
        _ => Ok(()),
    })
}

/// Tries every half second until it succeeds; at the limit the last error is the reason.
fn wait(
    node: &Record,
    limit: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        qemu::check_running(node)?;
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("waited {} s", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

/// One connection for all commands: under emulation a new one takes a second.
fn ssh(node: &Record) -> Command {
    let mut ssh = Command::new("ssh");
    // Relative, as QEMU's sockets: the path of a socket must be short.
    ssh.current_dir(&node.folder).arg("-i").arg(&node.ssh_key).args(["-p", &node.port.to_string()]);
    for option in [
        "ControlMaster=auto",
        "ControlPath=ssh",
        "ControlPersist=600",
        "ConnectTimeout=5",
        "ServerAliveInterval=30",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ] {
        ssh.args(["-o", option]);
    }
    ssh
}

/// ssh joins its words with spaces and hands them to a shell: one word is a line for that shell,
/// several are kept apart.
fn remote(words: &[String]) -> Vec<String> {
    match words {
        [line] => vec![line.clone()],
        words => words.iter().map(|word| quoted(word)).collect(),
    }
}

/// A word of a shell's line.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        remote(&words).join(" ")
    }

    #[test]
    fn one_word_is_a_line_of_the_shell() {
        assert_eq!(sent(&["dmesg | tail"]), "dmesg | tail");
        assert_eq!(sent(&[]), "");
    }

    #[test]
    fn several_words_arrive_as_they_are() {
        assert_eq!(sent(&["sh", "-c", "exit 3"]), "sh -c 'exit 3'");
        assert_eq!(sent(&["echo", "it's", "", "$HOME"]), r"echo 'it'\''s' '' '$HOME'");
        assert_eq!(sent(&["kubectl", "get", "pods", "--namespace=a"]), "kubectl get pods --namespace=a");
    }
}
