//! Which requests are served (NBD `proto.md`, Request types, Command flags, Error values).

use super::handshake::{Negotiated, ReplyMode};
use super::wire::reply::Errno;
use super::wire::request::{Command, RequestHeader};
use super::wire::{CommandFlags, PAYLOAD_MAX_BYTES, TransmissionFlags};
use crate::block::Geometry;

/// A request that is answered with an error here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    /// What is wrong, for people.
    pub(super) text: &'static str,
}

const fn refuse<T>(errno: Errno, text: &'static str) -> Result<T, Refusal> {
    Err(Refusal { errno, text })
}

/// What was agreed, as far as it decides which requests are served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) mode: ReplyMode,
    pub(super) flags: TransmissionFlags,
    pub(super) base_allocation: bool,
}

impl Rules {
    pub(super) fn new(negotiated: &Negotiated) -> Self {
        Self {
            mode: negotiated.mode,
            flags: negotiated.flags,
            base_allocation: negotiated.base_allocation,
        }
    }

    /// Whether the request is one that we serve (`proto.md`, Request types, Command flags).
    pub(super) fn check(&self, header: &RequestHeader, device: &Geometry) -> Result<(), Refusal> {
        let extended = self.mode == ReplyMode::Extended;
        let status_payload = self.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        let mut allowed = CommandFlags::FUA;
        match header.command {
            Command::READ if self.mode != ReplyMode::Simple => allowed |= CommandFlags::DF,
            Command::WRITE if extended => allowed |= CommandFlags::PAYLOAD_LEN,
            Command::WRITE_ZEROES => allowed |= CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            Command::BLOCK_STATUS => {
                allowed |= CommandFlags::REQ_ONE;
                allowed.set(CommandFlags::PAYLOAD_LEN, status_payload);
            }
            _ => {}
        }
        if !allowed.contains(header.flags) {
            return refuse(
                Errno::EINVAL,
                "the command does not take one of these flags",
            );
        }
        let has_payload = header.flags.contains(CommandFlags::PAYLOAD_LEN);
        match header.command {
            Command::READ => {
                check_payload_len(header.len_bytes)?;
                check_range(header.offset_bytes, header.len_bytes, device, Errno::EINVAL)
            }
            Command::WRITE => {
                check_payload_len(header.len_bytes)?;
                self.check_writable(device)?;
                check_range(header.offset_bytes, header.len_bytes, device, Errno::ENOSPC)
            }
            Command::WRITE_ZEROES => {
                self.check_writable(device)?;
                check_range(header.offset_bytes, header.len_bytes, device, Errno::ENOSPC)
            }
            Command::TRIM => {
                self.check_writable(device)?;
                check_range(header.offset_bytes, header.len_bytes, device, Errno::EINVAL)
            }
            Command::CACHE => {
                check_range(header.offset_bytes, header.len_bytes, device, Errno::EINVAL)
            }
            Command::FLUSH if header.offset_bytes != 0 || header.len_bytes != 0 => refuse(
                Errno::EINVAL,
                "FLUSH has no range: offset and length must be 0",
            ),
            Command::FLUSH => Ok(()),
            Command::BLOCK_STATUS if !self.base_allocation => {
                refuse(Errno::EINVAL, "no meta context was negotiated")
            }
            Command::BLOCK_STATUS if has_payload => {
                // Length of the range, and the one context that there is.
                if header.len_bytes == 12 {
                    Ok(())
                } else {
                    refuse(
                        Errno::EINVAL,
                        "the payload must name the one context that was agreed",
                    )
                }
            }
            Command::BLOCK_STATUS => {
                check_status_range(header.offset_bytes, header.len_bytes, device)
            }
            _ => refuse(Errno::EINVAL, "unknown command"),
        }
    }

    fn check_writable(&self, device: &Geometry) -> Result<(), Refusal> {
        if device.read_only || self.flags.contains(TransmissionFlags::READ_ONLY) {
            return refuse(Errno::EPERM, "the export is read-only");
        }
        Ok(())
    }
}

fn check_payload_len(len_bytes: u64) -> Result<(), Refusal> {
    if len_bytes > u64::from(PAYLOAD_MAX_BYTES) {
        return refuse(Errno::EINVAL, "longer than the maximum payload of 32 MiB");
    }
    Ok(())
}

fn check_range(
    offset_bytes: u64,
    len_bytes: u64,
    device: &Geometry,
    past_end: Errno,
) -> Result<(), Refusal> {
    match offset_bytes.checked_add(len_bytes) {
        Some(end) if end <= device.size_bytes => Ok(()),
        _ => refuse(past_end, "the range runs past the end of the export"),
    }
}

/// The range of a BLOCK_STATUS.
pub(super) fn check_status_range(
    offset_bytes: u64,
    len_bytes: u64,
    device: &Geometry,
) -> Result<(), Refusal> {
    if len_bytes == 0 {
        return refuse(
            Errno::EINVAL,
            "the status of nothing cannot be told: length is 0",
        );
    }
    check_range(offset_bytes, len_bytes, device, Errno::EINVAL)
}
