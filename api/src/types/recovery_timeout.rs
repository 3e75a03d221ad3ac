//! How long I/O waits for a path.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// How long I/O waits while no path works: seconds, or `"forever"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryTimeout {
    /// Until a path works again or the attachment is detached by force.
    Forever,
    /// So many seconds.
    Seconds(u32),
}

impl RecoveryTimeout {
    /// As a duration; `None` is forever.
    #[must_use]
    pub fn as_duration(self) -> Option<Duration> {
        match self {
            Self::Forever => None,
            Self::Seconds(seconds) => Some(Duration::from_secs(seconds.into())),
        }
    }
}

impl Default for RecoveryTimeout {
    fn default() -> Self {
        Self::Seconds(120)
    }
}

impl Serialize for RecoveryTimeout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Forever => serializer.serialize_str("forever"),
            Self::Seconds(seconds) => serializer.serialize_u32(*seconds),
        }
    }
}

impl<'de> Deserialize<'de> for RecoveryTimeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = RecoveryTimeout;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "seconds from 0 to {} or \"forever\"", u32::MAX)
            }

            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<RecoveryTimeout, E> {
                u32::try_from(seconds)
                    .map(RecoveryTimeout::Seconds)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(seconds), &self))
            }

            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<RecoveryTimeout, E> {
                // TOML has only signed numbers.
                u64::try_from(seconds)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(seconds), &self))
                    .and_then(|seconds| self.visit_u64(seconds))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RecoveryTimeout, E> {
                match text {
                    "forever" => Ok(RecoveryTimeout::Forever),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl utoipa::PartialSchema for RecoveryTimeout {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
        OneOfBuilder::new()
            .description(Some(
                "How long I/O waits while no path works: seconds, or \"forever\".",
            ))
            .item(
                ObjectBuilder::new()
                    .schema_type(Type::Integer)
                    .minimum(Some(0))
                    .maximum(Some(u32::MAX)),
            )
            .item(
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .enum_values(Some(["forever"])),
            )
            .into()
    }
}

impl ToSchema for RecoveryTimeout {}
