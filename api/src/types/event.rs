//! What happens: the items of `GET /v1/events`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::attachment::{AttachmentState, Reason};
use crate::name::AttachmentName;
use crate::portal::Portal;

/// Something happened. The `data` of a server-sent event, whose `id` and `event` repeat the id and
/// the kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows from event to event, also over a restart of the daemon; send the last one seen as
    /// `Last-Event-ID` to go on from there.
    pub id: u64,
    /// When it happened.
    pub time_unix_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: NewEvent,
}

/// What happened, before it has a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewEvent {
    /// What kind of thing.
    pub kind: EventKind,
    /// To which attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub attachment: Option<AttachmentName>,
    /// The state that it has now; with `state` only, and missing once the attachment is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AttachmentState>,
    /// The state that it had before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_state: Option<AttachmentState>,
    /// On which path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub portal: Option<Portal>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// One line for people.
    pub message: String,
}

impl NewEvent {
    /// An event with nothing but a kind and a message.
    #[must_use]
    pub fn new(kind: EventKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            attachment: None,
            state: None,
            previous_state: None,
            portal: None,
            reason: None,
            message: message.into(),
        }
    }
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An attachment went from one state to another; from none when new, to none when gone.
    State,
    /// A path came or went.
    Path,
    /// A volume has another size.
    Resized,
    /// Something that the others do not say: the daemon starts or stops, a device is forced away.
    Notice,
    /// Events were dropped here: this reader was too slow or was away for too long. Read the list of
    /// attachments again.
    Gap,
}

impl EventKind {
    /// The word that stands for it in JSON and in the `event` field of server-sent events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Path => "path",
            Self::Resized => "resized",
            Self::Notice => "notice",
            Self::Gap => "gap",
        }
    }
}
