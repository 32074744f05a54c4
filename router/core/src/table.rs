//! A table of a configuration file, read key by key.
//!
//! Every mistake is collected with its key, so that one bad value does not hide the next. What is
//! left at the end is not a key.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use toml::Value;

use crate::quantity;

/// `sun_path` has 108 bytes, the last a zero: unix(7).
const SUN_PATH: usize = 107;
/// The message for an unknown key.
pub const UNKNOWN: &str = "is not a key; docs/reference/configuration.md lists them";

/// A mistake and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// The key, such as `source[0].mode`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// All mistakes of one file, in the order they were found.
#[derive(Debug, Default)]
pub struct Mistakes(RefCell<Vec<Mistake>>);

impl Mistakes {
    /// What was read, if all of it is right.
    pub fn none<T>(self, read: Option<T>) -> Result<T, Vec<Mistake>> {
        match (read, self.0.into_inner()) {
            (Some(read), mistakes) if mistakes.is_empty() => Ok(read),
            (_, mistakes) => Err(mistakes),
        }
    }

    /// All of them.
    pub fn all(self) -> Vec<Mistake> {
        self.0.into_inner()
    }

    /// Adds one.
    pub fn add(&self, key: &str, message: impl Display) {
        self.0.borrow_mut().push(Mistake { key: key.to_owned(), message: message.to_string() });
    }

    /// Adds that a value is missing, unless its key has a mistake already.
    pub fn missing(&self, key: &str, what: &str) {
        if !self.0.borrow().iter().any(|it| it.key == key) {
            self.add(key, format_args!("is missing: {what}"));
        }
    }

    /// How many there are so far.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }
}

/// One table.
#[derive(Debug)]
pub struct Table<'a> {
    prefix: String,
    values: toml::Table,
    /// Of the whole file.
    pub mistakes: &'a Mistakes,
}

impl<'a> Table<'a> {
    /// The file as a whole has an empty `prefix`.
    pub fn new(prefix: &str, values: toml::Table, mistakes: &'a Mistakes) -> Self {
        Self { prefix: prefix.to_owned(), values, mistakes }
    }

    /// The full key of a name in this table.
    fn key(&self, name: &str) -> String {
        match (self.prefix.as_str(), name) {
            ("", name) => name.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    /// Adds a mistake; without a name it is one of the whole table.
    pub fn wrong(&self, name: &str, message: impl Display) {
        self.mistakes.add(&self.key(name), message);
    }

    /// A value that may not be missing: `what` it is.
    pub fn required<T>(&self, name: &str, value: Option<T>, what: &str) -> Option<T> {
        if value.is_none() {
            self.mistakes.missing(&self.key(name), what);
        }
        value
    }

    /// Whether the table has the key, read or not.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A table in it; one that is missing is empty.
    pub fn table(&mut self, name: &str) -> Table<'a> {
        let values = match self.values.remove(name) {
            Some(Value::Table(values)) => values,
            None => toml::Table::new(),
            Some(other) => {
                self.wrong(name, format_args!("is a {}, not a table", other.type_str()));
                toml::Table::new()
            }
        };
        Table { prefix: self.key(name), values, mistakes: self.mistakes }
    }

    /// Every `[[name]]`.
    pub fn tables(&mut self, name: &str) -> Vec<Table<'a>> {
        let items = match self.values.remove(name) {
            Some(Value::Array(items)) if items.iter().all(Value::is_table) => items,
            None => return Vec::new(),
            Some(_) => {
                self.wrong(name, format_args!("is not a list of tables: each begins with [[{name}]]"));
                return Vec::new();
            }
        };
        let tables = items.into_iter().enumerate().filter_map(|(at, item)| match item {
            Value::Table(values) => Some(Table::new(&format!("{name}[{at}]"), values, self.mistakes)),
            _ => None,
        });
        tables.collect()
    }

    /// A string.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let value = self.values.remove(name)?;
        self.string(name, value)
    }

    fn string(&self, name: &str, value: Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text),
            other => {
                self.wrong(name, format_args!("is a {}, not a string", other.type_str()));
                None
            }
        }
    }

    /// A string, as `parse` makes something of it.
    pub fn parsed<T, E: Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(name)?;
        self.checked(name, parse(&text))
    }

    /// What was made of a value, or what is wrong with it.
    pub fn checked<T, E: Display>(&self, name: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.wrong(name, error)).ok()
    }

    /// Bytes, as `"16MiB"`.
    pub fn size(&mut self, name: &str) -> Option<u64> {
        self.parsed(name, quantity::size)
    }

    /// A time, as `"20ms"`.
    pub fn time(&mut self, name: &str) -> Option<Duration> {
        self.parsed(name, quantity::time)
    }

    /// An absolute path.
    pub fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.parsed(name, absolute)
    }

    /// The path of a unix socket.
    pub fn socket(&mut self, name: &str) -> Option<PathBuf> {
        self.parsed(name, |text| absolute(text).and_then(socket))
    }

    /// A whole number above 0.
    pub fn number<T: TryFrom<u64>>(&mut self, name: &str) -> Option<T> {
        let value = self.values.remove(name)?;
        let number = value.as_integer().and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0);
        let number = number.ok_or("is not a whole number above 0");
        self.checked(name, number.and_then(|it| T::try_from(it).map_err(|_| "is too large")))
    }

    /// The strings of a list.
    pub fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        match self.values.remove(name)? {
            Value::Array(values) => {
                Some(values.into_iter().filter_map(|value| self.string(name, value)).collect())
            }
            other => {
                self.wrong(name, format_args!("is a {}, not a list of strings", other.type_str()));
                None
            }
        }
    }

    /// One of several words.
    pub fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let names = names.join(", ");
        self.parsed(name, |text| {
            let found = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
            found.ok_or_else(|| format!("`{text}` is not one of {names}"))
        })
    }

    /// One of several words that may not be missing.
    pub fn required_choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let choice = self.choice(name, choices);
        self.required(name, choice, &format!("one of {}", names.join(", ")))
    }

    /// The `name` of a source, guest or sink.
    pub fn name(&mut self) -> Option<String> {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let name =
            self.parsed("name", |name| match (1..=64).contains(&name.len()) && name.bytes().all(fits) {
                true => Ok(name.to_owned()),
                false => Err(format!("`{name}` is not 1 to 64 characters of a-z 0-9 -")),
            });
        self.required("name", name, "a name for logs and audit records")
    }

    /// Reports what was not read.
    pub fn end(self) {
        self.end_with(|_| Some(UNKNOWN.to_owned()));
    }

    /// The same, with a message for each key that is wrong here.
    pub fn end_with(self, message: impl Fn(&str) -> Option<String>) {
        for (name, message) in self.values.keys().filter_map(|name| Some((name, message(name)?))) {
            self.wrong(name, message);
        }
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    match text.starts_with('/') {
        true => Ok(text.into()),
        false => Err(format!("`{text}` is not an absolute path")),
    }
}

/// A path that the kernel takes for a unix socket.
pub fn socket(path: PathBuf) -> Result<PathBuf, String> {
    match path.as_os_str().len() {
        ..=SUN_PATH => Ok(path),
        _ => Err(format!(
            "`{}` is longer than the {SUN_PATH} bytes that the path of a unix socket may have",
            path.display()
        )),
    }
}
