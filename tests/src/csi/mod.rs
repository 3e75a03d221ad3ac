//! The CSI driver under test.
//!
//! - [`site`]: a simulated fabric, nodes with daemon and driver, all of them processes that can be killed.
//! - [`rig`]: the calls of an orchestrator, in short.
//! - [`suite`]: the rules that a driver has to keep, one function each.
//! - [`files`]: reading and writing what is published.
//! - [`host`]: pretended file systems and mounts, for kernels without NBD.

pub mod connect;
pub mod files;
pub mod host;
pub mod rig;
pub mod site;
pub mod suite;
