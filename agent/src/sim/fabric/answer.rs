//! What the fabric answers: envelopes and errors.

use serde_json::{Map, Value, json};

/// Version of the API, the first segment of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ApiVersion {
    /// v2.1.
    V21,
    /// v2.2.
    V22,
}

impl ApiVersion {
    /// All of them, oldest first.
    pub(super) const ALL: [Self; 2] = [Self::V21, Self::V22];

    /// As it stands in paths and answers.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::V21 => "v2.1",
            Self::V22 => "v2.2",
        }
    }

    /// The version with that text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.text() == text)
    }
}

/// What a request asks for, named as errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// POST.
    Create,
    /// GET.
    Read,
    /// PUT.
    Update,
    /// DELETE.
    Delete,
}

impl Verb {
    /// The word for it in errors and in the self-description.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Read => "read",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// A success.
#[derive(Debug)]
pub(super) enum Answer {
    /// One object in its envelope.
    Entity {
        /// Path of the object.
        path: String,
        /// Tenant that it belongs to.
        tenant: String,
        /// The object.
        data: Value,
    },
    /// A page of a collection.
    List(Page),
    /// An object without an envelope.
    Bare(Value),
}

impl Answer {
    /// An object in its envelope; path and tenant are taken from it where it has them.
    pub(super) fn entity(path: impl Into<String>, tenant: &str, data: Value) -> Self {
        Self::Entity {
            path: path.into(),
            tenant: tenant.to_owned(),
            data,
        }
    }

    /// The JSON to send.
    pub(super) fn into_json(self, version: ApiVersion, request_time_ms: u64) -> Value {
        match self {
            Self::Bare(data) => data,
            Self::Entity { path, tenant, data } => json!({
                "tenant": tenant, "path": path, "version": version.text(),
                "request_time": request_time_ms, "metadata": {}, "data": data,
            }),
            Self::List(page) => {
                let metadata = match version {
                    ApiVersion::V21 => json!({ "total": page.total }),
                    ApiVersion::V22 => json!({
                        "limit": page.limit, "offset": page.offset,
                        "request_count": page.rows.len(), "total_count": page.total,
                    }),
                };
                json!({
                    "tenant": page.tenant, "path": page.path, "version": version.text(),
                    "request_time": request_time_ms, "metadata": metadata, "data": page.rows,
                })
            }
        }
    }
}

/// A page of a collection.
#[derive(Debug)]
pub(super) struct Page {
    /// Path of the collection.
    pub(super) path: String,
    /// Tenant of the request.
    pub(super) tenant: String,
    /// Most rows in a page.
    pub(super) limit: usize,
    /// Number of the first row.
    pub(super) offset: usize,
    /// Rows that there are over all pages.
    pub(super) total: usize,
    /// The rows.
    pub(super) rows: Vec<Value>,
}

/// A refusal. The codes are free but for 15 (a snapshot with this uuid exists) and 99 (no key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) http: u16,
    pub(super) name: &'static str,
    pub(super) code: u32,
    pub(super) message: String,
    /// Details of what is wrong in a body.
    pub(super) errors: Vec<String>,
}

/// What clients compare with to the letter.
pub(super) const NO_SESSION: &str =
    "The key provided with the request does not correspond to a valid session.";

impl ApiError {
    fn new(http: u16, name: &'static str, code: u32, message: impl Into<String>) -> Self {
        Self {
            http,
            name,
            code,
            message: message.into(),
            errors: Vec::new(),
        }
    }

    pub(super) fn not_found(what: &str, key: &str) -> Self {
        Self::new(
            404,
            "NotFoundError",
            14,
            format!("{what} {key} does not exist"),
        )
    }

    pub(super) fn no_route(path: &str) -> Self {
        Self::new(
            404,
            "InvalidRouteError",
            8,
            format!("There is no route {path}"),
        )
    }

    pub(super) fn wrong_verb(verb: Verb, path: &str) -> Self {
        let message = format!("{path} has no operation {}", verb.text());
        Self::new(405, "InvalidRouteError", 9, message)
    }

    pub(super) fn conflict(what: &str, key: &str) -> Self {
        Self::new(
            409,
            "ConflictError",
            6,
            format!("{what} {key} exists already"),
        )
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "InvalidRequestError", 10, message)
    }

    /// A snapshot with this uuid is there: clients know the code.
    pub(super) fn snapshot_exists(uuid: &str) -> Self {
        Self::new(
            400,
            "InvalidRequestError",
            15,
            format!("A snapshot with uuid {uuid} exists already"),
        )
    }

    pub(super) fn validation(errors: Vec<String>) -> Self {
        let message = format!("The request is not valid: {}", errors.join("; "));
        Self {
            errors,
            ..Self::new(422, "ValidationFailedError", 5, message)
        }
    }

    pub(super) fn wrong_credentials() -> Self {
        Self::new(
            401,
            "AuthFailedError",
            2,
            "The name or the password is wrong",
        )
    }

    pub(super) fn no_key() -> Self {
        Self::new(
            401,
            "AuthFailedError",
            99,
            "The request has no Auth-Token: log in first",
        )
    }

    pub(super) fn wrong_key() -> Self {
        Self::new(401, "InvalidSessionKeyError", 3, NO_SESSION)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", 7, message)
    }

    /// The JSON to send.
    pub(super) fn to_json(&self, about: &ErrorContext<'_>) -> Value {
        json!({
            "name": self.name, "code": self.code, "http": self.http, "message": self.message,
            "ts": about.ts, "version": about.version, "op": about.op, "tenant": about.tenant,
            "path": about.path, "params": about.params, "connInfo": {}, "client_id": "",
            "client_type": about.client_type, "api_req_id": about.api_req_id, "tenancy_class": "",
            "storage_node_uuid": "", "errors": self.errors,
        })
    }
}

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> Self {
        Self::internal(error.to_string())
    }
}

/// What an error tells about its request.
#[derive(Debug)]
pub(super) struct ErrorContext<'a> {
    pub(super) ts: String,
    pub(super) version: &'a str,
    pub(super) op: &'a str,
    pub(super) tenant: &'a str,
    pub(super) path: &'a str,
    /// The query; strings only.
    pub(super) params: Map<String, Value>,
    pub(super) client_type: &'a str,
    pub(super) api_req_id: u64,
}
