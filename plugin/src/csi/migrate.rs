//! `berth-csi migrate`: PersistentVolumes of FlexVolume as such of CSI, with their claims. The volumes themselves stay as they are.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::names::VolumeId;
use super::options::DRIVER_NAME;

/// Longest input, in bytes.
const INPUT_LEN_MAX: u64 = 256 << 20;
/// File system of a FlexVolume that names none.
const FS_DEFAULT: &str = "ext4";
/// Annotations that belong to the objects that go.
const ANNOTATIONS_LEFT: [&str; 4] = [
    "kubectl.kubernetes.io/",
    "pv.kubernetes.io/",
    "volume.beta.kubernetes.io/",
    "volume.kubernetes.io/",
];

/// Rewrites FlexVolume PersistentVolumes to CSI: reads what `kubectl get pv,pvc -A -o json` prints from standard input and writes new
/// PersistentVolumes and claims, as one list, to standard output. Nothing else is read or changed.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "berth-csi migrate", version)]
pub struct MigrateOptions {
    /// Name of the CSI driver
    #[arg(long, value_name = "NAME", default_value = DRIVER_NAME)]
    pub driver_name: String,
    /// FlexVolume driver whose volumes are meant, as datera/iscsi; can be given several times
    #[arg(long, value_name = "VENDOR/DRIVER", default_values = ["datera/iscsi", "berth/volume"])]
    pub flex_driver: Vec<String>,
}

/// Rewrites from standard input to standard output; what is left out is said on standard error.
///
/// # Errors
/// When the input cannot be read or is no JSON.
pub fn run(options: &MigrateOptions) -> anyhow::Result<()> {
    let mut text = String::new();
    let mut input = std::io::stdin().lock().take(INPUT_LEN_MAX);
    input.read_to_string(&mut text).context("standard input")?;
    let input: Value = serde_json::from_str(&text)
        .context("standard input is not what `kubectl get pv,pvc -A -o json` prints")?;
    let (list, left_out) = rewrite(&input, options);
    for reason in left_out {
        eprintln!("left out: {reason}");
    }
    let text = serde_json::to_string_pretty(&list).context("output")?;
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

/// The list of new objects, and why others are not in it.
#[must_use]
pub fn rewrite(input: &Value, options: &MigrateOptions) -> (Value, Vec<String>) {
    let objects = match input["items"].as_array() {
        Some(items) => items.iter().collect(),
        None => vec![input],
    };
    let of_kind = |kind: &'static str| {
        let is = move |object: &&&Value| object["kind"] == kind;
        objects.iter().filter(is).copied().collect::<Vec<_>>()
    };
    let claims = of_kind("PersistentVolumeClaim");
    let mut items = Vec::new();
    let mut left_out = Vec::new();
    // Names of the volumes that are rewritten, with the class that both sides get.
    let mut classes = BTreeMap::new();
    for old in of_kind("PersistentVolume") {
        let name = text(&old["metadata"]["name"]);
        if old["spec"]["flexVolume"].is_null() {
            continue;
        }
        let claim = claims
            .iter()
            .find(|claim| claim["spec"]["volumeName"] == name);
        match volume(old, claim.copied(), options) {
            Ok((new, class)) => {
                classes.insert(name.to_owned(), class);
                items.push(new);
            }
            Err(reason) => left_out.push(format!("PersistentVolume {name}: {reason}")),
        }
    }
    for old in claims {
        if let Some(class) = classes.get(text(&old["spec"]["volumeName"])) {
            items.push(claim(old, class));
        }
    }
    (
        json!({ "apiVersion": "v1", "kind": "List", "items": items }),
        left_out,
    )
}

fn volume(
    old: &Value,
    claim: Option<&Value>,
    options: &MigrateOptions,
) -> Result<(Value, String), String> {
    let flex = &old["spec"]["flexVolume"];
    let driver = text(&flex["driver"]);
    if !options.flex_driver.iter().any(|known| known == driver) {
        return Err(format!("its FlexVolume driver is {driver}"));
    }
    let handle = text(&flex["options"]["volumeID"]);
    if handle.is_empty() {
        return Err("it has no volumeID, so nobody can tell which volume it is".to_owned());
    }
    let id: VolumeId = handle
        .parse()
        .map_err(|_| format!("volumeID {handle:?} is no name that the fabric can have"))?;
    let spec = &old["spec"];
    let class = text(&spec["storageClassName"]).to_owned();
    let fs = match text(&flex["fsType"]) {
        "" => FS_DEFAULT,
        fs => fs,
    };
    let mut csi =
        json!({ "driver": options.driver_name, "volumeHandle": id.to_string(), "fsType": fs });
    if flex["readOnly"] == true {
        csi["readOnly"] = true.into();
    }
    let mut new = json!({
        "capacity": spec["capacity"], "accessModes": spec["accessModes"], "volumeMode": "Filesystem",
        // The volume outlives both objects until somebody says otherwise.
        "persistentVolumeReclaimPolicy": "Retain", "storageClassName": class, "csi": csi,
    });
    for kept in ["mountOptions", "nodeAffinity"] {
        if !spec[kept].is_null() {
            new[kept] = spec[kept].clone();
        }
    }
    // Bound to its claim beforehand, and to no other.
    let bound = claim.map_or(&spec["claimRef"], |claim| &claim["metadata"]);
    if let (Some(namespace), Some(name)) = (bound["namespace"].as_str(), bound["name"].as_str()) {
        new["claimRef"] = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name,
        });
    }
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata(old), "spec": new,
    });
    Ok((object, class))
}

fn claim(old: &Value, class: &str) -> Value {
    let spec = &old["spec"];
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(old),
        "spec": {
            "accessModes": spec["accessModes"], "resources": spec["resources"], "volumeMode": "Filesystem",
            "volumeName": spec["volumeName"],
            // Named even when empty: the cluster's default class would be put in otherwise.
            "storageClassName": class,
        },
    })
}

/// Name, namespace, labels, and those annotations that are somebody's own.
fn metadata(old: &Value) -> Value {
    let old = &old["metadata"];
    let mut new = Map::new();
    for kept in ["name", "namespace", "labels"] {
        if !old[kept].is_null() {
            new.insert(kept.to_owned(), old[kept].clone());
        }
    }
    let is_own = |key: &&String| !ANNOTATIONS_LEFT.iter().any(|left| key.starts_with(left));
    let annotations = old["annotations"].as_object().into_iter();
    let annotations: Map<_, _> = annotations
        .flat_map(|all| all.iter().filter(|(key, _)| is_own(key)))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !annotations.is_empty() {
        new.insert("annotations".to_owned(), annotations.into());
    }
    new.into()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn flex(name: &str, options: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {
                "name": name, "uid": "1", "resourceVersion": "7", "labels": { "app": "db" },
                "annotations": { "pv.kubernetes.io/bound-by-controller": "yes", "team": "storage" },
            },
            "spec": {
                "capacity": { "storage": "100Gi" }, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Delete",
                "claimRef": { "namespace": "default", "name": "data", "uid": "2" },
                "flexVolume": { "driver": "datera/iscsi", "fsType": "xfs", "options": options },
            },
            "status": { "phase": "Bound" },
        })
    }

    fn rewritten(items: &[Value]) -> (Vec<Value>, Vec<String>) {
        let options = MigrateOptions::parse_from(["berth-csi migrate"]);
        let (list, left_out) = rewrite(&json!({ "kind": "List", "items": items }), &options);
        (list["items"].as_array().unwrap().clone(), left_out)
    }

    #[test]
    fn a_volume_keeps_its_data_and_its_claim() {
        let old = flex(
            "kube-pv-0",
            &json!({ "volumeID": "kube-pv-datera-0", "size": "100" }),
        );
        let claim = json!({
            "kind": "PersistentVolumeClaim",
            "metadata": { "namespace": "default", "name": "data", "uid": "2" },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "volumeName": "kube-pv-0",
                "resources": { "requests": { "storage": "100Gi" } },
            },
            "status": { "phase": "Bound" },
        });
        let (items, left_out) = rewritten(&[old, claim]);
        assert_eq!((items.len(), left_out.len()), (2, 0));
        let (volume, claim) = (&items[0], &items[1]);
        assert_eq!(volume["spec"]["csi"]["volumeHandle"], "kube-pv-datera-0");
        assert_eq!(volume["spec"]["csi"]["driver"], "csi.berth.io");
        assert_eq!(volume["spec"]["csi"]["fsType"], "xfs");
        assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(volume["spec"]["claimRef"]["name"], "data");
        assert!(volume["spec"]["claimRef"]["uid"].is_null());
        assert!(volume["spec"]["flexVolume"].is_null() && volume["status"].is_null());
        assert_eq!(
            volume["metadata"]["annotations"],
            json!({ "team": "storage" })
        );
        assert!(volume["metadata"]["uid"].is_null());
        assert_eq!(claim["spec"]["volumeName"], "kube-pv-0");
        assert_eq!(claim["spec"]["storageClassName"], "");
        assert!(claim["status"].is_null());
    }

    #[test]
    fn what_cannot_be_told_is_left_out() {
        let mut foreign = flex("foreign", &json!({ "volumeID": "abc" }));
        foreign["spec"]["flexVolume"]["driver"] = "other/driver".into();
        let unknown_claim =
            json!({ "kind": "PersistentVolumeClaim", "spec": { "volumeName": "foreign" } });
        let (items, left_out) = rewritten(&[
            foreign,
            flex("nameless", &json!({ "size": "1" })),
            flex("odd", &json!({ "volumeID": "../.." })),
            json!({ "kind": "PersistentVolume", "metadata": { "name": "nfs" }, "spec": { "nfs": {} } }),
            unknown_claim,
            json!(null),
        ]);
        assert!(items.is_empty(), "{items:?}");
        assert_eq!(left_out.len(), 3, "{left_out:?}");
        for (reason, word) in left_out.iter().zip(["other/driver", "volumeID", "../.."]) {
            assert!(reason.contains(word), "{reason}");
        }
    }
}
