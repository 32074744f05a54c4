//! A journal's file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coroner_fuzz::journal::journal(bytes));
