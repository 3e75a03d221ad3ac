//! What can go wrong on the command line, how it is told, and the exit code.

use std::io;

use berth_api::Code;
use berth_api::client::{ClientError, Endpoint};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The daemon refused or cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The arguments fit each one by itself, but not together.
    #[error("{0}")]
    Usage(String),
    /// Something on this side.
    #[error("{what}: {source}")]
    Local { what: String, source: io::Error },
    /// Nobody reads our output any more.
    #[error("the output was closed")]
    OutputClosed,
    /// It ended without its aim, and has been told about.
    #[error("{0}")]
    Unsuccessful(String),
}

impl Failure {
    pub(super) fn local(what: impl Into<String>, source: io::Error) -> Self {
        Self::Local {
            what: what.into(),
            source,
        }
    }

    /// An error of another part of the program.
    pub(super) fn unsuccessful(error: &impl std::fmt::Display) -> Self {
        Self::Unsuccessful(error.to_string())
    }

    /// See [`super::args::EXIT_CODES`].
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Client(ClientError::Url(_)) => 2,
            Self::Client(ClientError::Unreachable { .. }) => 4,
            Self::Client(ClientError::Timeout(_)) => 5,
            Self::Client(ClientError::Problem(problem)) => match problem.code {
                Code::NotFound | Code::TargetNotFound | Code::LunNotFound => 3,
                Code::Deadline => 5,
                Code::Unavailable => 4,
                _ => 1,
            },
            Self::Client(ClientError::Protocol { .. })
            | Self::Local { .. }
            | Self::Unsuccessful(_) => 1,
            Self::OutputClosed => 0,
        }
    }

    /// The `code` of errors that no daemon gave.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Usage(_) | Self::Client(ClientError::Url(_)) => "usage",
            Self::Client(ClientError::Unreachable { .. }) => "daemon-unreachable",
            Self::Client(ClientError::Timeout(_)) => "deadline",
            _ => "failed",
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Client(ClientError::Unreachable { endpoint, source }) => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    format!("berthd is not running at {endpoint}")
                }
                io::ErrorKind::PermissionDenied => {
                    format!("you may not speak to berthd at {endpoint}")
                }
                _ => format!("cannot connect to berthd at {endpoint}: {source}"),
            },
            other => with_sources(other),
        }
    }

    /// What to do about it.
    pub(super) fn hint(&self) -> Option<String> {
        let Self::Client(error) = self else {
            return None;
        };
        match error {
            ClientError::Unreachable { endpoint, source } => Some(match (endpoint, source.kind()) {
                (_, io::ErrorKind::PermissionDenied) => {
                    "run it as root, or as a member of the socket's group".to_owned()
                }
                (Endpoint::Unix(_), _) => "start it with \"systemctl start berthd\" (to try it out: \
                     \"berthd demo\"), or name its socket with --socket or BERTH_SOCKET"
                    .to_owned(),
                (Endpoint::Tcp(_), _) => {
                    "it listens on TCP only with api.listen and api.token_file in its configuration"
                        .to_owned()
                }
            }),
            ClientError::Timeout(_) => {
                Some("it may still happen: \"berthctl show NAME\" tells, repeating it is safe".to_owned())
            }
            ClientError::Problem(problem) => match problem.code {
                Code::InUse => Some(
                    "close what has it open (unmount it), or give --force: I/O that waits then fails"
                        .to_owned(),
                ),
                Code::ConflictIncompatible => {
                    Some("detach it first, or choose another name".to_owned())
                }
                Code::AccessDenied => {
                    Some("\"berthctl node\" shows the initiator name that the target must admit".to_owned())
                }
                Code::TargetNotFound => {
                    Some("\"berthctl discover PORTAL\" lists what the portal offers".to_owned())
                }
                Code::Internal | Code::DataUnsafe | Code::IdentityMismatch => problem
                    .instance
                    .as_ref()
                    .map(|id| format!("the log has more: journalctl -u berthd | grep {id}")),
                _ => None,
            },
            ClientError::Protocol { .. } | ClientError::Url(_) => None,
        }
    }
}

/// An error and what led to it, in one line.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        source = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable(kind: io::ErrorKind) -> Failure {
        Failure::Client(ClientError::Unreachable {
            endpoint: Endpoint::Unix("/run/berth/api.sock".into()),
            source: kind.into(),
        })
    }

    fn problem(code: Code) -> Failure {
        let problem = berth_api::Error::new(code, "it is so").to_problem(Some("abc"));
        Failure::Client(ClientError::Problem(Box::new(problem)))
    }

    #[test]
    fn exit_codes_are_those_of_the_help() {
        for (failure, code) in [
            (problem(Code::InUse), 1),
            (problem(Code::TargetUnreachable), 1),
            (Failure::Usage(String::new()), 2),
            (problem(Code::NotFound), 3),
            (problem(Code::LunNotFound), 3),
            (unreachable(io::ErrorKind::NotFound), 4),
            (problem(Code::Deadline), 5),
            (
                Failure::Client(ClientError::Timeout(std::time::Duration::ZERO)),
                5,
            ),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure}");
            assert!(super::super::args::EXIT_CODES.contains(&format!("\n  {code}  ")));
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let failure = unreachable(io::ErrorKind::ConnectionRefused);
        assert_eq!(
            failure.text(),
            "berthd is not running at /run/berth/api.sock"
        );
        assert!(failure.hint().unwrap().contains("systemctl start berthd"));
        let failure = unreachable(io::ErrorKind::PermissionDenied);
        assert!(failure.hint().unwrap().contains("group"));
        let failure = problem(Code::Internal);
        assert_eq!(failure.text(), "it is so (internal)");
        assert!(failure.hint().unwrap().ends_with("grep abc"));
    }
}
