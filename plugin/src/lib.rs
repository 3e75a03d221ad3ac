//! The plugins through which Kubernetes uses berth.
//!
//! Both are thin: they translate a call into calls of the local HTTP API ([`berth_api::client`]), and do on this node what
//! the daemon does not: file systems and mounts.
//!
//! ```text
//! kubelet --exec--> flexvolume --+--> filesystem (probe, make, check, grow), mount (table, bind, unmount)
//! kubelet --gRPC--> csi ---------+--> berth_api::client --HTTP--> berthd
//! ```
//!
//! Whatever may wait for a device happens in a child process with a deadline ([`command`]): a thread that waits for a dead
//! device cannot be ended, and a process with such a thread cannot end either.

pub mod command;
pub mod csi;
pub mod filesystem;
pub mod flexvolume;
pub mod limits;
pub mod mount;
