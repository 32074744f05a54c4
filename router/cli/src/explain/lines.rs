//! A file's lines in a stream: gigabytes go through one buffer, and a line that is not a record is
//! counted and skipped.

use std::io::{self, BufRead, BufReader, Read};

/// A longer line is broken. A record is shorter, and without a bound a file without line feeds
/// would be read into memory whole.
const LONGEST: u64 = 16 << 20;
/// Read at once: few calls, and little memory.
const BUFFER: usize = 1 << 20;

/// Passes each whole line to `take`, and `None` for a broken one. `take` returns whether it could
/// read the line; the result is the number of lines that it could not. A line that only begins and
/// ends like a record counts as whole: to parse gigabytes of other containers would take minutes.
pub(super) fn each(file: impl Read, mut take: impl FnMut(Option<&str>) -> bool) -> io::Result<u64> {
    let mut file = BufReader::with_capacity(BUFFER, file);
    let mut line = Vec::new();
    let mut broken = 0;
    loop {
        line.clear();
        let bytes = file.by_ref().take(LONGEST).read_until(b'\n', &mut line)? as u64;
        if bytes == 0 {
            return Ok(broken);
        }
        if bytes == LONGEST && line.last() != Some(&b'\n') {
            file.skip_until(b'\n')?;
            line.clear();
            line.push(b'?');
        }
        let text = std::str::from_utf8(&line).map(str::trim).ok();
        // The last line without its line feed may be incomplete, and counts if it is whole.
        let whole = text.filter(|text| text.starts_with('{') && text.ends_with('}'));
        let empty = text.is_some_and(str::is_empty);
        if !take(whole) || (whole.is_none() && !empty) {
            broken += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_lines_are_counted_and_the_others_are_read() {
        let mut text = b"{\"a\":1}\n\n{\"torn\":\n\xff\xfe\n{\"bad\":}\n".to_vec();
        text.resize(text.len() + usize::try_from(LONGEST).unwrap() + 5, b'x');
        text.extend_from_slice(b"\n{\"last\":1}");
        let mut read = Vec::new();
        let broken = each(text.as_slice(), |line| {
            read.extend(line.map(str::to_owned));
            line != Some("{\"bad\":}")
        });
        assert_eq!(read, ["{\"a\":1}", "{\"bad\":}", "{\"last\":1}"]);
        assert_eq!(broken.unwrap(), 4);
    }
}
