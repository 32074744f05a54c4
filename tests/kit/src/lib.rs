//! What several suites generate.
//!
//! A package apart from the suites: it computes, so it is optimised. The suites wait for the
//! programs that they start, so they are not.

pub mod random;
