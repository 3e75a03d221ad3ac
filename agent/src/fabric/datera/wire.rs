//! The fabric's JSON as it is: only what is used, and nothing taken for granted that versions disagree about.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::call::{NextTry, TryError};
use crate::fabric::FabricError;
use crate::fabric::error::text_of;

/// Bytes of a GiB, the fabric's unit of size.
pub(super) const GIB: u64 = 1 << 30;

/// `GET /system`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct System {
    pub(super) name: Option<String>,
    pub(super) sw_version: Option<String>,
    pub(super) health: Option<String>,
    pub(super) op_state: Option<String>,
    pub(super) total_capacity: Option<f64>,
    pub(super) available_capacity: Option<f64>,
    pub(super) total_provisioned_capacity: Option<f64>,
}

/// An app instance: what we call a volume.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Instance {
    pub(super) path: String,
    pub(super) name: String,
    pub(super) id: String,
    #[serde(deserialize_with = "text")]
    pub(super) descr: String,
    pub(super) health: Option<String>,
    pub(super) admin_state: Option<String>,
    pub(super) op_state: Option<String>,
    pub(super) deployment_state: Option<String>,
    #[serde(deserialize_with = "reference")]
    pub(super) app_template: String,
    pub(super) storage_instances: Vec<Storage>,
}

/// A storage instance: one target.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Storage {
    pub(super) name: String,
    pub(super) op_state: Option<String>,
    pub(super) deployment_state: Option<String>,
    pub(super) access_control_mode: Option<String>,
    pub(super) acl_policy: Acl,
    pub(super) access: Access,
    pub(super) auth: Auth,
    pub(super) active_initiators: Vec<Value>,
    pub(super) volumes: Vec<Volume>,
}

/// Who is admitted to a target.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Acl {
    pub(super) initiators: Vec<Value>,
    pub(super) initiator_groups: Vec<Value>,
}

/// Where a target is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Access {
    pub(super) ips: Vec<String>,
    pub(super) iqn: Option<String>,
}

/// How initiators prove who they are.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Auth {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

/// A volume: one logical unit.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    pub(super) path: String,
    pub(super) name: String,
    pub(super) uuid: Option<String>,
    #[serde(deserialize_with = "gib")]
    pub(super) size: u64,
    pub(super) replica_count: Option<u8>,
    pub(super) placement_mode: Option<String>,
    #[serde(deserialize_with = "reference")]
    pub(super) placement_policy: String,
    pub(super) op_state: Option<String>,
    pub(super) performance_policy: Option<Performance>,
    pub(super) snapshots: Vec<Snapshot>,
}

/// Limits; 0 is none, bandwidth is in KiB per second.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Performance {
    pub(super) total_iops_max: Option<u64>,
    pub(super) read_iops_max: Option<u64>,
    pub(super) write_iops_max: Option<u64>,
    pub(super) total_bandwidth_max: Option<u64>,
    pub(super) read_bandwidth_max: Option<u64>,
    pub(super) write_bandwidth_max: Option<u64>,
}

/// A snapshot.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Snapshot {
    pub(super) path: String,
    #[serde(deserialize_with = "text")]
    pub(super) utc_ts: String,
    #[serde(deserialize_with = "text")]
    pub(super) uuid: String,
    pub(super) op_state: Option<String>,
}

/// An initiator.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Initiator {
    pub(super) tenant: Option<String>,
}

/// An AppTemplate.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Template {
    pub(super) name: String,
    #[serde(deserialize_with = "text")]
    pub(super) descr: String,
    pub(super) storage_templates: Vec<StorageTemplate>,
}

/// A target of a template.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StorageTemplate {
    pub(super) name: String,
    pub(super) volume_templates: Vec<Volume>,
}

/// What a list says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Page {
    pub(super) total_count: Option<u64>,
    pub(super) total: Option<u64>,
}

/// Size in bytes from a number of GiB, whole or not, or text that is one.
fn gib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = match &value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null => Some(0.0),
        _ => None,
    };
    // Above 2^33 GiB there is no room in a number of bytes.
    number
        .filter(|number| number.is_finite() && (0.0..8e9).contains(number))
        .map(|number| (number * GIB as f64) as u64)
        .ok_or_else(|| D::Error::custom("a size is no number of GiB"))
}

/// The path of a reference, `{"path": …}` or the bare path; empty when there is none.
fn reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(path_of(&Value::deserialize(deserializer)?).to_owned())
}

/// Text, or a number as text; empty when there is none.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null => Ok(String::new()),
        _ => Err(D::Error::custom("expected text")),
    }
}

/// The path of a reference, in either of its forms.
pub(super) fn path_of(value: &Value) -> &str {
    let path = match value {
        Value::Object(members) => members.get("path").and_then(Value::as_str),
        Value::String(path) => Some(path.as_str()),
        _ => None,
    };
    path.unwrap_or_default()
}

/// The last segments of the paths of references.
pub(super) fn names_of(references: &[Value]) -> Vec<String> {
    let name = |entry| last_segment(path_of(entry)).to_owned();
    references
        .iter()
        .map(name)
        .filter(|name| !name.is_empty())
        .collect()
}

/// The last segment of a path.
pub(super) fn last_segment(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// `data` of an envelope.
pub(super) fn data<T: DeserializeOwned>(mut envelope: Value, what: &str) -> Result<T, TryError> {
    let data = envelope.get_mut("data").map_or(Value::Null, Value::take);
    serde_json::from_value(data).map_err(|error| TryError {
        error: FabricError::Malformed {
            what: what.to_owned(),
            detail: text_of(&error.to_string()),
        },
        next: NextTry::None,
    })
}

/// What a refusal says.
pub(super) fn refusal(status: u16, body: Option<&Value>) -> FabricError {
    let member = |name: &str| body.and_then(|body| body.get(name));
    let word = |name: &str| member(name).and_then(Value::as_str).map(text_of);
    let mut message = word("message").unwrap_or_else(|| "it does not say why".to_owned());
    if let Some(errors) = member("errors").and_then(Value::as_array) {
        for error in errors.iter().take(4).filter_map(Value::as_str) {
            if !message.contains(error) {
                message = format!("{message}; {error}");
            }
        }
        message = text_of(&message);
    }
    FabricError::Refused {
        status,
        name: word("name").unwrap_or_else(|| "no name".to_owned()),
        code: member("code").and_then(Value::as_i64),
        message,
    }
}

/// Clears the texts of a body that held secrets.
pub(super) fn wipe(value: &mut Value) {
    use zeroize::Zeroize as _;
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(all) => all.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        _ => {}
    }
}
