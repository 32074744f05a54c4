//! Records of the kernel's log.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coroner_fuzz::kernel_log::kernel_log(bytes));
