//! A page of an agent's state.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coroner_fuzz::source::snapshot(bytes));
