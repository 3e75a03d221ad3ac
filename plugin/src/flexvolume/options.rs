//! The options of a volume: one JSON object with the user's `flexVolume.options` and what kubelet adds.

use std::collections::BTreeMap;

use berth_api::VolumeName;
use berth_api::types::{PlacementMode, Qos, SnapshotRef, VolumeRequest, VolumeSource};
use serde_json::Value;

use super::size::{self, SizeError};
use crate::filesystem::FsType;

/// Before every key that kubelet adds.
const KUBERNETES: &str = "kubernetes.io/";
/// Longest options that are looked at, in bytes: more than a command line holds.
const OPTIONS_LEN_MAX: usize = 2 << 20;

/// What a user may write, for the message about a key that is none of them.
const KEYS: [&str; 14] = [
    "volumeID",
    "size",
    "replica",
    "backstoreServer",
    "template",
    "tenant",
    "maxIops",
    "maxBW",
    "ipPool",
    "placementMode",
    "retainPolicy",
    "volumeSource",
    "unit",
    "mountOptions",
];

/// What is asked for. Holds no secrets: they are dropped when the options are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Name of the volume on the fabric.
    pub volume: VolumeName,
    /// Which of its units, if it has several.
    pub unit: Option<String>,
    /// How it is made when it does not exist; nothing: it has to exist.
    pub create: Option<VolumeRequest>,
    /// The file system; nothing: as configured.
    pub fs: Option<FsType>,
    /// Mounted so that nothing can be written.
    pub read_only: bool,
    /// Name of the PersistentVolume, or of the volume within its pod: by this the late dialect detaches.
    pub kubernetes_name: Option<String>,
    /// More mount options.
    pub mount_options: Vec<String>,
    /// The tenant that the volume is to be in.
    pub tenant: Option<String>,
}

/// Why options cannot be used. Values of keys that are not known may be secrets and are never shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No JSON object.
    #[error("the options are not a JSON object ({0})")]
    Json(String),
    /// No volume is named.
    #[error(
        "option volumeID is missing: the name of the volume on the fabric; a volume in a pod's own specification needs one too"
    )]
    NoVolume,
    /// A key that nobody knows.
    #[error("there is no option {key:?}; there are: {}", KEYS.join(", "))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A value that cannot be meant.
    #[error("option {key}: {what}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Options {
    /// Reads the options of a call.
    ///
    /// # Errors
    /// See [`OptionsError`].
    pub fn parse(json: &str) -> Result<Self, OptionsError> {
        if json.len() > OPTIONS_LEN_MAX {
            return Err(OptionsError::Json(format!(
                "{} bytes, at most {OPTIONS_LEN_MAX} are looked at",
                json.len()
            )));
        }
        let mut map = Map::parse(json)?;
        let volume = map.take("volumeID").ok_or(OptionsError::NoVolume)?;
        let volume = parsed::<VolumeName>("volumeID", &volume)?;
        let fs = map.kubernetes("fsType").filter(|text| !text.is_empty());
        let read_only = match map.kubernetes("readwrite").as_deref() {
            None | Some("" | "rw") => false,
            Some("ro") => true,
            Some(other) => {
                return Err(value_error(
                    "kubernetes.io/readwrite",
                    format!("{other:?} is neither ro nor rw"),
                ));
            }
        };
        let options = Self {
            volume,
            unit: map.take("unit"),
            fs: fs
                .map(|text| parsed("kubernetes.io/fsType", &text))
                .transpose()?,
            read_only,
            kubernetes_name: map.kubernetes("pvOrVolumeName"),
            mount_options: map.take("mountOptions").map_or_else(Vec::new, |text| {
                let options = text.split(',').map(str::trim);
                options
                    .filter(|option| !option.is_empty())
                    .map(str::to_owned)
                    .collect()
            }),
            tenant: map.take("tenant"),
            create: creation(&mut map)?,
        };
        // Where the fabric is stands in the daemon's configuration; manifests of 2016 say so here.
        map.take("backstoreServer");
        // What deleting does: nothing is ever deleted from here.
        if let Some(policy) = map.take("retainPolicy")
            && !matches!(policy.as_str(), "never" | "retain")
        {
            return Err(value_error(
                "retainPolicy",
                format!("{policy:?} is neither never nor retain"),
            ));
        }
        match map.rest() {
            None => Ok(options),
            Some(key) => Err(OptionsError::UnknownKey { key }),
        }
    }
}

/// How the volume is made. A template says all of it, as its users have come to rely on: what stands beside it is not used.
fn creation(map: &mut Map) -> Result<Option<VolumeRequest>, OptionsError> {
    let size_bytes = map
        .take("size")
        .map(|text| size::parse(&text).map_err(|SizeError(_)| size_error(&text)))
        .transpose()?;
    let replicas = map
        .take("replica")
        .map(|text| match text.parse::<u8>() {
            Ok(number @ 1..=5) => Ok(number),
            _ => Err(value_error(
                "replica",
                format!("{text:?} is not a number from 1 to 5"),
            )),
        })
        .transpose()?;
    let limit = |map: &mut Map, key: &str| {
        map.take(key)
            .map(|text| {
                let number = text.parse::<u64>();
                number.map_err(|_| value_error(key, format!("{text:?} is not a whole number")))
            })
            .transpose()
    };
    let total_iops = limit(map, "maxIops")?;
    let kib_per_second = limit(map, "maxBW")?;
    let total_bytes_per_second = kib_per_second
        .map(|kib| {
            kib.checked_mul(1024)
                .ok_or_else(|| value_error("maxBW", format!("{kib} KiB/s is too much")))
        })
        .transpose()?;
    let placement_mode = map
        .take("placementMode")
        .map(|text| match text.as_str() {
            "hybrid" => Ok(PlacementMode::Hybrid),
            "single_flash" => Ok(PlacementMode::SingleFlash),
            "all_flash" => Ok(PlacementMode::AllFlash),
            other => Err(value_error(
                "placementMode",
                format!("{other:?} is none of hybrid, single_flash, all_flash"),
            )),
        })
        .transpose()?;
    let ip_pool = map.take("ipPool");
    let source = map
        .take("volumeSource")
        .map(|text| source(&text))
        .transpose()?;
    if let Some(template) = map.take("template") {
        return Ok(Some(VolumeRequest {
            template: Some(template),
            source,
            ..VolumeRequest::default()
        }));
    }
    if size_bytes.is_none() && source.is_none() {
        return Ok(None);
    }
    let qos = (total_iops.is_some() || total_bytes_per_second.is_some()).then(|| Qos {
        total_iops,
        total_bytes_per_second,
        ..Qos::default()
    });
    Ok(Some(VolumeRequest {
        size_bytes,
        source,
        replicas,
        placement_mode,
        qos,
        ip_pool,
        ..VolumeRequest::default()
    }))
}

/// `NAME`, `NAME@SNAPSHOT`, or a path of the fabric's REST API, as `/app_instances/NAME/...` with or without
/// `/snapshots/SNAPSHOT` in the end.
fn source(text: &str) -> Result<VolumeSource, OptionsError> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    let after = |word: &str| {
        let at = parts.iter().position(|part| *part == word)?;
        parts.get(at + 1).copied()
    };
    let (volume, snapshot) = match (after("app_instances"), text.split_once('@')) {
        (Some(volume), _) => (volume, after("snapshots")),
        (None, Some((volume, snapshot))) => (volume, Some(snapshot)),
        (None, None) => (text, None),
    };
    let volume = parsed::<VolumeName>("volumeSource", volume)?;
    match snapshot {
        None => Ok(VolumeSource::Volume(volume)),
        Some("") => Err(value_error(
            "volumeSource",
            "the snapshot has no name".to_owned(),
        )),
        Some(snapshot) => Ok(VolumeSource::Snapshot(SnapshotRef {
            volume,
            snapshot: snapshot.to_owned(),
        })),
    }
}

fn value_error(key: &str, what: String) -> OptionsError {
    OptionsError::Value {
        key: key.to_owned(),
        what,
    }
}

fn size_error(text: &str) -> OptionsError {
    value_error("size", SizeError(text.to_owned()).to_string())
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    key: &str,
    text: &str,
) -> Result<T, OptionsError> {
    text.parse()
        .map_err(|error: T::Err| value_error(key, format!("{text:?}: {error}")))
}

/// The options by key; what was taken is gone.
struct Map(BTreeMap<String, String>);

impl Map {
    fn parse(json: &str) -> Result<Self, OptionsError> {
        let object: BTreeMap<String, Value> = serde_json::from_str(json)
            // Not the error itself: it may quote what it found.
            .map_err(|error| {
                OptionsError::Json(format!("line {}, column {}", error.line(), error.column()))
            })?;
        let mut map = BTreeMap::new();
        for (key, value) in object {
            // Secrets are of no use here (the daemon has credentials of its own), and gone as soon as can be.
            if key.starts_with("kubernetes.io/secret/") {
                continue;
            }
            let text = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Bool(word) => word.to_string(),
                Value::Null => continue,
                Value::Array(_) | Value::Object(_) => {
                    let what = "a text or a number is expected".to_owned();
                    return Err(OptionsError::Value { key, what });
                }
            };
            map.insert(key, text);
        }
        Ok(Self(map))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key).filter(|text| !text.is_empty())
    }

    fn kubernetes(&mut self, key: &str) -> Option<String> {
        self.0.remove(&format!("{KUBERNETES}{key}"))
    }

    /// The first key that is left and is the user's.
    fn rest(self) -> Option<String> {
        self.0.into_keys().find(|key| !key.starts_with(KUBERNETES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(value: &Value) -> Result<Options, OptionsError> {
        Options::parse(&value.to_string())
    }

    /// The PersistentVolume of the article: all options are texts, the size is in GiB.
    #[test]
    fn the_manifest_of_2016() {
        let options = parse(&json!({
            "volumeID": "kube-pv-datera-0", "size": "100", "replica": "3", "backstoreServer": "tsl.example:7717",
            "kubernetes.io/fsType": "xfs", "kubernetes.io/readwrite": "rw",
        }))
        .unwrap();
        assert_eq!(options.volume.as_str(), "kube-pv-datera-0");
        assert_eq!(options.fs, Some(FsType::Xfs));
        assert!(!options.read_only);
        assert_eq!(
            options.create,
            Some(VolumeRequest {
                size_bytes: Some(100 << 30),
                replicas: Some(3),
                ..VolumeRequest::default()
            })
        );
        assert_eq!(options.kubernetes_name, None);
    }

    #[test]
    fn the_later_guide() {
        let options = parse(&json!({
            "volumeID": "vol-1", "size": 10, "replica": 2, "maxIops": "1000", "maxBW": "2048", "ipPool": "fast",
            "placementMode": "all_flash", "tenant": "/root/team", "retainPolicy": "never", "volumeSource": "other@snap-1",
            "mountOptions": "noatime, discard", "kubernetes.io/secret/password": "aHVudGVyMg==",
            "kubernetes.io/pvOrVolumeName": "pv-7", "kubernetes.io/pod.uid": "u", "kubernetes.io/readwrite": "ro",
            "kubernetes.io/fsType": "",
        }))
        .unwrap();
        assert!(options.read_only);
        assert_eq!(options.fs, None);
        assert_eq!(options.mount_options, ["noatime", "discard"]);
        assert_eq!(options.tenant.as_deref(), Some("/root/team"));
        assert_eq!(options.kubernetes_name.as_deref(), Some("pv-7"));
        let create = options.create.unwrap();
        assert_eq!(create.replicas, Some(2));
        let qos = create.qos.unwrap();
        assert_eq!(qos.total_iops, Some(1000));
        assert_eq!(qos.total_bytes_per_second, Some(2 << 20));
        assert_eq!(create.placement_mode, Some(PlacementMode::AllFlash));
        assert!(matches!(create.source, Some(VolumeSource::Snapshot(_))));
    }

    #[test]
    fn a_template_says_all() {
        let options = parse(&json!({
            "volumeID": "vol-1", "template": "gold", "size": "10", "replica": "2", "maxIops": "5", "ipPool": "p",
        }))
        .unwrap();
        assert_eq!(
            options.create,
            Some(VolumeRequest {
                template: Some("gold".into()),
                ..VolumeRequest::default()
            })
        );
        // Neither template nor size: it has to exist.
        let options = parse(&json!({ "volumeID": "vol-1", "replica": "2" })).unwrap();
        assert_eq!(options.create, None);
    }

    #[test]
    fn sources() {
        let name = |text: &str| text.parse::<VolumeName>().unwrap();
        let snapshot = |volume, snapshot: &str| {
            VolumeSource::Snapshot(SnapshotRef {
                volume: name(volume),
                snapshot: snapshot.into(),
            })
        };
        for (text, expected) in [
            ("other", VolumeSource::Volume(name("other"))),
            ("other@a b", snapshot("other", "a b")),
            (
                "/app_instances/other/storage_instances/storage-1/volumes/volume-1",
                VolumeSource::Volume(name("other")),
            ),
            (
                "/app_instances/other/storage_instances/storage-1/volumes/volume-1/snapshots/1600000000.5",
                snapshot("other", "1600000000.5"),
            ),
        ] {
            assert_eq!(source(text), Ok(expected), "{text}");
        }
        for text in ["", "a/b", "other@", "/app_instances/", "a b"] {
            assert!(source(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let bad = |key: &str, value: Value| {
            let mut options = json!({ "volumeID": "vol-1" });
            options[key] = value;
            parse(&options).unwrap_err().to_string()
        };
        for (key, value) in [
            ("size", json!("big")),
            ("size", json!(-1)),
            ("replica", json!("0")),
            ("replica", json!("6")),
            ("maxIops", json!("many")),
            ("maxBW", json!("18446744073709551615")),
            ("placementMode", json!("tape")),
            ("retainPolicy", json!("delete")),
            ("volumeSource", json!("a b")),
            ("volumeID", json!("a/b")),
            ("kubernetes.io/fsType", json!("ntfs")),
            ("kubernetes.io/readwrite", json!("x")),
            ("sise", json!("1")),
            ("size", json!({ "a": 1 })),
        ] {
            let error = bad(key, value);
            assert!(error.contains(key), "{key}: {error}");
        }
        assert_eq!(parse(&json!({})), Err(OptionsError::NoVolume));
        assert_eq!(
            parse(&json!({ "volumeID": "" })),
            Err(OptionsError::NoVolume)
        );
        for text in ["", "[]", "nul", "{", "\"a\"", &"[".repeat(100_000)] {
            let error = Options::parse(text).unwrap_err();
            assert!(matches!(error, OptionsError::Json(_)), "{error}");
        }
    }

    #[test]
    fn secrets_are_seen_nowhere() {
        for options in [
            json!({ "volumeID": "vol-1", "kubernetes.io/secret/password": "aHVudGVyMg==" }),
            json!({ "volumeID": "vol-1", "kubernetes.io/secret/password": { "a": "aHVudGVyMg==" } }),
            json!({ "volumeID": "vol-1", "password": "aHVudGVyMg==" }),
        ] {
            let text = format!("{:?}", parse(&options));
            assert!(!text.contains("aHVudGVyMg=="), "{text}");
        }
        let error = Options::parse("{\"password\":\"aHVudGVyMg==\" 5").unwrap_err();
        assert!(!error.to_string().contains("aHVudGVyMg=="), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text: String) {
            let _ = Options::parse(&text);
        }

        #[test]
        fn any_values_are_taken(values in proptest::collection::btree_map(proptest::sample::select(KEYS.to_vec()), ".{0,20}", 0..8)) {
            let _ = parse(&json!(values));
        }
    }
}
