//! The documents: their links, their lines, and the words of the whole tree.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod lines;
mod links;
mod mechanisms;
mod tree;
mod words;
