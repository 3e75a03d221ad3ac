//! The client against a scripted fabric.

mod operations;
pub(crate) mod stub;
mod trouble;

use std::time::Duration;

use berth_api::VolumeName;
use berth_api::types::{Volume, VolumeRequest};

use super::Datera;
use crate::fabric::{FabricError, Op};
use stub::Stub;

const GIB: u64 = 1 << 30;

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn op() -> Op {
    Op::within("test-1", Duration::from_secs(20))
}

fn sized(gib: u64) -> VolumeRequest {
    VolumeRequest {
        size_bytes: Some(gib * GIB),
        ..VolumeRequest::default()
    }
}

async fn create(
    fabric: &Datera,
    text: &str,
    request: &VolumeRequest,
) -> Result<(Volume, bool), FabricError> {
    fabric.create_volume(&op(), &name(text), request).await
}

fn client(stub: &Stub) -> Datera {
    Datera::new(&stub.settings(), "berth-test").unwrap()
}
