//! Questions policies ask of what was seen, answered without taking unknown for no.

use crate::{CaseFile, Exited};

/// Kill requests the router keeps of one container.
const REQUESTS_KEPT: usize = 16;

impl Exited {
    /// Whether a signal ended it, as far as that is known: from the signal, else from a status of 128 + signal, as which
    /// a shell also reports its child's end. `None` where neither was seen.
    #[must_use]
    pub fn ended_by(&self, signal: u8) -> Option<bool> {
        match (self.signal, self.status) {
            (Some(seen), _) => Some(seen == signal),
            (None, Some(status)) => Some(status == 128 + u32::from(signal)),
            (None, None) => None,
        }
    }
}

impl CaseFile {
    /// Whether somebody sent this signal through the runtime. `None` where kill requests are not seen, and where so
    /// many others followed that this one may have been forgotten.
    #[must_use]
    pub fn kill_requested(&self, signal: u8) -> Option<bool> {
        let requests = self.requests.as_ref()?;
        let found = requests.iter().any(|(_, request)| request.signal == signal);
        (found || requests.len() < REQUESTS_KEPT).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use crate::{CaseFile, Exited, KillRequest, testing};

    #[test]
    fn an_end_by_signal_is_read_from_the_signal_and_else_from_the_status() {
        let cases = [
            (Some(9), Some(137), Some(true)),
            (Some(9), None, Some(true)),
            (Some(15), Some(137), Some(false)),
            (None, Some(137), Some(true)),
            (None, Some(9), Some(false)),
            (None, Some(0), Some(false)),
            (None, None, None),
        ];
        for (signal, status, expect) in cases {
            let exited = Exited { signal, status, ..testing::exited() };
            assert_eq!(exited.ended_by(9), expect, "signal {signal:?}, status {status:?}");
        }
    }

    #[test]
    fn a_kill_request_is_unknown_where_none_is_seen_or_some_are_forgotten() {
        let request = |signal| (testing::moment(), KillRequest { signal, all: false });
        let cases = [
            (None, None),
            (Some(vec![]), Some(false)),
            (Some(vec![request(15)]), Some(false)),
            (Some(vec![request(15), request(9)]), Some(true)),
            (Some(vec![request(15); 16]), None),
            (Some(vec![request(9); 16]), Some(true)),
        ];
        for (requests, expect) in cases {
            let case = CaseFile { requests: requests.clone(), ..testing::case() };
            assert_eq!(case.kill_requested(9), expect, "{requests:?}");
        }
    }
}
