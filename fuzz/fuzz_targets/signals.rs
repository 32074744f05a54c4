//! Frames and answers with signals, up to the router's own type.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coroner_fuzz::source::signals(bytes));
