//! What the fuzz targets feed: the router's own files, in a tree of modules like the router's, so that they are built without the engine.

#[path = "../../router/src/case.rs"]
pub mod case;
pub mod config;
pub mod journal;
#[path = "../../router/src/ruling.rs"]
pub mod ruling;
#[path = "../../router/src/shares.rs"]
pub mod shares;
#[path = "../../router/src/signal.rs"]
pub mod signal;
pub mod source;
