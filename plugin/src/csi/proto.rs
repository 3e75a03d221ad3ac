//! The types of the wire, made by `build.rs` from `proto/`.

/// Package `csi.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
    include!(concat!(env!("OUT_DIR"), "/masked.rs"));
}

/// Package `pluginregistration`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::use_self,
    reason = "generated"
)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
