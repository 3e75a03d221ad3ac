//! What volumes, snapshots, nodes and attachments are called here and there.
//!
//! | there | here | rule |
//! |---|---|---|
//! | name that the caller chooses (any text of up to 128 bytes) | name on the fabric | the same if the fabric can have it, else `csi-` and 40 digits of its SHA-256 |
//! | `volume_id` | volume, and one of its units | `NAME`, or `NAME/UNIT` of a volume with several, as `db/storage-1/volume-2` |
//! | `snapshot_id` | snapshot | `NAME@ID`: its volume, and what the fabric calls it |
//! | `node_id` | initiator | the iSCSI name that the node logs in with |
//!
//! None of it can change: it is kept in every PersistentVolume.

use std::fmt;
use std::str::FromStr;

use berth_api::{AttachmentName, TargetName, VolumeName};
use sha2::{Digest as _, Sha256};

/// Before the digits of a name that the fabric cannot have.
const HASHED: &str = "csi-";
/// Digits of such a name: 160 bits never meet by chance.
const HASHED_DIGITS: usize = 40;
/// Digits that stand for a unit in the name of an attachment.
const UNIT_DIGITS: usize = 16;
/// Longest name that a caller may choose, in bytes (CSI, size limits).
pub const NAME_LEN_MAX: usize = 128;
/// Longest identifier that is looked at, in bytes: a longer one is none of ours.
const ID_LEN_MAX: usize = 256;

/// A volume of the fabric, or one unit of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId {
    /// Name on the fabric.
    pub volume: VolumeName,
    /// Which of its units, as `storage-1/volume-1`; nothing: the only one.
    pub unit: Option<String>,
}

/// Text that is no identifier of ours: nothing that we have made has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOurs;

impl VolumeId {
    /// The volume of this name, which has one unit.
    #[must_use]
    pub fn of(volume: VolumeName) -> Self {
        Self { volume, unit: None }
    }

    /// Name of its attachment on a node: `NAME` after `csi.`, or `csi-unit.DIGITS.NAME` for a unit. Two volumes never
    /// share one.
    #[must_use]
    pub fn attachment(&self) -> AttachmentName {
        let name = match &self.unit {
            None => format!("csi.{}", self.volume),
            Some(unit) => format!("csi-unit.{}.{}", digits(unit, UNIT_DIGITS), self.volume),
        };
        name.parse().expect(
            "a name of a volume has only characters that attachments may have, and is shorter",
        )
    }
}

impl FromStr for VolumeId {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        if text.len() > ID_LEN_MAX {
            return Err(NotOurs);
        }
        let (volume, unit) = match text.split_once('/') {
            None => (text, None),
            Some((volume, unit)) => (volume, Some(unit)),
        };
        if let Some(unit) = unit {
            let (storage, part) = unit.split_once('/').ok_or(NotOurs)?;
            let is_name = |text: &str| text.parse::<VolumeName>().is_ok();
            if !is_name(storage) || !is_name(part) {
                return Err(NotOurs);
            }
        }
        Ok(Self {
            volume: volume.parse().map_err(|_| NotOurs)?,
            unit: unit.map(str::to_owned),
        })
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.volume)?;
        self.unit.iter().try_for_each(|unit| write!(f, "/{unit}"))
    }
}

/// A snapshot of a volume of the fabric.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The volume.
    pub volume: VolumeName,
    /// What the fabric calls the snapshot.
    pub id: String,
}

impl FromStr for SnapshotId {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let (volume, id) = text.split_once('@').ok_or(NotOurs)?;
        let fits = |id: &str| {
            (1..=64).contains(&id.len())
                && id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        };
        if !fits(id) {
            return Err(NotOurs);
        }
        Ok(Self {
            volume: volume.parse().map_err(|_| NotOurs)?,
            id: id.to_owned(),
        })
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.id)
    }
}

/// The initiator that a node logs in with; nothing for text that is none.
#[must_use]
pub fn initiator(node_id: &str) -> Option<TargetName> {
    node_id.parse().ok()
}

/// The name on the fabric of what a caller calls `name`: always the same, and never that of another name.
///
/// Fabrics may take names for equal that differ in case, so names with capital letters are hashed, too. So are those that
/// look like a hash or like one of the fabric's own identifiers.
#[must_use]
pub fn on_fabric(name: &str) -> VolumeName {
    let plain = !name.starts_with(HASHED)
        && !name.bytes().any(|byte| byte.is_ascii_uppercase())
        && !berth_api::name::is_uuid(name);
    if plain && let Ok(same) = name.parse() {
        return same;
    }
    format!("{HASHED}{}", digits(name, HASHED_DIGITS))
        .parse()
        .expect("letters, a sign and digits")
}

/// What a snapshot of this name is called on the fabric, whatever volume it is of: a UUID that follows from the name (version 8,
/// RFC 9562 5.8).
#[must_use]
pub fn snapshot_uuid(name: &str) -> String {
    let mut hex = digits(&format!("csi snapshot\0{name}"), 32).into_bytes();
    hex[12] = b'8';
    // The two bits of the variant.
    hex[16] = b"89ab"[usize::from(hex[16] % 4)];
    let hex = String::from_utf8(hex).expect("digits are text");
    let (a, b, c, d, e) = (
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// The first hexadecimal digits of the SHA-256 of a text.
#[must_use]
pub fn digits(text: &str, count: usize) -> String {
    use fmt::Write as _;
    let mut all = String::with_capacity(64);
    for byte in Sha256::digest(text.as_bytes()) {
        write!(all, "{byte:02x}").expect("writing to a string succeeds");
    }
    all.truncate(count);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_ids() {
        let plain: VolumeId = "pvc-1".parse().unwrap();
        assert_eq!((plain.to_string().as_str(), &plain.unit), ("pvc-1", &None));
        assert_eq!(plain.attachment().as_str(), "csi.pvc-1");
        let unit: VolumeId = "db1/storage-1/volume-2".parse().unwrap();
        assert_eq!(unit.volume.as_str(), "db1");
        assert_eq!(unit.unit.as_deref(), Some("storage-1/volume-2"));
        assert_eq!(unit.to_string(), "db1/storage-1/volume-2");
    }

    #[test]
    fn attachments_of_different_volumes_differ() {
        let name = |id: &str| id.parse::<VolumeId>().unwrap().attachment();
        let all = [
            "abc",
            "_abc",
            "abc/storage-1/volume-1",
            "abc/storage-1/volume-2",
            "abd/storage-1/volume-1",
            "unit.abc",
        ]
        .map(name);
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one), "{one}");
        }
        let long = format!("{}/storage-1/{}", "a".repeat(64), "b".repeat(64));
        assert!(
            long.parse::<VolumeId>()
                .unwrap()
                .attachment()
                .as_str()
                .len()
                <= 128
        );
    }

    #[test]
    fn rubbish_is_not_ours() {
        for wrong in [
            "",
            "ab",
            "a b c",
            "abc/",
            "abc/one",
            "abc/one/",
            "abc/one/two/three/..",
            "../..",
            "äöü",
        ] {
            assert_eq!(wrong.parse::<VolumeId>(), Err(NotOurs), "{wrong}");
        }
        assert_eq!("x".repeat(300).parse::<VolumeId>(), Err(NotOurs));
        for wrong in ["", "abc", "abc@", "@1", "abc@a/b", "abc@a b", "abc@1@2"] {
            assert_eq!(wrong.parse::<SnapshotId>(), Err(NotOurs), "{wrong}");
        }
        let good: SnapshotId = "abc@1c0e0a52-53a4".parse().unwrap();
        assert_eq!(good.to_string(), "abc@1c0e0a52-53a4");
    }

    #[test]
    fn names_on_the_fabric() {
        let uid = "pvc-1c0e0a52-53a4-4c0b-8f3f-6f3a1f5d9b01";
        assert_eq!(on_fabric(uid).as_str(), uid);
        // Pinned: a change would lose the volumes of every cluster.
        assert_eq!(
            on_fabric("Größe 1").as_str(),
            "csi-3852322f07e05eb0fd0ff84918a35ed5dcc6c445"
        );
        let other = [
            "ab",
            "PVC-1",
            "pvc-1",
            "a/b",
            "1abc",
            &"x".repeat(128),
            "\t",
            "csi-1",
        ];
        let all = other.map(on_fabric);
        for (at, one) in all.iter().enumerate() {
            assert!(!all[at + 1..].contains(one), "{one}");
        }
        let hashed = on_fabric("Größe 1");
        assert_ne!(on_fabric(hashed.as_str()), hashed);
    }

    #[test]
    fn snapshots_on_the_fabric() {
        let uuid = snapshot_uuid("snapshot-1");
        assert!(berth_api::name::is_uuid(&uuid), "{uuid}");
        assert_eq!((&uuid[14..15], uuid.len()), ("8", 36));
        assert_eq!(uuid, snapshot_uuid("snapshot-1"));
        assert_ne!(uuid, snapshot_uuid("snapshot-2"));
    }

    #[test]
    fn nodes() {
        let name = "iqn.2026-11.io.berth:worker-1";
        assert_eq!(initiator(name).unwrap().as_str(), name);
        for wrong in ["", "worker-1", "some-fake-node-id", "iqn"] {
            assert_eq!(initiator(wrong), None);
        }
    }
}
