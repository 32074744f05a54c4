//! The cases that later containerd releases run too.

mod absence;
mod causal;
mod execs;
mod fixture;
mod front;
mod instant;
mod proxied;
mod truth;
mod written;
