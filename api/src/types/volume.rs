//! Volumes on the storage fabric: what is asked for, and how they are.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::name::{TargetName, VolumeName};
use crate::portal::Portal;
use crate::secret::{self, Secret};

/// Asks for a volume: the body of `PUT /v1/volumes/{name}`. A size, a template or a source is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// At least so many bytes; fabrics make whole GiB, so it is rounded up to them. With a template or a source: that one's
    /// size, and never less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub size_bytes: Option<u64>,
    /// AppTemplate of the fabric that says how the volume is; what is named here besides overrides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// What the volume begins with; nothing: zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeSource>,
    /// Copies that the fabric keeps, from 1 to 5; nothing: 3, or as the template says.
    #[serde(
        default,
        deserialize_with = "replicas",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1, maximum = 5)]
    pub replicas: Option<u8>,
    /// On which media it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_mode: Option<PlacementMode>,
    /// Placement policy of the fabric, which says more than a mode; fabrics from version 3.3 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_policy: Option<String>,
    /// Limits; nothing: none, or as the template says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
    /// Pool that the portals' addresses come from; nothing: the configured one, or the fabric's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_pool: Option<String>,
    /// Credentials that initiators have to show, besides being admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap: Option<FabricChap>,
    /// For people: 3 to 128 letters, digits, blanks, `_`, `-` and `.`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

fn replicas<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    let number = Option::<u64>::deserialize(deserializer)?;
    let Some(number) = number else {
        return Ok(None);
    };
    u8::try_from(number)
        .ok()
        .filter(|number| (1..=5).contains(number))
        .map(Some)
        .ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{number} is out of range, expected a number from 1 to 5"
            ))
        })
}

/// What a new volume begins with. In JSON an object with one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// The data that this volume has now.
    #[schema(value_type = String)]
    Volume(VolumeName),
    /// The data that a snapshot holds.
    Snapshot(SnapshotRef),
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRef {
    /// The volume.
    #[schema(value_type = String)]
    pub volume: VolumeName,
    /// Name or identifier of the snapshot.
    pub snapshot: String,
}

/// Media that a volume is kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlacementMode {
    /// Flash in front of disks.
    Hybrid,
    /// One copy on flash, the others on disks.
    SingleFlash,
    /// Every copy on flash.
    AllFlash,
}

/// Limits of a volume. Nothing, or 0: no limit. Those of both directions together hold besides the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Qos {
    /// Reads and writes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 10_000_000)]
    pub total_iops: Option<u64>,
    /// Reads per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 10_000_000)]
    pub read_iops: Option<u64>,
    /// Writes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 10_000_000)]
    pub write_iops: Option<u64>,
    /// Bytes per second, read and written; fabrics count in KiB, so it is rounded up to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes_per_second: Option<u64>,
    /// Bytes read per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_second: Option<u64>,
    /// Bytes written per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_second: Option<u64>,
}

/// CHAP credentials of a new volume. Fabrics take names of 3 to 64 and secrets of 12 to 16 characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FabricChap {
    /// Name that initiators log in with.
    pub user: String,
    /// Secret that they prove to know.
    #[serde(serialize_with = "secret::expose")]
    #[schema(value_type = String, write_only, format = Password, min_length = 12, max_length = 16)]
    pub secret: Secret,
    /// Name that the target gives in turn; needs `mutual_secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual_user: Option<String>,
    /// Secret that the target proves to know.
    #[serde(
        default,
        serialize_with = "secret::expose_optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>, write_only, format = Password, min_length = 12, max_length = 16)]
    pub mutual_secret: Option<Secret>,
}

/// Changes of a volume, as a JSON merge patch (RFC 7396): the body of `PATCH /v1/volumes/{name}`. All of it is done
/// while the volume is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumePatch {
    /// At least so many bytes from now on, rounded up to whole GiB; a volume never shrinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// All limits from now on; null: none.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub qos: Option<Option<Qos>>,
}

fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// What deleting does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeletePolicy {
    /// The volume and its data are gone.
    #[default]
    Delete,
    /// It is taken offline, nobody is admitted any more, and its data stays.
    Retain,
}

/// A volume on the fabric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its name.
    #[schema(value_type = String)]
    pub name: VolumeName,
    /// What the fabric itself calls it.
    pub id: String,
    /// Whether it can be used.
    pub state: VolumeState,
    /// What the fabric says of its health, as `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Size of all its units together.
    pub size_bytes: u64,
    /// AppTemplate that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its logical units: one, unless a template says otherwise.
    pub units: Vec<VolumeUnit>,
}

/// Whether a volume can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Initiators that are admitted can log in.
    Available,
    /// The fabric is not done with it yet.
    Preparing,
    /// It was taken offline.
    Offline,
    /// The fabric failed with it.
    Failed,
}

impl VolumeState {
    /// The word that stands for it in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Preparing => "preparing",
            Self::Offline => "offline",
            Self::Failed => "failed",
        }
    }
}

/// A logical unit of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeUnit {
    /// Its name within the volume, as `storage-1/volume-1`.
    pub name: String,
    /// What the unit says as its serial number, if the fabric tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// Copies that the fabric keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u8>,
    /// Placement policy or mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<String>,
    /// Its limits, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
    /// Its target; missing while the fabric has none for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub target: Option<TargetName>,
    /// Where the target listens.
    #[schema(value_type = Vec<String>)]
    pub portals: Vec<Portal>,
    /// Its number.
    pub lun: u16,
    /// Whether initiators have to show CHAP credentials.
    pub chap: bool,
    /// Whether everybody is admitted.
    pub open: bool,
    /// Initiators that are admitted.
    pub access: Vec<String>,
    /// Groups of initiators, kept on the fabric, that are admitted besides.
    #[serde(default)]
    pub access_groups: Vec<String>,
    /// Initiators that are logged in now.
    pub sessions: Vec<String>,
}

/// All volumes, or a page of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// Ordered by name.
    pub volumes: Vec<Volume>,
    /// There are more: `after` of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An AppTemplate of the fabric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What is made from it.
    pub units: Vec<TemplateVolume>,
}

/// A logical unit that a template makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateVolume {
    /// Its name within the volume, as `storage-1/volume-1`.
    pub name: String,
    /// Its size, unless a request overrides it.
    pub size_bytes: u64,
    /// Copies that the fabric keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u8>,
    /// Placement policy or mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<String>,
    /// Its limits, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
}

/// All templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateList {
    /// Ordered by name.
    pub templates: Vec<Template>,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// The volume that it is of.
    #[schema(value_type = String)]
    pub volume: VolumeName,
    /// Its identifier. Fabrics keep no names: the identifier follows from volume and name.
    pub id: String,
    /// The name it was asked for by, in the answer to a call that named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was taken, by the clock of the fabric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_unix_ms: Option<u64>,
    /// Whether it can be used.
    pub ready: bool,
}

/// All snapshots of a volume, or a page of those of all volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// Those of one volume: oldest first. Of all volumes: by volume, and then oldest first.
    pub snapshots: Vec<Snapshot>,
    /// There are more: `after` of the next page. It has no meaning besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Snapshot {
    /// Its place in a list of the snapshots of all volumes.
    #[must_use]
    pub fn place(&self) -> SnapshotPlace {
        SnapshotPlace {
            volume: self.volume.clone(),
            taken_unix_ms: self.taken_unix_ms,
            id: self.id.clone(),
        }
    }
}

/// The place of a snapshot in a list of those of all volumes: by volume, then by age.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotPlace {
    volume: VolumeName,
    taken_unix_ms: Option<u64>,
    id: String,
}

impl std::fmt::Display for SnapshotPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let taken = self
            .taken_unix_ms
            .map_or_else(String::new, |ms| ms.to_string());
        write!(f, "{}/{taken}/{}", self.volume, self.id)
    }
}

/// Text that is no place in a list of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected the `next` of a page of snapshots")]
pub struct SnapshotPlaceError;

impl std::str::FromStr for SnapshotPlace {
    type Err = SnapshotPlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().ok_or(SnapshotPlaceError);
        let (volume, taken, id) = (part()?, part()?, part()?);
        let taken_unix_ms = match taken {
            "" => None,
            taken => Some(taken.parse().map_err(|_| SnapshotPlaceError)?),
        };
        Ok(Self {
            volume: volume.parse().map_err(|_| SnapshotPlaceError)?,
            taken_unix_ms,
            id: id.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_strict() {
        let parse = |json: &str| serde_json::from_str::<VolumeRequest>(json);
        let full = parse(
            r#"{"size_bytes":1,"template":"gold","source":{"snapshot":{"volume":"abc","snapshot":"x"}},"replicas":3,
                "placement_mode":"all_flash","qos":{"total_iops":5},"chap":{"user":"u","secret":"twelve-bytes"}}"#,
        )
        .unwrap();
        let again = parse(&serde_json::to_string(&full).unwrap()).unwrap();
        assert_eq!(full, again);
        assert!(!format!("{full:?}").contains("twelve-bytes"));
        for json in [
            r#"{"replicas":0}"#,
            r#"{"replicas":6}"#,
            r#"{"size":1}"#,
            r#"{"source":{"volume":"a/b"}}"#,
            r#"{"qos":{"iops":1}}"#,
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
        let patch = |json: &str| serde_json::from_str::<VolumePatch>(json).unwrap();
        assert_eq!(patch("{}").qos, None);
        assert_eq!(patch(r#"{"qos":null}"#).qos, Some(None));
    }

    #[test]
    fn places_of_snapshots_are_told_and_understood() {
        let mut snapshot = Snapshot {
            volume: "vol-1".parse().unwrap(),
            id: "5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944".into(),
            name: None,
            taken_unix_ms: Some(1_600_000_000_123),
            ready: true,
        };
        for taken in [snapshot.taken_unix_ms, None] {
            snapshot.taken_unix_ms = taken;
            let place = snapshot.place();
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for wrong in ["", "vol-1", "vol-1/x/id", "a/1/id"] {
            assert_eq!(
                wrong.parse::<SnapshotPlace>(),
                Err(SnapshotPlaceError),
                "{wrong}"
            );
        }
    }

    #[test]
    fn names_of_volumes() {
        for good in [
            "abc",
            "_x-1",
            "kube-pv-datera-0",
            "1c0e0a52-53a4-4c0b-8f3f-6f3a1f5d9b01",
        ] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "ab",
            "1abc",
            "-abc",
            "a/b",
            "a b",
            "..",
            &"a".repeat(65),
            "1C0E0A52-53A4-4C0B-8F3F-6F3A1F5D9B01",
        ] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
        }
    }
}
