//! The documents: their links, their lines, the tests they name, and the words of the whole tree.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod cases;
mod lines;
mod links;
mod mechanisms;
mod tree;
mod words;
