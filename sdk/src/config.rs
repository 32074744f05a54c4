//! Reads a policy's `[config]` table and names every key that is wrong.

use crate::Mistakes;

/// Refuses every key: what a policy without configuration answers.
///
/// # Errors
/// Each key at the top of `json`, as it is written there.
pub fn none(json: &str) -> Result<(), Mistakes> {
    let keys = keys(json);
    if keys.is_empty() {
        return Ok(());
    }
    Err(keys.into_iter().map(|key| (key.to_owned(), "this policy has no configuration".to_owned())).collect())
}

/// The top keys of a JSON object, which the router wrote: it is well-formed. A JSON parser would
/// double the size of a policy that wants none of it.
fn keys(json: &str) -> Vec<&str> {
    let bytes = json.as_bytes();
    let (mut keys, mut depth, mut before, mut at) = (vec![], 0, b' ', 0);
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let start = at + 1;
                at = start;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if depth == 1 && matches!(before, b'{' | b',') {
                    keys.extend(json.get(start..at));
                }
            }
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            before = byte;
        }
        at += 1;
    }
    keys
}

#[cfg(feature = "config")]
pub use typed::parse;

#[cfg(feature = "config")]
mod typed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_without_configuration_names_each_refused_key() {
        let cases: [(&str, &[&str]); 8] = [
            ("{}", &[]),
            (" { } ", &[]),
            (r#"{"a":1}"#, &["a"]),
            (r#"{"a":"b","c":["d","e"],"f":{"g":"h","i":{}},"j":null}"#, &["a", "c", "f", "j"]),
            (r#"{ "a" : "}\",\"b\":1" , "c" : true }"#, &["a", "c"]),
            (r#"{"\"a\\":"b"}"#, &[r#"\"a\\"#]),
            (r#"{"ä":"ö","":0}"#, &["ä", ""]),
            (r#"{"a":""#, &["a"]),
        ];
        for (json, expect) in cases {
            let refused = none(json).err().unwrap_or_default();
            let refused: Vec<&str> = refused.iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(refused, expect, "{json}");
        }
    }
}
