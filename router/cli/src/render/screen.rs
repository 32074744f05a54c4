//! Lines for a terminal: the one place that decides on colours, replaces control characters and
//! aligns columns.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tabwriter::TabWriter;

use crate::args::FAILED;

/// A colour or weight of the terminal, as its SGR code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// The text of a line or a cell, in parts of one colour each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text(Vec<(Option<Colour>, String)>);

impl Text {
    pub(crate) fn then(mut self, other: impl Into<Self>) -> Self {
        self.0.extend(other.into().0);
        self
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        paint(None, text)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        paint(None, text)
    }
}

impl<T: Display> From<&T> for Text {
    fn from(value: &T) -> Self {
        paint(None, value.to_string())
    }
}

/// The cells of a row.
macro_rules! row {
    ($($cell:expr),+) => { vec![$($crate::render::Text::from($cell)),+] };
}
pub(crate) use row;

pub(crate) fn paint(colour: impl Into<Option<Colour>>, text: impl Into<String>) -> Text {
    Text(vec![(colour.into(), text.into())])
}

/// Lines of standard output. They are printed together, with [`Screen::print`] or [`Screen::finish`].
#[derive(Debug)]
pub(crate) struct Screen {
    colours: bool,
    /// Since 1970. Ages on the screen are relative to it.
    pub(crate) now: Duration,
    text: String,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { colours: has_colours(&io::stdout()), now, text: String::new() }
    }

    pub(crate) fn line(&mut self, line: impl Into<Text>) {
        let line = self.render(&line.into());
        self.text.push_str(line.trim_end_matches(' '));
        self.text.push('\n');
    }

    /// A name and its value, which begins at column `width` + 1.
    pub(crate) fn field(&mut self, width: usize, name: &str, value: impl Into<Text>) {
        self.line(Text::from(format!("{name:<width$} ")).then(value));
    }

    /// Columns below their headings, each as wide as its widest cell.
    pub(crate) fn table(&mut self, headings: &[&str], rows: impl IntoIterator<Item = Vec<Text>>) {
        let headings = headings.iter().map(|it| paint(Colour::Bold, *it)).collect();
        let mut table = TabWriter::new(Vec::new()).minwidth(0).ansi(true);
        for row in std::iter::once(headings).chain(rows) {
            let cells: Vec<String> = row.iter().map(|cell| self.render(cell)).collect();
            writeln!(table, "{}", cells.join("\t")).expect("memory takes what is written");
        }
        let table = table.into_inner().expect("memory takes what is written");
        for line in String::from_utf8_lossy(&table).lines() {
            self.text.push_str(line.trim_end_matches(' '));
            self.text.push('\n');
        }
    }

    /// A document as it is. Programs read it: no character of it may be replaced.
    pub(crate) fn verbatim(&mut self, document: &str) {
        self.text.push_str(document);
        self.text.push('\n');
    }

    fn render(&self, text: &Text) -> String {
        let part = |(colour, text): &(Option<Colour>, String)| match colour.filter(|_| self.colours) {
            Some(colour) => format!("\u{1b}[{}m{}\u{1b}[0m", colour as u8, visible(text)),
            None => visible(text),
        };
        text.0.iter().map(part).collect()
    }

    /// Writes the lines that are not printed yet.
    pub(crate) fn print(&mut self) -> io::Result<()> {
        let text = std::mem::take(&mut self.text);
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Writes the rest. The exit code is `code`, or that of a failed write.
    pub(crate) fn finish(mut self, code: ExitCode) -> ExitCode {
        written(self.print(), code)
    }

    /// A screen without colours, at the time 0.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { colours: false, now: Duration::ZERO, text: String::new() }
    }

    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// The exit code of a command that wrote to standard output: `code`, unless the write failed. A
/// reader that closed its pipe has read enough, which is not an error.
pub(crate) fn written(result: io::Result<()>, code: ExitCode) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(FAILED, format!("cannot write to standard output: {error}"))
        }
        Ok(()) | Err(_) => code,
    }
}

/// Prints an error, and returns the exit code.
pub(crate) fn fail(code: u8, message: impl AsRef<str>) -> ExitCode {
    note(message);
    code.into()
}

/// Prints a message on standard error.
pub(crate) fn note(message: impl AsRef<str>) {
    errors(&format!("coroner: {}", message.as_ref()));
}

/// Prints lines on standard error, as they are but for control characters.
pub(crate) fn errors(lines: &str) {
    let mut out = io::stderr().lock();
    for line in lines.lines() {
        // With standard error closed too, the exit code is what is left.
        writeln!(out, "{}", visible(line)).ok();
    }
}

/// Colours are for terminals, and <https://no-color.org> turns them off.
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Replaces what a terminal or a browser does not show as a character of its own. Without it a file
/// name or a policy's message could move the cursor, change what was printed before, or forge a
/// line.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Control characters, separators of lines, and what changes direction or has no width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{feff}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_without_colours() {
        let mut screen = Screen { colours: true, ..Screen::plain() };
        let rows = [
            vec!["a".into(), paint(Colour::Red, "bad"), "x".into()],
            vec!["longer".into(), "ok".into(), "".into()],
        ];
        screen.table(&["NAME", "STATE", "WHY"], rows);
        let (bold, end) = ("\u{1b}[1m", "\u{1b}[0m");
        let headings = format!("{bold}NAME{end}    {bold}STATE{end}  {bold}WHY{end}");
        assert_eq!(screen.text(), format!("{headings}\na       \u{1b}[31mbad{end}    x\nlonger  ok\n"));
    }

    #[test]
    fn control_characters_are_replaced_in_every_kind_of_line() {
        let name = "a\u{1b}[2J\n\u{202e}b\u{9b}\tc\u{200b}\u{2028}";
        let mut screen = Screen::plain();
        screen.line(name);
        screen.line(Text::from("x ").then(paint(Colour::Red, name)));
        screen.field(4, "name", name);
        screen.table(&["NAME"], [vec![name.into()]]);
        let shown = "a\u{fffd}[2J\u{fffd}\u{fffd}b\u{fffd}\u{fffd}c\u{fffd}\u{fffd}";
        assert_eq!(screen.text(), format!("{shown}\nx {shown}\nname {shown}\nNAME\n{shown}\n"));
    }

    #[test]
    fn closed_pipe_keeps_the_exit_code_and_full_disk_is_1() {
        let failed = |kind: io::ErrorKind| format!("{:?}", written(Err(kind.into()), ExitCode::from(2)));
        assert_eq!(failed(io::ErrorKind::BrokenPipe), format!("{:?}", ExitCode::from(2)));
        assert_eq!(failed(io::ErrorKind::StorageFull), format!("{:?}", ExitCode::from(FAILED)));
    }
}
