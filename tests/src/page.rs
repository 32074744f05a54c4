//! A page of docs/ as a test: its files are used, its commands are run, and its answers are what
//! came.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result, ensure};

const BLOCK: &str = "```console\n";

/// A page's console blocks, each to be produced once. `REGENERATE=1` writes them anew.
#[derive(Debug)]
pub struct Page {
    path: PathBuf,
    text: String,
    produced: Vec<String>,
}

impl Page {
    /// `docs/NAME`.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        Ok(Self { path, text, produced: Vec::new() })
    }

    /// The commands of its blocks, in order.
    pub fn commands(&self) -> Vec<String> {
        let blocks = self.text.split(BLOCK).skip(1);
        blocks.filter_map(|it| Some(it.lines().next()?.strip_prefix("$ ")?.to_owned())).collect()
    }

    /// The files it shows, by the name in `file=NAME` of their fence.
    pub fn files(&self) -> Vec<(String, String)> {
        let blocks = self.text.split("```").skip(1).step_by(2);
        let file = |block: &str| {
            let (fence, content) = block.split_once('\n')?;
            Some((fence.split_once("file=")?.1.to_owned(), content.to_owned()))
        };
        blocks.filter_map(file).collect()
    }

    /// The next block is this command and this answer.
    pub fn produce(&mut self, command: &str, output: &Output) {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let answer = format!("{}{}", text(&output.stdout), text(&output.stderr));
        let answer = answer.trim_start_matches('\n').trim_end();
        let line_feed = if answer.is_empty() { "" } else { "\n" };
        self.produced.push(format!("$ {command}\n{answer}{line_feed}"));
    }

    /// Every block was produced, but for what differs from day to day.
    pub fn finish(self) -> Result<()> {
        let regenerate = std::env::var_os("REGENERATE").is_some();
        let mut parts = self.text.split(BLOCK);
        let mut fresh = parts.next().context("a page has a beginning")?.to_owned();
        let mut produced = self.produced.into_iter();
        for part in parts {
            let (shown, rest) = part.split_once("```").context("a block has an end")?;
            let actual = produced.next().with_context(|| format!("nothing produces {shown}"))?;
            ensure!(regenerate || same_but_for_numbers(shown, &actual), "{shown}\nwas:\n{actual}");
            fresh.push_str(&format!("{BLOCK}{actual}```{rest}"));
        }
        ensure!(produced.next().is_none(), "the page shows all of it");
        if regenerate {
            std::fs::write(self.path, fresh)?;
        }
        Ok(())
    }
}

/// Digests, counts, times and widths of columns differ; words do not.
fn same_but_for_numbers(one: &str, other: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        let plain = |word: &str| word.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        let is_hex = |word: &&str| word.len() >= 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
        let words = text.split(|c: char| c.is_whitespace() || c == ':' || c == '/');
        let words = words.filter(|word| !word.is_empty() && !is_hex(word));
        // What is left of a time: its unit, which differs with it.
        let is_unit =
            |word: &str| ["us", "ms", "s"].contains(&word.trim_matches(|c: char| !c.is_alphabetic()));
        let is_text = |word: &String| word.chars().any(char::is_alphabetic) && !is_unit(word);
        words.map(plain).filter(is_text).collect()
    };
    words(one) == words(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_differ_and_words_may_not() {
        assert!(same_but_for_numbers("+3 ms  exited 1, 12 ms after", "+1.2 s  exited 1, 1.0 s after"));
        let shown = "calls 12  p99 50 us digest sha256:e1ae8ec8b42e79d7 state running";
        assert!(same_but_for_numbers(shown, "calls 7 p99 - digest sha256:0f47f442173f state running"));
        assert!(!same_but_for_numbers(shown, "calls 12 p99 50 us digest sha256:e1ae8ec8b42e state trial"));
        assert!(!same_but_for_numbers(shown, "calls 12 p99 50 us"));
        let path = "limit  /pod-1/4b40f22537cb of 32 MiB";
        assert!(same_but_for_numbers(path, "limit /pod-27/b8894975239e of 31.9 MiB"));
        assert!(!same_but_for_numbers(path, "limit /pod-1/app of 32 MiB"));
    }
}
