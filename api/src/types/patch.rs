//! What can be changed while it is attached: the body of `PATCH /v1/attachments/{name}`.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::attach;
use super::recovery_timeout::RecoveryTimeout;
use crate::portal::Portal;

/// Changes of an attachment, as a JSON merge patch (RFC 7396): what is not named stays. Nothing else
/// can be changed; detach and attach again for that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachmentPatch {
    /// How long I/O waits while no path works, from now on; null: what the node's configuration says.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub recovery_timeout_seconds: Option<Option<RecoveryTimeout>>,
    /// Changes of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourcePatch>,
}

/// Changes of a source; its kind stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourcePatch {
    /// Of an iSCSI source.
    Iscsi(IscsiPatch),
}

/// Changes of an iSCSI source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IscsiPatch {
    /// All portals that there are to be: paths to new ones are set up, those to others are drained and
    /// logged out, without any I/O failing.
    #[serde(deserialize_with = "attach::portals")]
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 16)]
    pub portals: Vec<Portal>,
}

impl AttachmentPatch {
    /// The new portals, if they are to change.
    #[must_use]
    pub fn portals(&self) -> Option<&[Portal]> {
        let SourcePatch::Iscsi(iscsi) = self.source.as_ref()?;
        Some(&iscsi.portals)
    }
}

/// Tells null from absent.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_not_absent_and_other_fields_are_refused() {
        let parse = |json: &str| serde_json::from_str::<AttachmentPatch>(json);
        assert_eq!(parse("{}").unwrap(), AttachmentPatch::default());
        let reset = parse(r#"{"recovery_timeout_seconds":null}"#).unwrap();
        assert_eq!(reset.recovery_timeout_seconds, Some(None));
        let forever = parse(r#"{"recovery_timeout_seconds":"forever"}"#).unwrap();
        assert_eq!(
            forever.recovery_timeout_seconds,
            Some(Some(RecoveryTimeout::Forever))
        );
        let portals = parse(r#"{"source":{"iscsi":{"portals":["192.0.2.1"]}}}"#).unwrap();
        assert_eq!(portals.portals().map(<[Portal]>::len), Some(1));
        for json in [
            r#"{"read_only":true}"#,
            r#"{"source":{"iscsi":{"portals":[]}}}"#,
            r#"{"source":{"iscsi":{"portals":null}}}"#,
            r#"{"source":{"iscsi":{"portals":["192.0.2.1"],"lun":2}}}"#,
            r#"{"source":{"iscsi":{}}}"#,
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
        for patch in [reset, forever, portals, AttachmentPatch::default()] {
            let json = serde_json::to_string(&patch).unwrap();
            assert_eq!(parse(&json).unwrap(), patch, "{json}");
        }
    }
}
