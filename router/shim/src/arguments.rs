//! The command line of a shim, as far as the wrapper needs it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

/// Flags of Go's `flag` package that take no value: containerd's pkg/shim/shim.go, and its port to
/// Rust.
const SWITCHES: [&[u8]; 7] = [b"debug", b"v", b"info", b"version", b"h", b"help", b"pprof"];
/// Of these, the ones that only print information about the shim.
const QUERIES: [&[u8]; 5] = [b"v", b"info", b"version", b"h", b"help"];

/// One call of the shim's command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The container's id.
    pub(crate) id: String,
    /// Whether the command is `start`. The inner shim gets every other command unchanged.
    pub(crate) start: bool,
}

/// Parses the arguments after the command's name. Nothing is refused: the inner shim reports
/// mistakes.
pub(crate) fn parse(arguments: &[OsString]) -> Invocation {
    let mut call = Invocation::default();
    let mut rest = arguments.iter();
    let mut query = false;
    while let Some(argument) = rest.next() {
        let Some(flag) = dashed(argument) else {
            call.start = !query && argument == "start";
            break;
        };
        let (name, value) = match flag.iter().position(|byte| *byte == b'=') {
            Some(at) => (&flag[..at], Some(OsStr::from_bytes(&flag[at + 1..]))),
            None => (flag, None),
        };
        query |= QUERIES.contains(&name);
        if SWITCHES.contains(&name) {
            continue;
        }
        let Some(value) = value.or_else(|| rest.next().map(OsString::as_os_str)) else { break };
        match name {
            b"namespace" => call.namespace = value.to_string_lossy().into_owned(),
            b"id" => call.id = value.to_string_lossy().into_owned(),
            _ => {}
        }
    }
    call
}

/// The flag after one or two dashes, which Go treats alike.
fn dashed(argument: &OsStr) -> Option<&[u8]> {
    let bytes = argument.as_bytes().strip_prefix(b"-")?;
    Some(bytes.strip_prefix(b"-").unwrap_or(bytes)).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_start_only_after_its_flags() {
        for (line, namespace, id, start) in [
            ("-namespace k8s.io -address /a -publish-binary /b -id c1 start", "k8s.io", "c1", true),
            ("-namespace k8s.io -address /a -publish-binary /b -id c1 -debug start", "k8s.io", "c1", true),
            ("--namespace=k8s.io --id=c1 --debug=true start", "k8s.io", "c1", true),
            ("-namespace k8s.io -id c1 -bundle /start delete", "k8s.io", "c1", false),
            ("-namespace k8s.io -id start delete", "k8s.io", "start", false),
            ("-v", "", "", false),
            ("-info start", "", "", false),
            ("-id", "", "", false),
            ("", "", "", false),
        ] {
            let arguments: Vec<_> = line.split_whitespace().map(OsString::from).collect();
            let expect = Invocation { namespace: namespace.into(), id: id.into(), start };
            assert_eq!(parse(&arguments), expect, "{line}");
        }
    }
}
