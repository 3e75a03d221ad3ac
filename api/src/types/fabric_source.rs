//! A volume of the storage fabric as the source of an attachment.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::attach::{Auth, IscsiSource};
use super::volume::VolumeRequest;
use crate::name::VolumeName;

/// A volume of the storage fabric that the daemon is configured with. It is made if need be, this node is admitted to it,
/// and its portals are asked for; each step can be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FabricSource {
    /// Its name.
    #[schema(value_type = String, min_length = 3, max_length = 64)]
    pub volume: VolumeName,
    /// Which of its units, as `storage-1/volume-1`; needed only when it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Make it like this if it does not exist; nothing: it has to exist. Without `chap`, which `auth` says.
    #[serde(
        default,
        deserialize_with = "creation",
        skip_serializing_if = "Option::is_none"
    )]
    pub create: Option<Box<VolumeRequest>>,
    /// How to prove who we are, when the volume asks for it; one that is made asks for it from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Have this node admitted to it. `false`: somebody else has seen to that (the controller of a cluster, say), and the
    /// attach fails with `access-denied` when it is not admitted yet.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub grant: bool,
    /// When it is detached, this node is not admitted to it any more.
    #[serde(default)]
    pub revoke_on_detach: bool,
    /// Where the fabric said last that it is; kept by the daemon, and no part of a request.
    #[serde(skip)]
    #[schema(ignore)]
    pub found: Option<Box<IscsiSource>>,
}

impl FabricSource {
    /// A volume that has to exist.
    #[must_use]
    pub fn new(volume: VolumeName) -> Self {
        Self {
            volume,
            unit: None,
            create: None,
            auth: None,
            grant: true,
            revoke_on_detach: false,
            found: None,
        }
    }
}

fn yes() -> bool {
    true
}

fn creation<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<VolumeRequest>>, D::Error> {
    let request = Option::<Box<VolumeRequest>>::deserialize(deserializer)?;
    if request
        .as_ref()
        .is_some_and(|request| request.chap.is_some())
    {
        return Err(serde::de::Error::custom(
            "chap has no place here: source.fabric.auth is what the volume asks for, too",
        ));
    }
    Ok(request)
}
