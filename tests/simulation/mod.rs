//! Deterministic simulation: initiator, target, NBD clients, network and clock in one thread, all from a seed.
//!
//! ```text
//! plan (seed) -> client -- NBD bytes --> Volume: nbd, block, session -- net --> array (target role)
//!    |              |                                                   ^          ^
//!    +-> fault -----|---------------------------------------------------+----------+
//!                   v
//!                history -> check (linearizable cells, flushes, power cuts, exactly one answer, no hang)
//! ```
//!
//! Everything between the NBD stream and the socket is the product's own code; the array is the product's
//! target role over memory. Time is virtual: it stands still while anything can run and jumps to the next
//! timer otherwise.

pub mod array;
pub mod capture;
pub mod check;
pub mod coverage;
pub mod fault;
pub mod history;
pub mod net;
pub mod node;
pub mod plan;
pub mod rng;
pub mod run;
#[cfg(test)]
mod scenes;
pub mod shrink;
#[cfg(test)]
mod tests;
pub mod trace;

pub use plan::Plan;
pub use run::{Report, run};
