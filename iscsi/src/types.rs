//! Numbers of the protocol as types, so that one cannot be taken for another.

use std::fmt;

/// Compares 32-bit serial numbers (RFC 1982, as RFC 7143 4.2.2 asks): whether `a` comes before `b`.
#[must_use]
pub const fn serial_lt(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

macro_rules! serial_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// The number after this one, wrapping at 2^32.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.wrapping_add(1))
            }

            /// Whether this number comes before `other` in serial arithmetic (RFC 1982).
            #[must_use]
            pub const fn is_before(self, other: Self) -> bool {
                serial_lt(self.0, other.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }

        impl From<u32> for $name {
            fn from(value: u32) -> Self {
                Self(value)
            }
        }
    };
}

serial_number! {
    /// Command Sequence Number, session-wide (RFC 7143 4.2.2.1).
    CmdSn
}
serial_number! {
    /// Status Sequence Number, per connection (RFC 7143 4.2.2.2).
    StatSn
}

macro_rules! task_tag {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// The reserved tag 0xFFFFFFFF: no task.
            pub const NONE: Self = Self(0xffff_ffff);

            /// Whether this is the reserved tag.
            #[must_use]
            pub const fn is_none(self) -> bool {
                self.0 == Self::NONE.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }
    };
}

task_tag! {
    /// Initiator Task Tag: names a task of a session (RFC 7143 11.2.1.8).
    Itt
}
task_tag! {
    /// Target Transfer Tag: opaque to the initiator, echoed with the LUN (RFC 7143 11.7.4).
    Ttt
}

/// Initiator part of the session identifier, 6 bytes (RFC 7143 11.12.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Isid(pub [u8; 6]);

impl Isid {
    /// An ISID of the random type (T = 10b): 24 random bits and a 16-bit qualifier.
    #[must_use]
    pub const fn random(random: [u8; 3], qualifier: u16) -> Self {
        let q = qualifier.to_be_bytes();
        Self([0x80, random[0], random[1], random[2], q[0], q[1]])
    }
}

impl fmt::Debug for Isid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isid({self})")
    }
}

impl fmt::Display for Isid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Target Session Identifying Handle; 0 asks for a new session (RFC 7143 11.12.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tsih(pub u16);

/// Connection ID within a session (RFC 7143 11.12.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cid(pub u16);

/// Logical unit number in its 8-byte SAM form, exactly as the target reported it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Lun(pub [u8; 8]);

impl Lun {
    /// Largest number that [`Lun::from_number`] can express.
    pub const NUMBER_MAX: u16 = 0x3fff;

    /// A LUN from its number: peripheral addressing below 256, flat addressing below 16384 (SAM-5
    /// 4.7). `None` above.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        if number > Self::NUMBER_MAX {
            return None;
        }
        let n = number.to_be_bytes();
        let first = if number < 256 { 0 } else { 0x40 | n[0] };
        Some(Self([first, n[1], 0, 0, 0, 0, 0, 0]))
    }

    /// The number of a single-level peripheral or flat LUN; `None` for other addressing methods.
    #[must_use]
    pub fn number(self) -> Option<u16> {
        if self.0[2..] != [0; 6] {
            return None;
        }
        match self.0[0] >> 6 {
            0 if self.0[0] == 0 => Some(u16::from(self.0[1])),
            1 => Some(u16::from_be_bytes([self.0[0] & 0x3f, self.0[1]])),
            _ => None,
        }
    }
}

impl fmt::Debug for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lun({self})")
    }
}

impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            Some(number) => write!(f, "{number}"),
            None => self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// The numbers that every target PDU carries (RFC 7143 11.4.8 to 11.4.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TargetSn {
    /// StatSN of the PDU; in R2T and unsolicited NOP-In the next one (not consumed); in Data-In valid
    /// only with the status bit.
    pub stat_sn: StatSn,
    /// Next CmdSN that the target expects.
    pub exp_cmd_sn: CmdSn,
    /// Last CmdSN that the target accepts.
    pub max_cmd_sn: CmdSn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_order_wraps() {
        assert!(CmdSn(0xffff_ffff).is_before(CmdSn(0)));
        assert!(!CmdSn(0).is_before(CmdSn(0xffff_ffff)));
        assert!(!CmdSn(5).is_before(CmdSn(5)));
    }

    #[test]
    fn lun_numbers_round_trip() {
        for number in [0, 1, 255, 256, 4095, Lun::NUMBER_MAX] {
            assert_eq!(Lun::from_number(number).and_then(Lun::number), Some(number));
        }
        assert_eq!(Lun::from_number(1), Some(Lun([0, 1, 0, 0, 0, 0, 0, 0])));
        assert_eq!(
            Lun::from_number(300),
            Some(Lun([0x41, 0x2c, 0, 0, 0, 0, 0, 0]))
        );
        assert_eq!(Lun::from_number(0x4000), None);
        assert_eq!(Lun([0xc1, 1, 0, 0, 0, 0, 0, 0]).number(), None);
    }
}
