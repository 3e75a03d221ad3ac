//! What can go wrong: codes, the error of a service, and the document that a caller gets.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::name::AttachmentName;

/// A row of the code table.
struct Row {
    code: Code,
    word: &'static str,
    status: u16,
    grpc: Grpc,
    retryable: bool,
    title: &'static str,
}

/// gRPC status that a CSI plugin answers with for a code (numbers of `google.rpc.Code`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of gRPC")]
#[repr(i32)]
pub enum Grpc {
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident $word:literal $status:literal $grpc:ident $retry:ident $title:literal;)*) => {
        /// What went wrong, for programs. The one table of codes, with the HTTP status, the gRPC
        /// status of plugins and whether the same call may succeed later without a change to it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
            /// A code of a newer daemon.
            Unknown,
        }

        const TABLE: &[Row] = &[
            $(Row {
                code: Code::$variant,
                word: $word,
                status: $status,
                grpc: Grpc::$grpc,
                retryable: codes!(@$retry),
                title: $title,
            },)*
            Row {
                code: Code::Unknown,
                word: "unknown",
                status: 500,
                grpc: Grpc::Unknown,
                retryable: false,
                title: "Unknown error",
            },
        ];
    };
    (@retry) => { true };
    (@final) => { false };
}

codes! {
    /// The request cannot be meant: malformed JSON, unknown field, bad name.
    InvalidArgument "invalid-argument" 400 InvalidArgument final "The request is not valid";
    /// No token, or a wrong one.
    Unauthenticated "unauthenticated" 401 Unauthenticated final "A valid token is needed";
    /// The caller may not do this.
    Forbidden "forbidden" 403 PermissionDenied final "The caller may not do this";
    /// There is no such thing.
    NotFound "not-found" 404 NotFound final "Not found";
    /// The path exists, the method does not.
    MethodNotAllowed "method-not-allowed" 405 Unimplemented final "The method is not allowed here";
    /// The request did not arrive in time.
    RequestTimeout "request-timeout" 408 DeadlineExceeded retry "The request did not arrive in time";
    /// The name is taken by an attachment with another request.
    ConflictIncompatible "conflict-incompatible" 409 AlreadyExists final "The name is in use for something else";
    /// Another call for the same thing is under way.
    OperationPending "operation-pending" 409 Aborted retry "Another operation is under way";
    /// The device is open.
    InUse "in-use" 412 FailedPrecondition retry "The device is in use";
    /// Another node has it.
    AttachedElsewhere "attached-elsewhere" 412 FailedPrecondition retry "Attached to another node";
    /// Another node took the volume over; the target refuses what this one sends.
    Fenced "fenced" 412 FailedPrecondition final "Another node has taken the volume over";
    /// This node's claim is older than that of another.
    StaleEpoch "stale-epoch" 412 FailedPrecondition final "The claim of this node is outdated";
    /// The body is too long.
    PayloadTooLarge "payload-too-large" 413 InvalidArgument final "The body is too large";
    /// The body is not JSON.
    UnsupportedMediaType "unsupported-media-type" 415 InvalidArgument final "The body must be JSON";
    /// A number is outside what the volume or the node can do.
    OutOfRange "out-of-range" 422 OutOfRange final "A value is out of range";
    /// The target refuses our credentials, or failed to prove its own.
    AuthenticationFailed "authentication-failed" 422 Unauthenticated final "Authentication with the target failed";
    /// The target knows us and does not let us in.
    AccessDenied "access-denied" 422 PermissionDenied retry "The target does not admit this node";
    /// The portal has no such target.
    TargetNotFound "target-not-found" 422 NotFound retry "There is no such target";
    /// The target has no such logical unit.
    LunNotFound "lun-not-found" 422 NotFound retry "There is no such logical unit";
    /// The target broke the protocol, or cannot do what was required.
    TargetIncompatible "target-incompatible" 502 FailedPrecondition final "The target does not fit";
    /// No connection to any portal, or it was lost.
    TargetUnreachable "target-unreachable" 503 Unavailable retry "The target cannot be reached";
    /// The storage fabric does not answer.
    FabricUnavailable "fabric-unavailable" 503 Unavailable retry "The storage fabric is not available";
    /// The daemon starts or stops.
    Unavailable "unavailable" 503 Unavailable retry "The daemon is not ready";
    /// It took longer than allowed.
    Deadline "deadline" 504 DeadlineExceeded retry "It took too long";
    /// Space, attachments or devices are used up.
    Exhausted "exhausted" 507 ResourceExhausted retry "Nothing left of what is needed";
    /// Too many calls at a time.
    Throttled "throttled" 429 ResourceExhausted retry "Too many requests";
    /// This build or this kernel cannot do it.
    NotImplemented "not-implemented" 501 Unimplemented final "Not available here";
    /// The kernel device was taken away from outside.
    DeviceLost "device-lost" 500 FailedPrecondition retry "The device was taken away";
    /// The kernel's NBD driver, or the device, failed.
    DeviceFailed "device-failed" 500 Internal retry "The kernel device failed";
    /// The volume is not the one it was.
    IdentityMismatch "identity-mismatch" 500 Internal final "The volume is not the one expected";
    /// Going on could lose data.
    DataUnsafe "data-unsafe" 500 Internal final "Going on could lose data";
    /// A defect of the daemon, or the node's disk or memory failed it.
    Internal "internal" 500 Internal final "Internal error";
}

impl Code {
    fn row(self) -> &'static Row {
        TABLE
            .iter()
            .find(|row| row.code == self)
            .expect("the table is made with the enum")
    }

    /// All codes that this build gives.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE
            .iter()
            .map(|row| row.code)
            .filter(|&code| code != Self::Unknown)
    }

    /// The word that stands for it in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().word
    }

    /// HTTP status of an answer with this code.
    #[must_use]
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().status).expect("the table holds valid statuses")
    }

    /// gRPC status that a plugin gives for it.
    #[must_use]
    pub fn grpc(self) -> Grpc {
        self.row().grpc
    }

    /// Whether the same call may succeed later without a change to it.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        self.row().retryable
    }

    /// The same for every occurrence, for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().title
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = Cow::<'de, str>::deserialize(deserializer)?;
        Ok(TABLE
            .iter()
            .find(|row| row.word == word)
            .map_or(Self::Unknown, |row| row.code))
    }
}

impl utoipa::PartialSchema for Code {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, Type};
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "What went wrong, for programs. Newer daemons may know more.",
            ))
            .examples(Self::all().map(|code| serde_json::Value::from(code.as_str())))
            .into()
    }
}

impl ToSchema for Code {}

/// An error of a service: a message that the caller may see and a cause that only the log gets.
#[derive(Clone)]
pub struct Error {
    code: Code,
    detail: Cow<'static, str>,
    retryable: bool,
    field: Option<String>,
    attachment: Option<AttachmentName>,
    holder: Option<String>,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with a message for the caller: what was wrong and what would be right, no secrets.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retryable: code.is_retryable(),
            field: None,
            attachment: None,
            holder: None,
            cause: None,
        }
    }

    /// There is no attachment of this name.
    #[must_use]
    pub fn no_attachment(name: &AttachmentName) -> Self {
        Self::new(Code::NotFound, format!("there is no attachment {name}")).with_attachment(name)
    }

    /// A defect or a failure of the node itself: the caller learns no more than that, the log the rest.
    #[must_use]
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(
            Code::Internal,
            "the daemon could not do this; its log has the cause under this request id",
        )
        .with_cause(cause)
    }

    /// Adds what led to it, for the log only.
    #[must_use]
    pub fn with_cause(
        mut self,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.cause = Some(cause.into().into());
        self
    }

    /// Names the field of the request that is wrong, as `source.iscsi.lun`.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Names the attachment.
    #[must_use]
    pub fn with_attachment(mut self, name: &AttachmentName) -> Self {
        self.attachment = Some(name.clone());
        self
    }

    /// Names the attachment unless one is named.
    #[must_use]
    pub(crate) fn or_attachment(self, name: &AttachmentName) -> Self {
        if self.attachment.is_some() {
            self
        } else {
            self.with_attachment(name)
        }
    }

    /// Names who has the volume.
    #[must_use]
    pub fn with_holder(mut self, holder: impl Into<String>) -> Self {
        self.holder = Some(holder.into());
        self
    }

    /// Says otherwise than the table whether the same call may succeed later.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// What went wrong, for programs.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// What went wrong, for people.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// What led to it. Not for answers.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// The document for the caller. `request_id` becomes `instance`.
    #[must_use]
    pub fn to_problem(&self, request_id: Option<&str>) -> Problem {
        Problem {
            type_uri: format!("{TYPE_PREFIX}{}", self.code),
            title: self.code.title().to_owned(),
            status: self.code.status().as_u16(),
            detail: self.detail.clone().into_owned(),
            instance: request_id.map(str::to_owned),
            code: self.code,
            retryable: self.retryable,
            field: self.field.clone(),
            attachment: self.attachment.clone(),
            holder: self.holder.clone(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("code", &self.code)
            .field("detail", &self.detail)
            .field("field", &self.field)
            .field("cause", &self.cause)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause
            .as_deref()
            .map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

/// Before the code in `type`: a URI that names the kind of problem and need not resolve (RFC 9457
/// 3.1.1).
const TYPE_PREFIX: &str = "urn:berth:problem:";

/// The body of every answer that is an error: `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// URI of this kind of problem: `urn:berth:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:berth:problem:target-unreachable")]
    pub type_uri: String,
    /// The same for every occurrence of this kind, for people.
    pub title: String,
    /// The HTTP status, repeated.
    pub status: u16,
    /// What went wrong this time and what would be right, for people.
    pub detail: String,
    /// The request id under which the log has more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What went wrong, for programs.
    pub code: Code,
    /// Whether the same call may succeed later without a change to it.
    pub retryable: bool,
    /// The field of the request that is wrong, as `source.iscsi.lun`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The attachment that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub attachment: Option<AttachmentName>,
    /// Who has the volume, if it is another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)
    }
}
