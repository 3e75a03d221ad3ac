//! What is asked for: the body of `PUT /v1/attachments/{name}`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::fabric_source::FabricSource;
use super::recovery_timeout::RecoveryTimeout;
use crate::name::TargetName;
use crate::portal::Portal;
use crate::secret::{self, Secret};

/// Asks for an attachment. Everything but the source has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Where the volume comes from; exactly one kind of source.
    pub source: Source,
    /// What is made of it on this node.
    #[serde(default)]
    pub device: DeviceWish,
    /// Refuse writes on this node, whatever the volume allows.
    #[serde(default)]
    pub read_only: bool,
    /// How other nodes are kept from writing.
    #[serde(default)]
    pub fence: Fence,
    /// With a fence: take the volume from the node that holds it now. That node's writes are
    /// refused from then on; be sure that it is gone or does not matter any more. Without this the attach
    /// fails with `attached-elsewhere`. It is for this call only and no part of what is attached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takeover: bool,
    /// CRC32C over iSCSI headers and data.
    #[serde(default)]
    pub digests: Digests,
    /// How long I/O waits while no path works, in seconds, or `"forever"`. 0: it fails at once.
    /// Nothing: what the node's configuration says, 120 if that says nothing either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_timeout_seconds: Option<RecoveryTimeout>,
    /// How long the attach itself may take before it fails with `deadline`, in seconds, from 1 to 600.
    #[serde(
        default = "AttachRequest::default_attach_timeout",
        deserialize_with = "attach_timeout"
    )]
    #[schema(minimum = 1, maximum = 600, default = 30)]
    pub attach_timeout_seconds: u32,
}

impl AttachRequest {
    /// A request with every default.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            device: DeviceWish::default(),
            read_only: false,
            fence: Fence::default(),
            takeover: false,
            digests: Digests::default(),
            recovery_timeout_seconds: None,
            attach_timeout_seconds: Self::default_attach_timeout(),
        }
    }

    const fn default_attach_timeout() -> u32 {
        30
    }

    /// How long the attach may take.
    #[must_use]
    pub fn attach_timeout(&self) -> Duration {
        Duration::from_secs(self.attach_timeout_seconds.into())
    }

    /// Names the fields in which `other` asks for another attachment: an empty list means that a
    /// repeated PUT is answered with 200, anything else with 409 `conflict-incompatible`.
    ///
    /// The order of portals, the attach timeout and `takeover` make no difference, and neither does a
    /// recovery timeout that `other` does not name.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let mut fields = Vec::new();
        let mut compare = |same: bool, field| {
            if !same {
                fields.push(field);
            }
        };
        match (&self.source, &other.source) {
            (Source::Iscsi(a), Source::Iscsi(b)) => {
                let sorted = |portals: &[Portal]| {
                    let mut portals = portals.to_vec();
                    portals.sort();
                    portals.dedup();
                    portals
                };
                compare(
                    sorted(&a.portals) == sorted(&b.portals),
                    "source.iscsi.portals",
                );
                compare(a.target == b.target, "source.iscsi.target");
                compare(a.lun == b.lun, "source.iscsi.lun");
                compare(a.auth == b.auth, "source.iscsi.auth");
            }
            (Source::Fabric(a), Source::Fabric(b)) => {
                compare(a.volume == b.volume, "source.fabric.volume");
                compare(a.unit == b.unit, "source.fabric.unit");
                compare(a.create == b.create, "source.fabric.create");
                compare(a.auth == b.auth, "source.fabric.auth");
                compare(a.grant == b.grant, "source.fabric.grant");
                compare(
                    a.revoke_on_detach == b.revoke_on_detach,
                    "source.fabric.revoke_on_detach",
                );
            }
            _ => compare(false, "source"),
        }
        compare(self.device == other.device, "device");
        compare(self.read_only == other.read_only, "read_only");
        compare(self.fence == other.fence, "fence");
        compare(self.digests == other.digests, "digests");
        compare(
            other.recovery_timeout_seconds.is_none()
                || self.recovery_timeout_seconds == other.recovery_timeout_seconds,
            "recovery_timeout_seconds",
        );
        fields
    }
}

fn attach_timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let seconds = u32::deserialize(deserializer)?;
    if !(1..=600).contains(&seconds) {
        return Err(serde::de::Error::custom(format!(
            "{seconds} is out of range, expected seconds from 1 to 600"
        )));
    }
    Ok(seconds)
}

/// Where a volume comes from. In JSON an object with one key, which names the kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A logical unit of an iSCSI target.
    Iscsi(IscsiSource),
    /// A volume of the storage fabric.
    Fabric(FabricSource),
}

impl Source {
    /// The logical unit, as far as it is known: that of a volume of the fabric is once the fabric told.
    #[must_use]
    pub fn iscsi(&self) -> Option<&IscsiSource> {
        match self {
            Self::Iscsi(source) => Some(source),
            Self::Fabric(source) => source.found.as_deref(),
        }
    }

    /// The same, to be changed.
    #[must_use]
    pub fn iscsi_mut(&mut self) -> Option<&mut IscsiSource> {
        match self {
            Self::Iscsi(source) => Some(source),
            Self::Fabric(source) => source.found.as_deref_mut(),
        }
    }
}

/// A logical unit of an iSCSI target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IscsiSource {
    /// Where the target listens, `host:port` or `[v6]:port`, from 1 to 16; several are paths to the
    /// same logical unit.
    #[serde(deserialize_with = "portals")]
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 16, example = json!(["192.0.2.10:3260"]))]
    pub portals: Vec<Portal>,
    /// Name of the target (`iqn.`, `eui.` or `naa.`).
    #[schema(value_type = String, max_length = 223, example = "iqn.2026-11.example:disk0")]
    pub target: TargetName,
    /// Number of the logical unit, from 0 to 16383.
    #[serde(deserialize_with = "lun")]
    #[schema(maximum = 16383)]
    pub lun: u16,
    /// How to prove who we are; nothing: the target asks for no proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
}

impl IscsiSource {
    /// Most portals of one source.
    pub const PORTALS_MAX: usize = 16;
    /// Largest LUN that single-level addressing can express (SAM-5 4.7).
    pub const LUN_MAX: u16 = 0x3fff;
}

pub(super) fn portals<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Portal>, D::Error> {
    let portals = Vec::<Portal>::deserialize(deserializer)?;
    if portals.is_empty() || portals.len() > IscsiSource::PORTALS_MAX {
        return Err(serde::de::Error::custom(format!(
            "{} portals given, expected 1 to {}",
            portals.len(),
            IscsiSource::PORTALS_MAX
        )));
    }
    Ok(portals)
}

fn lun<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let number = u64::deserialize(deserializer)?;
    u16::try_from(number)
        .ok()
        .filter(|&number| number <= IscsiSource::LUN_MAX)
        .ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{number} is out of range, expected a number from 0 to {}",
                IscsiSource::LUN_MAX
            ))
        })
}

/// Authentication towards a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// CHAP; the target is refused if it lets us in without.
    Chap(Chap),
}

/// CHAP credentials (RFC 7143 12.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "ChapFields")]
pub struct Chap {
    /// Name that we log in with, 1 to 255 bytes.
    #[schema(min_length = 1, max_length = 255)]
    pub user: String,
    /// Secret that we prove to know, 12 to 255 bytes.
    #[serde(serialize_with = "secret::expose")]
    #[schema(value_type = String, write_only, format = Password, min_length = 1, max_length = 255)]
    pub secret: Secret,
    /// What the target has to prove in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual: Option<MutualChap>,
    /// Accept secrets below 12 bytes: whoever records a login can find such a secret by trial
    /// (RFC 7143 9.2.1).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_short_secret: bool,
}

/// What the target has to prove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MutualChap {
    /// Name that the target has to give; nothing: any name will do, the secret counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub user: Option<String>,
    /// Secret that the target has to know, 12 to 255 bytes, other than our own.
    #[serde(serialize_with = "secret::expose")]
    #[schema(value_type = String, write_only, format = Password, min_length = 1, max_length = 255)]
    pub secret: Secret,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChapFields {
    user: String,
    secret: Secret,
    #[serde(default)]
    mutual: Option<MutualChap>,
    #[serde(default)]
    allow_short_secret: bool,
}

impl Chap {
    /// Below this length, in bytes, a secret needs `allow_short_secret` (RFC 7143 9.2.1: 96 bits).
    pub const SECRET_LEN_MIN: usize = 12;
    /// Longest name or secret in bytes (RFC 7143 12.1.3).
    pub const LEN_MAX: usize = 255;

    /// Credentials, checked.
    ///
    /// # Errors
    /// See [`ChapError`].
    pub fn new(
        user: String,
        secret: Secret,
        mutual: Option<MutualChap>,
        allow_short_secret: bool,
    ) -> Result<Self, ChapError> {
        let names = std::iter::once(&user).chain(mutual.iter().filter_map(|m| m.user.as_ref()));
        for name in names {
            if !(1..=Self::LEN_MAX).contains(&name.len()) {
                return Err(ChapError::UserLength);
            }
            if name.chars().any(char::is_control) {
                return Err(ChapError::UserControl);
            }
        }
        let secrets = std::iter::once(&secret).chain(mutual.iter().map(|m| &m.secret));
        for secret in secrets {
            if !(1..=Self::LEN_MAX).contains(&secret.len()) {
                return Err(ChapError::SecretLength);
            }
            if secret.len() < Self::SECRET_LEN_MIN && !allow_short_secret {
                return Err(ChapError::SecretShort);
            }
        }
        if mutual.as_ref().is_some_and(|m| m.secret == secret) {
            return Err(ChapError::SameSecret);
        }
        Ok(Self {
            user,
            secret,
            mutual,
            allow_short_secret,
        })
    }
}

impl TryFrom<ChapFields> for Chap {
    type Error = ChapError;

    fn try_from(fields: ChapFields) -> Result<Self, ChapError> {
        Self::new(
            fields.user,
            fields.secret,
            fields.mutual,
            fields.allow_short_secret,
        )
    }
}

/// Why credentials are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChapError {
    /// Empty or too long.
    #[error("a CHAP user name has 1 to {} bytes", Chap::LEN_MAX)]
    UserLength,
    /// Not printable.
    #[error("a CHAP user name has no control characters")]
    UserControl,
    /// Empty or too long.
    #[error("a CHAP secret has 1 to {} bytes", Chap::LEN_MAX)]
    SecretLength,
    /// Can be found by trial.
    #[error(
        "a CHAP secret has at least {} bytes (RFC 7143 9.2.1); set allow_short_secret to use a shorter one",
        Chap::SECRET_LEN_MIN
    )]
    SecretShort,
    /// The target could answer our own challenge with our own response.
    #[error("the secret of the target must differ from our own (RFC 7143 9.2.1)")]
    SameSecret,
}

/// What is made of a volume on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceWish {
    /// A kernel device if the kernel has NBD, else the socket only.
    #[default]
    Auto,
    /// A kernel device `/dev/nbdN`; without NBD in the kernel the attach fails.
    Kernel,
    /// An export on the NBD socket only.
    Socket,
}

/// How other nodes are kept from writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fence {
    /// They are not: whoever may log in may write.
    #[default]
    None,
    /// By a SCSI-3 persistent reservation (write exclusive, registrants only): the volume itself refuses
    /// the writes of every other node.
    Reservation,
    /// By the access list of the volume on the storage fabric: it admits this node and nobody else, or the attach fails
    /// with `attached-elsewhere`. For volumes of a fabric only.
    Acl,
}

/// CRC32C over iSCSI PDUs (RFC 7143 13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Digests {
    /// Over headers.
    #[serde(default)]
    pub header: DigestPolicy,
    /// Over data.
    #[serde(default)]
    pub data: DigestPolicy,
}

/// Whether a digest is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DigestPolicy {
    /// Not offered. A target that insists is refused.
    Off,
    /// Used if the target can.
    #[default]
    Prefer,
    /// A target that cannot is refused.
    Require,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(change: impl FnOnce(&mut Value)) -> Result<AttachRequest, String> {
        let mut body = json!({ "source": { "iscsi": {
            "portals": ["192.0.2.1"], "target": "iqn.2026-11.example:a", "lun": 0 } } });
        change(&mut body);
        serde_json::from_value(body).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let request = parse(|_| {}).unwrap();
        assert_eq!(request, AttachRequest::new(request.source.clone()));
        assert_eq!(request.digests.header, DigestPolicy::Prefer);
        assert_eq!(request.recovery_timeout_seconds, None, "the node decides");
        assert_eq!(
            RecoveryTimeout::default().as_duration(),
            Some(Duration::from_secs(120))
        );
        assert_eq!(request.attach_timeout(), Duration::from_secs(30));
    }

    #[test]
    fn timeouts() {
        for (value, timeout) in [
            (json!(0), RecoveryTimeout::Seconds(0)),
            (json!(4_294_967_295_u32), RecoveryTimeout::Seconds(u32::MAX)),
            (json!("forever"), RecoveryTimeout::Forever),
        ] {
            let request = parse(|body| body["recovery_timeout_seconds"] = value.clone()).unwrap();
            assert_eq!(request.recovery_timeout_seconds, Some(timeout));
            assert_eq!(json!(request)["recovery_timeout_seconds"], value);
        }
        for value in [
            json!(-1),
            json!(1.5),
            json!(4_294_967_296_u64),
            json!("120"),
        ] {
            let error = parse(|body| body["recovery_timeout_seconds"] = value).unwrap_err();
            assert!(error.contains("\"forever\""), "{error}");
        }
        for value in [0, 601] {
            let error = parse(|body| body["attach_timeout_seconds"] = json!(value)).unwrap_err();
            assert!(error.contains("from 1 to 600"), "{error}");
        }
    }

    #[test]
    fn every_difference_is_found() {
        let request = parse(|_| {}).unwrap();
        assert!(request.differences(&request).is_empty());
        let source = |body: &mut Value, field: &str, value| body["source"]["iscsi"][field] = value;
        let chap = json!({ "chap": { "user": "u", "secret": "hunter2hunter2" } });
        for (changed, field) in [
            (
                parse(|b| source(b, "portals", json!(["192.0.2.2"]))),
                "source.iscsi.portals",
            ),
            (
                parse(|b| source(b, "target", json!("eui.02004567A425678D"))),
                "source.iscsi.target",
            ),
            (parse(|b| source(b, "lun", json!(1))), "source.iscsi.lun"),
            (parse(|b| source(b, "auth", chap)), "source.iscsi.auth"),
            (parse(|b| b["device"] = json!("socket")), "device"),
            (parse(|b| b["read_only"] = json!(true)), "read_only"),
            (parse(|b| b["fence"] = json!("reservation")), "fence"),
            (
                parse(|b| b["digests"] = json!({ "data": "off" })),
                "digests",
            ),
            (
                parse(|b| b["recovery_timeout_seconds"] = json!(1)),
                "recovery_timeout_seconds",
            ),
        ] {
            assert_eq!(request.differences(&changed.unwrap()), [field]);
        }
        let patient = parse(|b| b["attach_timeout_seconds"] = json!(60)).unwrap();
        assert!(request.differences(&patient).is_empty());
        let taking = parse(|b| b["takeover"] = json!(true)).unwrap();
        assert!(request.differences(&taking).is_empty());
        // Who names no recovery timeout has no wish that another one could be against.
        let other = parse(|b| b["recovery_timeout_seconds"] = json!(1)).unwrap();
        assert!(other.differences(&request).is_empty());
    }

    /// RFC 7143 9.2.1: at least 96 bits, and not the same secret both ways.
    #[test]
    fn weak_secrets_are_refused() {
        let chap = |secret: &str, mutual: Option<&str>, allow_short| {
            let mutual = mutual.map(|secret| MutualChap {
                user: None,
                secret: Secret::new(secret.into()),
            });
            Chap::new("u".into(), Secret::new(secret.into()), mutual, allow_short).err()
        };
        assert_eq!(chap("12-bytes-ok!", None, false), None);
        assert_eq!(
            chap("11-bytes-no", None, false),
            Some(ChapError::SecretShort)
        );
        assert_eq!(chap("11-bytes-no", None, true), None);
        assert_eq!(chap("", None, true), Some(ChapError::SecretLength));
        assert_eq!(
            chap(&"x".repeat(256), None, true),
            Some(ChapError::SecretLength)
        );
        assert_eq!(
            chap("12-bytes-ok!", Some("12-bytes-ok!"), true),
            Some(ChapError::SameSecret)
        );
        assert_eq!(
            chap("12-bytes-ok!", Some("short"), false),
            Some(ChapError::SecretShort)
        );
    }
}
