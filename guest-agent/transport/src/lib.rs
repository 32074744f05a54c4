//! Guarded ttrpc links over unix sockets and vsock.
//!
//! [`connect`] and [`listen`] open links at an [`Address`]. Every link passes a [`Guard`], which
//! closes it at the header of an oversized frame, before the body is read. [`connect_guest`] adds
//! a rate limit ([`TokenBucket`]) for peers that are not trusted.
//!
//! ```no_run
//! use coroner_transport::{Address, connect};
//! use ttrpc::asynchronous::Client;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let address: Address = "vsock://3:1030".parse()?;
//! let client = Client::new(connect(&address).await?);
//! # drop(client);
//! # Ok(())
//! # }
//! ```

mod address;
mod dial;
mod guard;
pub mod limits;
mod listen;
mod token_bucket;

pub use crate::address::{ANY_CID, Address, AddressError};
pub use crate::dial::{connect, connect_guest};
pub use crate::guard::{Guard, Refused};
pub use crate::listen::{Incoming, bind, incoming, inherited, listen, listen_inherited, private};
pub use crate::token_bucket::TokenBucket;
