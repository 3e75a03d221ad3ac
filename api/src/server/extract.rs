//! Taking requests apart, with errors that name the field and what would be right.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};
use zeroize::Zeroizing;

use super::context::Failure;
use crate::error::{Code, Error};
use crate::name::{AttachmentName, VolumeName};
use crate::service::Call;

/// Longest body of a request, in bytes.
const BODY_LEN_MAX: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        check_media_type(&parts)?;
        let bytes = read_body(body).await?;
        Ok(Self(parse_json(&bytes)?))
    }
}

fn check_media_type(parts: &Parts) -> Result<(), Error> {
    let given = parts
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = given.map(|text| text.split(';').next().unwrap_or_default().trim());
    let fits = |essence: &str| {
        essence.eq_ignore_ascii_case("application/json")
            || parts.method == Method::PATCH
                && essence.eq_ignore_ascii_case("application/merge-patch+json")
    };
    if essence.is_some_and(fits) {
        return Ok(());
    }
    Err(Error::new(
        Code::UnsupportedMediaType,
        "the body must be JSON and say so: Content-Type: application/json",
    ))
}

/// Reads a body into memory that is cleared after use: it may hold secrets.
async fn read_body(body: Body) -> Result<Zeroizing<Vec<u8>>, Error> {
    let collect = Limited::new(body, BODY_LEN_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, collect).await {
        Err(_) => Err(Error::new(
            Code::RequestTimeout,
            format!(
                "the body did not arrive within {} s",
                BODY_TIMEOUT.as_secs()
            ),
        )),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Error::new(
            Code::PayloadTooLarge,
            format!("a body has at most {BODY_LEN_MAX} bytes"),
        )),
        Ok(Err(error)) => Err(
            Error::new(Code::InvalidArgument, "the body did not arrive whole").with_cause(error),
        ),
        Ok(Ok(collected)) => Ok(Zeroizing::new(collected.to_bytes().to_vec())),
    }
}

/// Parses a body. The error names the field by its path, as `source.iscsi.lun`.
fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::new(
            Code::InvalidArgument,
            "the body is empty, expected a JSON object",
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // Of a text that is not JSON the place says more than the path. serde_json also calls it a
        // syntax error when an enum is neither string nor object, which is a matter of the field.
        match serde_json::from_slice::<IgnoredAny>(bytes) {
            Err(syntax) => not_json(&syntax),
            Ok(_) if error.inner().is_syntax() => bad_field(&path, "expected an object"),
            Ok(_) => bad_field(&path, &error.inner().to_string()),
        }
    })?;
    json.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> Error {
    Error::new(
        Code::InvalidArgument,
        format!("the body is not valid JSON: {error}"),
    )
}

fn bad_field(path: &str, text: &str) -> Error {
    // The place is an offset into a body that the caller may have built by program: the path serves
    // better.
    let text = text.rfind(" at line ").map_or(text, |end| &text[..end]);
    let (path, text) = if path.split('.').any(|part| part == "auth" || part == "chap") {
        without_value(path, text)
    } else {
        (path, text)
    };
    let error = |detail: String| Error::new(Code::InvalidArgument, detail);
    match path {
        "." | "?" => error(format!("the body does not fit: {text}")),
        field => error(format!("{field}: {text}")).with_field(field),
    }
}

/// Cuts what the caller sent out of a path and a message of serde: below `auth` it could be a secret
/// in the wrong place, and messages go to the log.
fn without_value<'a>(path: &'a str, text: &'a str) -> (&'a str, &'a str) {
    let echoes = [
        "invalid type",
        "invalid value",
        "unknown variant",
        "unknown field",
    ];
    if !echoes.iter().any(|start| text.starts_with(start)) {
        return (path, text);
    }
    // The path ends with the name of a field that is unknown.
    let path = match path.rsplit_once('.') {
        Some((parent, _)) if text.starts_with("unknown field") => parent,
        _ => path,
    };
    let text = text
        .rfind("expected ")
        .map_or("does not fit", |start| &text[start..]);
    (path, text)
}

/// The parameters of a query; unknown ones are refused if the type does so.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => {
                let cause = std::error::Error::source(&rejection)
                    .map_or_else(|| rejection.body_text(), ToString::to_string);
                Err(Failure(Error::new(
                    Code::InvalidArgument,
                    format!("the query does not fit: {cause}"),
                )))
            }
        }
    }
}

/// The name of an attachment in the path.
pub(super) struct Name(pub(super) AttachmentName);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let bad =
            |detail: String| Failure(Error::new(Code::InvalidArgument, detail).with_field("name"));
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| bad(rejection.body_text()))?;
        text.parse()
            .map(Self)
            .map_err(|error: crate::name::NameError| bad(error.to_string()))
    }
}

/// The name of a volume in the path.
pub(super) struct Volume(pub(super) VolumeName);

impl<S: Send + Sync> FromRequestParts<S> for Volume {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let bad = |detail: String| {
            Failure(Error::new(Code::InvalidArgument, detail).with_field("volume"))
        };
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| bad(rejection.body_text()))?;
        text.parse()
            .map(Self)
            .map_err(|error: crate::name::VolumeNameError| bad(error.to_string()))
    }
}

/// The identifiers of this request, put there by [`super::context`].
pub(super) struct Caller(pub(super) Call);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(
            parts.extensions.get::<Call>().cloned().unwrap_or_default(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::AttachRequest;

    fn error(json: &str) -> (String, Option<String>) {
        let error = parse_json::<AttachRequest>(json.as_bytes()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let problem = error.to_problem(None);
        (problem.detail, problem.field)
    }

    fn iscsi(inner: &str) -> String {
        format!(
            r#"{{"source":{{"iscsi":{{"portals":["192.0.2.1"],"target":"iqn.2026-11.example:a",{inner}}}}}}}"#
        )
    }

    #[test]
    fn errors_name_the_field_and_what_is_right() {
        let cases = [
            ("", "the body is empty, expected a JSON object"),
            (
                "{",
                "the body is not valid JSON: EOF while parsing an object at line 1 column 1",
            ),
            ("{}", "the body does not fit: missing field `source`"),
            ("[1]", "expected an object"),
            (r#"{"source":5}"#, "source: expected an object"),
            (
                r#"{"source":{"iscsi":{}},"x"}"#,
                "the body is not valid JSON: expected `:` at line 1 column 27",
            ),
            (
                r#"{"source":{"fabric":{}}}"#,
                "source.fabric: missing field `volume`",
            ),
            (
                &iscsi(r#""lun":"1""#),
                "source.iscsi.lun: invalid type: string \"1\", expected u64",
            ),
            (
                &iscsi(r#""lun":16384"#),
                "source.iscsi.lun: 16384 is out of range, expected a number from 0 to 16383",
            ),
            (
                &iscsi(r#""lun":-1"#),
                "source.iscsi.lun: invalid value: integer `-1`, expected u64",
            ),
            (
                &iscsi(r#""lun":1,"luns":2"#),
                "unknown field `luns`, expected one of `portals`, `target`, `lun`, `auth`",
            ),
            (
                r#"{"source":{"iscsi":{"portals":[],"target":"iqn.2026-11.example:a","lun":1}}}"#,
                "source.iscsi.portals: 0 portals given, expected 1 to 16",
            ),
            (
                r#"{"source":{"iscsi":{"portals":["::1"],"target":"iqn.2026-11.example:a","lun":1}}}"#,
                "source.iscsi.portals[0]: an IPv6 address of a portal stands in brackets: [2001:db8::1]:3260",
            ),
            (
                r#"{"source":{"iscsi":{"portals":["a"],"target":"disk","lun":1}}}"#,
                "source.iscsi.target: a target name begins with 'iqn.', 'eui.' or 'naa.'",
            ),
        ];
        for (json, expected) in cases {
            let (detail, _) = error(json);
            assert!(
                detail.contains(expected),
                "{json}\n got: {detail}\nwant: {expected}"
            );
        }
        let (_, field) = error(&iscsi(r#""lun":"1""#));
        assert_eq!(field.as_deref(), Some("source.iscsi.lun"));
        let (detail, _) = error(&format!("{} x", iscsi(r#""lun":1"#)));
        assert!(detail.contains("trailing characters"), "{detail}");
    }

    /// A secret in the wrong place or of the wrong type is not sent back, nor to the log.
    #[test]
    fn errors_do_not_repeat_secrets() {
        for auth in [
            r#""hunter2""#,
            r#"{"chap":"hunter2"}"#,
            r#"{"hunter2":{}}"#,
            r#"{"chap":{"user":"u","secret":["hunter2"]}}"#,
            r#"{"chap":{"user":"u","secret":"hunter2"}}"#,
            r#"{"chap":{"user":"u","hunter2":"secret"}}"#,
            r#"{"chap":{"user":"u","secret":"long-enough-secret","mutual":"hunter2"}}"#,
            r#"{"chap":{"user":"u","secret":"long-enough-secret","mutual":{"secret":"hunter2"}}}"#,
        ] {
            let (detail, field) = error(&iscsi(&format!(r#""lun":1,"auth":{auth}"#)));
            assert!(!detail.contains("hunter2"), "{auth}: {detail}");
            assert!(
                field.is_some_and(|f| f.starts_with("source.iscsi.auth") && !f.contains("hunter2")),
                "{auth}"
            );
        }
        let (detail, field) = error(&iscsi(
            r#""lun":1,"auth":{"chap":{"user":"u","secret":12345678901234}}"#,
        ));
        assert!(
            detail.contains("expected a string") && !detail.contains("1234"),
            "{detail}"
        );
        assert_eq!(field.as_deref(), Some("source.iscsi.auth.chap.secret"));
    }
}
