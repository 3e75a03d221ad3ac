//! Names and usage masks of the commands that [`super::Command`] knows.

/// A command as REPORT SUPPORTED OPERATION CODES describes it (SPC-4 6.35).
#[derive(Debug, Clone, Copy)]
pub struct OpcodeInfo {
    /// Operation code.
    pub opcode: u8,
    /// Service action, for operation codes that have them.
    pub service_action: Option<u16>,
    /// Name as in the standard.
    pub name: &'static str,
    /// The CDB usage data: length in bytes by slice length; a bit is set where the device looks at it.
    /// Byte 0 is the operation code itself.
    pub usage: &'static [u8],
}

impl OpcodeInfo {
    /// CDB length in bytes.
    #[must_use]
    pub const fn cdb_len(&self) -> usize {
        self.usage.len()
    }
}

const fn plain(opcode: u8, name: &'static str, usage: &'static [u8]) -> OpcodeInfo {
    OpcodeInfo {
        opcode,
        service_action: None,
        name,
        usage,
    }
}

const fn action(opcode: u8, action: u16, name: &'static str, usage: &'static [u8]) -> OpcodeInfo {
    OpcodeInfo {
        opcode,
        service_action: Some(action),
        name,
        usage,
    }
}

/// The control byte: NACA is looked at.
const C: u8 = 0x04;
const X: u8 = 0xff;

/// All commands, by operation code and service action.
pub const OPCODES: &[OpcodeInfo] = &[
    plain(0x00, "TEST UNIT READY", &[0x00, 0, 0, 0, 0, C]),
    plain(0x03, "REQUEST SENSE", &[0x03, 0x01, 0, 0, X, C]),
    plain(0x08, "READ (6)", &[0x08, 0x1f, X, X, X, C]),
    plain(0x0a, "WRITE (6)", &[0x0a, 0x1f, X, X, X, C]),
    plain(0x12, "INQUIRY", &[0x12, 0x03, X, X, X, C]),
    plain(0x15, "MODE SELECT (6)", &[0x15, 0x11, 0, 0, X, C]),
    plain(0x16, "RESERVE (6)", &[0x16, 0x1f, 0, 0, 0, C]),
    plain(0x17, "RELEASE (6)", &[0x17, 0x1f, 0, 0, 0, C]),
    plain(0x1a, "MODE SENSE (6)", &[0x1a, 0x08, X, X, X, C]),
    plain(0x1b, "START STOP UNIT", &[0x1b, 0x01, 0, 0, 0xf7, C]),
    plain(
        0x1e,
        "PREVENT ALLOW MEDIUM REMOVAL",
        &[0x1e, 0, 0, 0, 0x03, C],
    ),
    plain(
        0x25,
        "READ CAPACITY (10)",
        &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, C],
    ),
    plain(0x28, "READ (10)", &[0x28, 0xf8, X, X, X, X, 0, X, X, C]),
    plain(0x2a, "WRITE (10)", &[0x2a, 0xf8, X, X, X, X, 0, X, X, C]),
    plain(
        0x2e,
        "WRITE AND VERIFY (10)",
        &[0x2e, 0xf6, X, X, X, X, 0, X, X, C],
    ),
    plain(0x2f, "VERIFY (10)", &[0x2f, 0xf6, X, X, X, X, 0, X, X, C]),
    plain(
        0x34,
        "PRE-FETCH (10)",
        &[0x34, 0x02, X, X, X, X, 0, X, X, C],
    ),
    plain(
        0x35,
        "SYNCHRONIZE CACHE (10)",
        &[0x35, 0x02, X, X, X, X, 0, X, X, C],
    ),
    plain(
        0x41,
        "WRITE SAME (10)",
        &[0x41, 0xfe, X, X, X, X, 0, X, X, C],
    ),
    plain(0x42, "UNMAP", &[0x42, 0x01, 0, 0, 0, 0, 0, X, X, C]),
    plain(
        0x55,
        "MODE SELECT (10)",
        &[0x55, 0x11, 0, 0, 0, 0, 0, X, X, C],
    ),
    plain(
        0x5a,
        "MODE SENSE (10)",
        &[0x5a, 0x08, X, X, 0, 0, 0, X, X, C],
    ),
    action(0x5e, 0, "PERSISTENT RESERVE IN (READ KEYS)", PR_IN),
    action(0x5e, 1, "PERSISTENT RESERVE IN (READ RESERVATION)", PR_IN),
    action(
        0x5e,
        2,
        "PERSISTENT RESERVE IN (REPORT CAPABILITIES)",
        PR_IN,
    ),
    action(0x5e, 3, "PERSISTENT RESERVE IN (READ FULL STATUS)", PR_IN),
    action(0x5f, 0, "PERSISTENT RESERVE OUT (REGISTER)", PR_OUT),
    action(0x5f, 1, "PERSISTENT RESERVE OUT (RESERVE)", PR_OUT),
    action(0x5f, 2, "PERSISTENT RESERVE OUT (RELEASE)", PR_OUT),
    action(0x5f, 3, "PERSISTENT RESERVE OUT (CLEAR)", PR_OUT),
    action(0x5f, 4, "PERSISTENT RESERVE OUT (PREEMPT)", PR_OUT),
    action(
        0x5f,
        5,
        "PERSISTENT RESERVE OUT (PREEMPT AND ABORT)",
        PR_OUT,
    ),
    action(
        0x5f,
        6,
        "PERSISTENT RESERVE OUT (REGISTER AND IGNORE EXISTING KEY)",
        PR_OUT,
    ),
    action(
        0x5f,
        7,
        "PERSISTENT RESERVE OUT (REGISTER AND MOVE)",
        PR_OUT,
    ),
    plain(0x88, "READ (16)", &block16(0x88, 0xf8)),
    plain(
        0x89,
        "COMPARE AND WRITE",
        &[0x89, 0xf8, X, X, X, X, X, X, X, X, 0, 0, 0, X, 0, C],
    ),
    plain(0x8a, "WRITE (16)", &block16(0x8a, 0xf8)),
    plain(0x8b, "ORWRITE (16)", &block16(0x8b, 0xf8)),
    plain(0x8e, "WRITE AND VERIFY (16)", &block16(0x8e, 0xf6)),
    plain(0x8f, "VERIFY (16)", &block16(0x8f, 0xf6)),
    plain(0x90, "PRE-FETCH (16)", &block16(0x90, 0x02)),
    plain(0x91, "SYNCHRONIZE CACHE (16)", &block16(0x91, 0x02)),
    plain(0x93, "WRITE SAME (16)", &block16(0x93, 0xff)),
    action(
        0x9e,
        0x10,
        "READ CAPACITY (16)",
        &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, X, X, X, X, 0, C],
    ),
    action(0x9e, 0x12, "GET LBA STATUS", &block16(0x9e, 0x12)),
    plain(
        0xa0,
        "REPORT LUNS",
        &[0xa0, 0, X, 0, 0, 0, X, X, X, X, 0, C],
    ),
    action(
        0xa3,
        0x0a,
        "REPORT TARGET PORT GROUPS",
        &[0xa3, 0xea, 0, 0, 0, 0, X, X, X, X, 0, C],
    ),
    action(
        0xa3,
        0x0c,
        "REPORT SUPPORTED OPERATION CODES",
        &[0xa3, 0x0c, 0x87, X, X, X, X, X, X, X, 0, C],
    ),
    action(
        0xa4,
        0x0a,
        "SET TARGET PORT GROUPS",
        &[0xa4, 0x0a, 0, 0, 0, 0, X, X, X, X, 0, C],
    ),
    plain(0xa8, "READ (12)", &block12(0xa8, 0xf8)),
    plain(0xaa, "WRITE (12)", &block12(0xaa, 0xf8)),
    plain(0xae, "WRITE AND VERIFY (12)", &block12(0xae, 0xf6)),
    plain(0xaf, "VERIFY (12)", &block12(0xaf, 0xf6)),
];

const PR_IN: &[u8] = &[0x5e, 0x1f, 0, 0, 0, 0, 0, X, X, C];
const PR_OUT: &[u8] = &[0x5f, 0x1f, X, 0, 0, X, X, X, X, C];

const fn block16(opcode: u8, flags: u8) -> [u8; 16] {
    [opcode, flags, X, X, X, X, X, X, X, X, X, X, X, X, 0, C]
}

const fn block12(opcode: u8, flags: u8) -> [u8; 12] {
    [opcode, flags, X, X, X, X, X, X, X, X, 0, C]
}

/// The name of the command in `cdb`, for logs; `None` when it is not known.
#[must_use]
pub fn opcode_name(cdb: &[u8]) -> Option<&'static str> {
    let opcode = *cdb.first()?;
    let service_action = u16::from(cdb.get(1).copied().unwrap_or(0) & 0x1f);
    OPCODES
        .iter()
        .find(|info| {
            info.opcode == opcode
                && info
                    .service_action
                    .is_none_or(|wanted| wanted == service_action)
        })
        .map(|info| info.name)
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;

    #[test]
    fn every_listed_command_parses_and_is_listed_once() {
        for (i, info) in OPCODES.iter().enumerate() {
            let mut cdb = [0; 16];
            cdb[0] = info.opcode;
            cdb[1] = info.service_action.unwrap_or(0) as u8;
            assert!(Command::parse(&cdb).is_ok(), "{}", info.name);
            assert_eq!(opcode_name(&cdb), Some(info.name));
            assert_eq!(info.usage[0], info.opcode, "{}", info.name);
            let order = (info.opcode, info.service_action);
            assert!(
                OPCODES[..i]
                    .iter()
                    .all(|before| (before.opcode, before.service_action) < order),
                "{} is out of order",
                info.name
            );
        }
    }

    #[test]
    fn every_opcode_that_parses_is_listed() {
        for opcode in 0..=255u8 {
            let mut cdb = [0; 16];
            cdb[0] = opcode;
            // Service action 0 does not exist for 9Eh, A3h and A4h.
            for action in [0, 0x0a, 0x0c, 0x10, 0x12] {
                cdb[1] = action;
                if Command::parse(&cdb).is_ok() {
                    assert!(opcode_name(&cdb).is_some(), "{opcode:#x}/{action:#x}");
                }
            }
        }
    }
}
