//! `coroner explain`: every signal, ruling and delivery of one container, from what is written down; no router needs to run.

mod files;
mod journal;
mod lines;
mod progress;
mod search;
mod story;
mod verdict;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use coroner::config::{Config, ConfigError};

use crate::cli::{FAILED, WRONG};
use crate::telling::Paper;
use files::Files;
use progress::Progress;
use search::{Found, Search};
use story::Story;

pub(crate) fn run(whom: &str, config: &Path, files: &[PathBuf], json: bool) -> ExitCode {
    let told = match find(whom, config, files) {
        Ok((found, broken)) => tell(whom, found, broken, json),
        Err((code, message)) => Err((code, message)),
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("coroner: {message}");
            code.into()
        }
    }
}

/// Reads everything once, and keeps what is about the container.
fn find(whom: &str, config: &Path, files: &[PathBuf]) -> Result<(Found, u64), (u8, String)> {
    let mut search = Search::new(whom).map_err(|error| (WRONG, error))?;
    let (groups, kept) = if files.is_empty() {
        let config = Config::read(config).map_err(|error| match error {
            ConfigError::Read { .. } => (WRONG, format!("{error} (--config or --file names another)")),
            ConfigError::Mistakes { .. } => (WRONG, error.to_string()),
        })?;
        (files::of(&config).map_err(|error| (FAILED, error))?, journal::records(&config))
    } else {
        (vec![Files::open(files).map_err(|error| (FAILED, error))?], Vec::new())
    };
    let mut progress = Progress::new(groups.iter().map(|group| group.bytes).sum());
    let mut broken = 0;
    for group in groups {
        search.begin();
        for (path, file) in group.files {
            let read = lines::each(file, |bytes, line| {
                progress.more(bytes);
                line.is_none_or(|line| search.take(line))
            });
            broken += read.map_err(|error| (FAILED, format!("cannot read {}: {error}", path.display())))?;
        }
    }
    search.begin();
    for record in kept {
        search.take(&record);
    }
    progress.done();
    Ok((search.found(), broken))
}

fn tell(whom: &str, found: Found, broken: u64, json: bool) -> Result<(), (u8, String)> {
    if broken > 0 {
        eprintln!("coroner: {broken} broken lines were passed over");
    }
    let (container, records, left_out, others) = match found {
        Found::One { container, records, left_out, others } => (container, records, left_out, others),
        Found::Nothing => return Err((WRONG, format!("nothing is written down of a container {whom}"))),
        Found::Several(ids) => {
            return Err((
                WRONG,
                format!("several containers begin so: {}; give more of the id", ids.join(", ")),
            ));
        }
    };
    let written = if json {
        document(&container, &records)
    } else {
        Story::of(&container, &records, left_out, &others).print(&Paper::new())
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err((FAILED, format!("cannot write: {error}")))
        }
        // Nobody reads any more: that is their choice.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The lines as they were written: they are JSON, and parsing them again would only lose what this version does not know.
fn document(container: &str, records: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let container = serde_json::to_string(container).map_err(io::Error::other)?;
    writeln!(out, "{{\"container\":{container},\"records\":[{}]}}", records.join(","))
}
