//! Failures of attach and detach as errors of the API: one place, one wording.

use std::time::Duration;

use berth_api::{AttachmentName, Code, Error};
use berth_iscsi::error::{Error as IscsiError, Incompatibility, LoginStatus, Recovery};

use berth_iscsi::net::ConnectError;
use berth_iscsi::types::Lun;

use crate::block;
use crate::block::lun::probe::ProbeError;
use crate::block::lun::reservation::{FenceError, Fenced};
use crate::nbd::kernel::{DeviceError, Unavailable};

/// An error of the initiator; `portal` where one was tried.
pub(crate) fn from_iscsi(error: IscsiError, target: &str, portal: Option<&str>) -> Error {
    let (code, what) = code_of(&error);
    let retryable = !matches!(error.recovery(), Recovery::Fatal);
    let at = portal.map_or_else(String::new, |portal| format!(" at portal {portal}"));
    Error::new(code, format!("{what} (target {target}{at}): {error}"))
        .with_retryable(retryable)
        .with_cause(error)
}

/// No session could be had.
pub(crate) fn from_connect(failed: ConnectError, target: &str) -> Error {
    let portal = failed.portal.to_string();
    from_iscsi(failed.error, target, Some(&portal))
}

fn code_of(error: &IscsiError) -> (Code, &'static str) {
    match error {
        IscsiError::LoginRejected(status) => match *status {
            LoginStatus::AUTHENTICATION_FAILURE => (
                Code::AuthenticationFailed,
                "the target does not accept the credentials",
            ),
            LoginStatus::AUTHORIZATION_FAILURE => (
                Code::AccessDenied,
                "the target does not admit this initiator",
            ),
            LoginStatus::NOT_FOUND | LoginStatus::TARGET_REMOVED => {
                (Code::TargetNotFound, "the portal has no such target")
            }
            _ => (Code::TargetUnreachable, "the target refuses the login"),
        },
        IscsiError::TargetIncompatible(
            Incompatibility::Authentication(_) | Incompatibility::TargetNotAuthenticated(_),
        ) => (Code::AuthenticationFailed, "authentication failed"),
        IscsiError::TargetIncompatible(_) => (
            Code::TargetIncompatible,
            "the target does not do what was required",
        ),
        IscsiError::Malformed { .. } | IscsiError::TargetMisbehaved(_) | IscsiError::Digest(_) => (
            Code::TargetIncompatible,
            "the portal does not speak iSCSI as it should",
        ),
        IscsiError::Rejected(_) => (Code::TargetIncompatible, "the target refused a request"),
        IscsiError::Lost(_) => (Code::TargetUnreachable, "the target cannot be reached"),
        IscsiError::TimedOut(_) => (Code::Deadline, "the target does not answer in time"),
        IscsiError::Misuse(_) => (Code::InvalidArgument, "the request cannot be carried out"),
    }
}

/// The logical unit cannot be used.
pub(crate) fn from_probe(error: ProbeError, lun: Lun, target: &str) -> Error {
    let code = match &error {
        ProbeError::NoLun => {
            let detail = format!(
                "target {target} has no logical unit {lun}; check the number, or which units the \
                 target shows to this initiator"
            );
            return Error::new(Code::LunNotFound, detail);
        }
        ProbeError::NotADisk(_) | ProbeError::Capacity(_) => Code::TargetIncompatible,
        ProbeError::Command {
            error: block::Error::Fenced,
            ..
        } => Code::AttachedElsewhere,
        ProbeError::Command { .. } => Code::TargetUnreachable,
    };
    Error::new(
        code,
        format!("logical unit {lun} of target {target} cannot be used: {error}"),
    )
    .with_cause(error)
}

/// The unit cannot be made ours, or is not ours any more.
pub(crate) fn from_fence(error: FenceError, target: &str) -> Error {
    let code = match &error {
        FenceError::HeldBy { .. } => Code::AttachedElsewhere,
        FenceError::Fenced(_) => Code::Fenced,
        FenceError::Unsupported { .. } | FenceError::Refused { .. } => Code::TargetIncompatible,
        FenceError::Lost { .. } => Code::TargetUnreachable,
        FenceError::Unsettled => Code::AttachedElsewhere,
    };
    let detail = match &error {
        FenceError::HeldBy { .. } => format!(
            "the LUN of target {target} is in use: {error}; detach it there, or attach with takeover if \
             that node is gone"
        ),
        FenceError::Fenced(_) => {
            format!("the LUN of target {target}: {error}; nothing is sent to it")
        }
        _ => format!("the LUN of target {target} cannot be reserved: {error}"),
    };
    let problem = Error::new(code, detail);
    match &error {
        FenceError::HeldBy { keys } | FenceError::Fenced(Fenced::TakenOver { by: keys }) => {
            match keys.first() {
                Some(key) => problem.with_holder(key.to_string()),
                None => problem,
            }
        }
        _ => problem,
    }
    .with_cause(error)
}

/// The LUN is another unit than it was, or cannot be shown to be the same.
pub(crate) fn identity_changed(target: &str) -> Error {
    let detail = format!(
        "the LUN of target {target} is not, or cannot be shown to be, the unit that was attached; \
         nothing more was sent to it"
    );
    Error::new(Code::IdentityMismatch, detail)
}

/// The LUN does not say which unit it is, and did before.
pub(crate) fn identity_unknown(target: &str) -> Error {
    let detail = format!(
        "the LUN of target {target} does not say at present which unit it is (VPD pages 80h and 83h), and it did \
         before; nothing is sent to it until it does"
    );
    Error::new(Code::TargetUnreachable, detail)
}

/// A login that was to end an old session landed in another portal group.
pub(crate) fn other_group(target: &str, wanted: u16, is: Option<u16>) -> Error {
    let is = is.map_or_else(|| "none".to_owned(), |is| is.to_string());
    let detail = format!(
        "target {target} led us to portal group {is}, where the old session of portal group {wanted} cannot be \
         ended; its commands may still be carried out, so the path waits for its own group, or for \
         stale_session_timeout"
    );
    Error::new(Code::TargetUnreachable, detail)
}

/// The session was lost.
pub(crate) fn lost(detail: impl std::fmt::Display) -> Error {
    Error::new(
        Code::TargetUnreachable,
        format!("the session was lost: {detail}"),
    )
}

/// The attach took longer than it may.
pub(crate) fn deadline(timeout: Duration) -> Error {
    let detail = format!(
        "not attached within {} s; see attach_timeout_seconds, and whether the portal answers",
        timeout.as_secs()
    );
    Error::new(Code::Deadline, detail)
}

/// The export is open.
pub(crate) fn in_use(name: &AttachmentName, clients: u32) -> Error {
    let detail = format!(
        "{name} is open by {clients} NBD client{}; close it first, or detach with force",
        if clients == 1 { "" } else { "s" }
    );
    Error::new(Code::InUse, detail).with_attachment(name)
}

/// There is no kernel device, and one is wanted.
pub(crate) fn no_device(reason: &Unavailable) -> Error {
    let detail = format!("{reason}; or ask for device \"socket\" and use the NBD socket");
    Error::new(Code::NotImplemented, detail).with_field("device")
}

/// Something is wrong with the kernel device.
pub(crate) fn from_device(error: DeviceError, name: &AttachmentName) -> Error {
    let problem = match &error {
        DeviceError::Unavailable(reason) => no_device(reason),
        DeviceError::InUse { .. } => {
            let detail = format!("{error}; close or unmount it first, or detach with force");
            Error::new(Code::InUse, detail)
        }
        DeviceError::Lost { .. } => {
            let detail = format!("{error}; its users get errors. Attach again for a new device");
            Error::new(Code::DeviceLost, detail)
        }
        DeviceError::TimedOut { .. } => Error::new(Code::Deadline, error.to_string()),
        DeviceError::Driver(_) | DeviceError::Io { .. } => {
            Error::new(Code::DeviceFailed, error.to_string())
        }
    };
    problem.with_attachment(name).with_cause(error)
}
