//! The typed configuration, by serde; apart, because it brings a JSON parser along.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor,
};
use serde_json::{Map, Value};

use crate::Mistakes;

/// Reads the `[config]` table into a type, usually the policy itself:
///
/// ```
/// use coroner_sdk::prelude::*;
///
/// #[derive(Default, serde::Deserialize)]
/// #[serde(default, deny_unknown_fields)]
/// struct Tight {
///     limit: u64,
/// }
///
/// impl Policy for Tight {
///     const NAME: &str = "tight";
///
///     fn configure(json: &str) -> Result<Self, Mistakes> {
///         config::parse(json)
///     }
///
///     fn rule(&self, _: &Signal, _: &CaseFile, _: &[Action]) -> Result<Ruling, String> {
///         Ok(Ruling::Pass)
///     }
/// }
///
/// let Err(mistakes) = Tight::configure(r#"{"limit": "much", "color": "red"}"#) else { panic!() };
/// let keys: Vec<&str> = mistakes.iter().map(|(key, _)| key.as_str()).collect();
/// assert_eq!(keys, ["color", "limit"]);
/// ```
///
/// # Errors
/// Every key that is wrong, unknown (`deny_unknown_fields`) or missing (no `default`).
pub fn parse<T: DeserializeOwned>(json: &str) -> Result<T, Mistakes> {
    let mut table: Map<String, Value> = match serde_json::from_str(json) {
        Ok(table) => table,
        Err(error) => return Err(vec![(String::new(), error.to_string())]),
    };
    let mut mistakes = Mistakes::new();
    // serde stops at the first mistake: without that key it goes on to the next.
    loop {
        match T::deserialize(Table { entries: table.clone().into_iter(), current: None }) {
            Ok(config) if mistakes.is_empty() => return Ok(config),
            Ok(_) => return Err(mistakes),
            Err(Mistake { key, message }) => {
                let further = table.remove(&key).is_some();
                // A wrong key is removed; serde then reports it as missing too: skipped.
                if !mistakes.iter().any(|(name, _)| *name == key) {
                    mistakes.push((key, message));
                }
                if !further {
                    return Err(mistakes);
                }
            }
        }
    }
}

/// A JSON object that reports errors with the key they happened at.
struct Table {
    entries: serde_json::map::IntoIter,
    current: Option<(String, Value)>,
}

impl<'de> Deserializer<'de> for Table {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_map(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Table {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        self.current = self.entries.next();
        let Some((key, _)) = &self.current else { return Ok(None) };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let (key, value) = self.current.take().expect("serde asks for a value after its key");
        seed.deserialize(value).map_err(|error| Mistake { key, message: error.to_string() })
    }
}

#[derive(Debug)]
struct Mistake {
    key: String,
    message: String,
}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { key: String::new(), message: message.to_string() }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let message = match expected {
            [] => "unknown key; there are none".to_owned(),
            _ => format!("unknown key; known are {}", expected.join(", ")),
        };
        Self { key: field.to_owned(), message }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { key: field.to_owned(), message: "missing".to_owned() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl std::error::Error for Mistake {}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Optional {
        assume: bool,
        limit: Option<u64>,
        nested: Nested,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Nested {
        inner: u8,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Required {
        limit: u64,
        name: String,
    }

    fn check<T: DeserializeOwned>(json: &str, expect: &[(&str, &str)]) {
        let mistakes = parse::<T>(json).err().unwrap_or_default();
        let mistakes: Vec<(&str, &str)> = mistakes.iter().map(|(k, m)| (k.as_str(), m.as_str())).collect();
        assert_eq!(mistakes, expect, "{json}");
    }

    #[test]
    fn each_wrong_key_is_reported_with_its_message() {
        check::<Optional>("{}", &[]);
        check::<Optional>(r#"{"assume": true, "limit": 1, "nested": {"inner": 1}}"#, &[]);
        check::<Optional>(
            r#"{"assume": "yes", "limit": -1, "colour": 1}"#,
            &[
                ("assume", r#"invalid type: string "yes", expected a boolean"#),
                ("colour", "unknown key; known are assume, limit, nested"),
                ("limit", "invalid value: integer `-1`, expected u64"),
            ],
        );
        check::<Optional>(
            r#"{"nested": {"outer": 1}}"#,
            &[("nested", "unknown field `outer`, expected `inner`")],
        );
        check::<Required>("{}", &[("limit", "missing")]);
        check::<Required>(r#"{"limit": "x"}"#, &[("limit", r#"invalid type: string "x", expected u64"#)]);
        check::<Required>(r#"{"limit": 1}"#, &[("name", "missing")]);
        check::<Optional>("[]", &[("", "invalid type: sequence, expected a map at line 1 column 0")]);
    }

    #[test]
    fn table_parsed_into_policy() {
        let expect = Optional { assume: true, limit: None, nested: Nested { inner: 7 } };
        assert_eq!(parse(r#"{"assume": true, "nested": {"inner": 7}}"#), Ok(expect));
    }
}
