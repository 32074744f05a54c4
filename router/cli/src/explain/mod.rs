//! `coroner explain`: every signal, ruling and delivery of one container, from the audit files and
//! the journal. No router needs to run.

mod files;
mod journal;
mod lines;
mod search;
mod reading;
mod sentence;
mod kill_lines;
mod story;
mod page;
#[cfg(test)]
mod fixtures;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use coroner::node::config::{Config, ConfigError};
use coroner_core::verdict::Verdict;
use serde::Serialize;

use crate::args::{FAILED, WRONG};
use crate::render::{Screen, fail, note, size};
use files::Files;
use reading::ReadRecords;
use search::{Found, Search};
use story::Story;

/// Files of this size take seconds to read: a person at a terminal should know the reason.
const LONG: u64 = 256 << 20;

/// What is written, and where.
#[derive(Debug)]
pub(crate) enum ExplainOutput {
    Text,
    Json,
    /// A page for a browser, in this file; `-`: on standard output.
    Html(PathBuf),
}

pub(crate) fn run(container: &str, config: &Path, files: &[PathBuf], output: &ExplainOutput) -> ExitCode {
    let mut screen = Screen::new();
    let found = find(container, config, files).and_then(|found| show(container, found, output, &mut screen));
    match found {
        Ok(()) => screen.finish(ExitCode::SUCCESS),
        Err((code, message)) => fail(code, message),
    }
}

/// Reads everything once, and keeps the records of the container.
fn find(container: &str, config: &Path, files: &[PathBuf]) -> Result<Found, (u8, String)> {
    let mut search = Search::new(container).map_err(|error| (WRONG, error))?;
    let (groups, journaled) = if files.is_empty() {
        let config = Config::read(config).map_err(|error| match error {
            ConfigError::Read { .. } => (WRONG, format!("{error} (--config or --file names another)")),
            ConfigError::Mistakes { .. } => (WRONG, error.to_string()),
        })?;
        (files::of(&config).map_err(|error| (FAILED, error))?, journal::records(&config))
    } else {
        (vec![Files::open(files).map_err(|error| (FAILED, error))?], Vec::new())
    };
    let bytes = groups.iter().map(|group| group.bytes).sum();
    if bytes >= LONG && std::io::stderr().is_terminal() {
        note(format!("reading {} of audit files", size(bytes)));
    }
    let mut broken = 0;
    for group in groups {
        search.begin();
        for (path, file) in group.files {
            let read = lines::each(file, |line| line.is_none_or(|line| search.take(line)));
            broken += read.map_err(|error| (FAILED, format!("cannot read {}: {error}", path.display())))?;
        }
    }
    search.begin();
    for record in journaled {
        search.take(&record);
    }
    if broken > 0 {
        note(format!("{broken} broken lines were skipped"));
    }
    Ok(search.found())
}

fn show(
    container: &str,
    found: Found,
    output: &ExplainOutput,
    screen: &mut Screen,
) -> Result<(), (u8, String)> {
    let (container, records, left_out, others) = match found {
        Found::One { container, records, left_out, others } => (container, records, left_out, others),
        Found::Nothing => return Err((WRONG, format!("there is no record of a container {container}"))),
        Found::Several(ids) => {
            let ids = ids.join(", ");
            return Err((WRONG, format!("several containers begin so: {ids}; give more of the id")));
        }
    };
    let reading = ReadRecords::of(&container, &records, left_out, others);
    if let Some(first) = reading.unread.first() {
        note(format!("{} records are left out: {first}", reading.unread.len()));
    }
    match output {
        ExplainOutput::Text => Story::of(&reading).print(screen),
        ExplainOutput::Json => screen.verbatim(&document(&reading, &records)),
        ExplainOutput::Html(file) if file.as_os_str() == "-" => screen.verbatim(&page::of(&reading)),
        ExplainOutput::Html(file) => std::fs::write(file, page::of(&reading))
            .map_err(|error| (FAILED, format!("cannot write {}: {error}", file.display())))?,
    }
    Ok(())
}

/// The verdict, with its sentence.
#[derive(Debug, Serialize)]
struct VerdictDocument<'a> {
    sentence: String,
    #[serde(flatten)]
    verdict: &'a Verdict,
}

/// The records are the lines as they were written: parsed again, they would lose what this version
/// does not know.
fn document(reading: &ReadRecords, records: &[String]) -> String {
    let json = |value: serde_json::Result<String>| value.expect("its keys are strings");
    let sentence = sentence::sentence(&reading.verdict);
    let verdict = VerdictDocument { sentence, verdict: &reading.verdict };
    let container = json(serde_json::to_string(&reading.container));
    let verdict = json(serde_json::to_string(&verdict));
    let records = records.join(",");
    format!("{{\"container\":{container},\"verdict\":{verdict},\"records\":[{records}]}}")
}
