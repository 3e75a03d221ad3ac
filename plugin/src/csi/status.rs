//! Errors as gRPC has them.
//!
//! Kubernetes reads two classes into the codes. After ABORTED, CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED and UNAVAILABLE it
//! takes the outcome for unknown and will undo; after any other it takes for certain that nothing was done. So none of the others
//! is given while something is under way or half done.

use berth_api::client::ClientError;
use berth_api::error::{Code, Grpc};
use tonic::Status;

/// The status for an error of the daemon.
#[must_use]
pub fn of(error: &ClientError) -> Status {
    match error {
        ClientError::Problem(problem) => Status::new(of_code(problem.code), problem.to_string()),
        ClientError::Unreachable { endpoint, source } => {
            Status::unavailable(format!("berthd is not reachable at {endpoint}: {source}"))
        }
        ClientError::Timeout(_) => Status::deadline_exceeded(format!(
            "berthd: {error}; what was asked for may still happen, repeat the call"
        )),
        // The connection broke: whether it was done is unknown.
        ClientError::Protocol { .. } | ClientError::Url(_) => {
            Status::unavailable(format!("berthd: {error}"))
        }
    }
}

fn of_code(code: Code) -> tonic::Code {
    match code.grpc() {
        Grpc::Unknown => tonic::Code::Unknown,
        Grpc::InvalidArgument => tonic::Code::InvalidArgument,
        Grpc::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Grpc::NotFound => tonic::Code::NotFound,
        Grpc::AlreadyExists => tonic::Code::AlreadyExists,
        Grpc::PermissionDenied => tonic::Code::PermissionDenied,
        Grpc::ResourceExhausted => tonic::Code::ResourceExhausted,
        Grpc::FailedPrecondition => tonic::Code::FailedPrecondition,
        Grpc::Aborted => tonic::Code::Aborted,
        Grpc::OutOfRange => tonic::Code::OutOfRange,
        Grpc::Unimplemented => tonic::Code::Unimplemented,
        Grpc::Internal => tonic::Code::Internal,
        Grpc::Unavailable => tonic::Code::Unavailable,
        Grpc::Unauthenticated => tonic::Code::Unauthenticated,
    }
}

/// Whether the caller takes the outcome for unknown.
#[must_use]
pub fn is_uncertain(code: tonic::Code) -> bool {
    use tonic::Code as C;
    matches!(
        code,
        C::Aborted | C::Cancelled | C::DeadlineExceeded | C::ResourceExhausted | C::Unavailable
    )
}

/// A required field is missing.
pub(crate) fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

/// No volume of this identifier.
pub(crate) fn no_volume(id: impl std::fmt::Display) -> Status {
    Status::not_found(format!("there is no volume {id}"))
}

/// What a call of the daemon gives, with "it is not there" as nothing.
pub(crate) fn found<T>(result: Result<T, ClientError>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
        Err(error) => Err(of(&error)),
    }
}

/// What a call of the daemon gives.
pub(crate) trait Told<T> {
    /// The value, or the status for the error.
    fn told(self) -> Result<T, Status>;
}

impl<T> Told<T> for Result<T, ClientError> {
    fn told(self) -> Result<T, Status> {
        self.map_err(|error| of(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_code_of_the_daemon_has_a_status() {
        for code in Code::all() {
            let number = code.grpc() as i32;
            assert_eq!(of_code(code) as i32, number, "{code}");
        }
    }

    /// Nobody may conclude from a lost answer that nothing was done.
    #[test]
    fn lost_answers_are_uncertain() {
        let endpoint = berth_api::client::Endpoint::Unix("/run/berth/api.sock".into());
        for error in [
            ClientError::Timeout(Duration::from_secs(1)),
            ClientError::Protocol {
                what: "cut".to_owned(),
                source: None,
            },
            ClientError::Unreachable {
                endpoint,
                source: std::io::ErrorKind::NotFound.into(),
            },
        ] {
            assert!(is_uncertain(of(&error).code()), "{error}");
        }
    }
}
