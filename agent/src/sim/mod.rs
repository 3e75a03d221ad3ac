//! A pretend storage system, for the demo and for rehearsals (feature `sim`).
//!
//! - [`portal`]: a real iSCSI portal with volumes in memory, on a thread of its own
//! - [`workload`]: data written, read back and compared through NBD
//! - [`demo`]: `berthd demo`
//! - [`fabric`]: `berthd sim`, the REST API of a storage fabric with iSCSI portals behind it

pub mod demo;
pub mod fabric;
pub mod portal;
pub mod workload;
