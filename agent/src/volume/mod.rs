//! Attachments: what is wanted, and making it so.
//!
//! Intent is written first ([`intent`]), then an `attachment` task, sole owner of its volume, makes
//! it true. The `manager` knows all attachments by name.

mod attachment;
mod attempt;
#[cfg(all(test, feature = "sim"))]
mod claim_tests;
mod device;
pub(crate) mod failure;
pub mod intent;
pub mod left;
mod manager;
mod provision;
mod serving;
mod shut_out;
pub mod store;
mod stored_source;

pub use attempt::Terms;
pub use manager::{Known, Manager, ManagerOptions};
pub use provision::FabricAccess;
