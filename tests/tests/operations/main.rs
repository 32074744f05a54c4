//! Running the router as an operator does: as a service.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod service;
mod units;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
