//! An agent's first answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coroner_fuzz::source::hello(bytes));
