//! The local HTTP contract of berth.
//!
//! Plugins, `berthctl` and people speak to the daemon over this, and over nothing else. Nothing here
//! knows iSCSI or NBD, and nothing here holds state of its own but the operations under way.
//!
//! - [`types`]: requests and answers, units in the names
//! - [`error`]: codes, the error of a service, and problem+json (RFC 9457)
//! - [`service`]: what a node does for its callers, as a trait
//! - [`events`]: the recent events, for [`service::NodeService::events`]
//! - [`server`]: the HTTP server over any service
//! - [`client`]: the typed client

pub mod client;
pub mod error;
pub mod events;
pub mod name;
pub mod portal;
pub mod secret;
pub mod server;
pub mod service;
pub mod types;

pub use error::{Code, Error, Problem};
pub use name::{AttachmentName, TargetName, VolumeName};
pub use portal::Portal;
pub use secret::Secret;
pub use service::{Attached, Call, EventStream, NodeService, Peer};
