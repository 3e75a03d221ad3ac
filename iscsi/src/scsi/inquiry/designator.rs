//! VPD page 83h: designators, and the identity that is chosen from them (SPC-4 7.8.6).

use std::fmt;

use super::super::ParseError;
use super::super::field::{be16, byte, flag, range};
use super::{text, vpd};

/// Longest identity text in bytes; a designator has at most 255 bytes, each at most `%xx`.
const IDENTITY_MAX_BYTES: usize = 800;

/// What a designator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Association {
    /// The logical unit.
    LogicalUnit,
    /// The target port that the command came through.
    TargetPort,
    /// The target device.
    TargetDevice,
    /// The reserved value.
    Reserved,
}

/// One designator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Designator {
    /// What it names.
    pub association: Association,
    /// 1 binary, 2 ASCII, 3 UTF-8.
    pub code_set: u8,
    /// Designator type: one of the constants here, or another.
    pub kind: u8,
    /// Protocol identifier when PIV is set; 5 is iSCSI.
    pub protocol: Option<u8>,
    /// The designator itself, at most 255 bytes.
    pub bytes: Vec<u8>,
}

impl Designator {
    /// T10 vendor identification.
    pub const T10: u8 = 1;
    /// EUI-64 and its longer forms.
    pub const EUI64: u8 = 2;
    /// NAA.
    pub const NAA: u8 = 3;
    /// Relative target port identifier.
    pub const RELATIVE_PORT: u8 = 4;
    /// Target port group.
    pub const PORT_GROUP: u8 = 5;
    /// SCSI name string.
    pub const SCSI_NAME: u8 = 8;
    /// UUID (SPC-5).
    pub const UUID: u8 = 0xa;

    /// A designator of the logical unit.
    #[must_use]
    pub fn of_unit(code_set: u8, kind: u8, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            association: Association::LogicalUnit,
            code_set,
            kind,
            protocol: None,
            bytes: bytes.into(),
        }
    }

    /// A designator of an iSCSI target port: relative port or port group.
    #[must_use]
    pub fn of_port(kind: u8, number: u16) -> Self {
        let [a, b] = number.to_be_bytes();
        Self {
            association: Association::TargetPort,
            code_set: 1,
            kind,
            protocol: Some(5),
            bytes: vec![0, 0, a, b],
        }
    }
}

/// Page 83h.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceIdentification {
    /// Designators in the order of the page.
    pub designators: Vec<Designator>,
}

impl DeviceIdentification {
    /// Parses the page; a designator that is cut off ends the list.
    ///
    /// # Errors
    /// [`ParseError`] when the page is shorter than its header or another page.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut rest = vpd::body("VPD page 83h", 0x83, bytes)?;
        let mut designators = Vec::new();
        while rest.len() >= 4 {
            let len = usize::from(rest[3]);
            let Some(bytes) = rest.get(4..4 + len) else {
                break;
            };
            designators.push(Designator {
                association: match byte(rest, 1) >> 4 & 3 {
                    0 => Association::LogicalUnit,
                    1 => Association::TargetPort,
                    2 => Association::TargetDevice,
                    _ => Association::Reserved,
                },
                code_set: rest[0] & 0x0f,
                kind: rest[1] & 0x0f,
                protocol: (rest[1] & 0x80 != 0).then_some(rest[0] >> 4),
                bytes: bytes.to_vec(),
            });
            rest = &rest[4 + len..];
        }
        Ok(Self { designators })
    }

    /// The page as bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for designator in &self.designators {
            let association = match designator.association {
                Association::LogicalUnit => 0,
                Association::TargetPort => 1,
                Association::TargetDevice => 2,
                Association::Reserved => 3,
            };
            let bytes = range(&designator.bytes, 0, 255);
            body.extend_from_slice(&[
                designator.protocol.unwrap_or(0) << 4 | designator.code_set & 0x0f,
                flag(designator.protocol.is_some(), 7) | association << 4 | designator.kind & 0x0f,
                0,
                bytes.len() as u8,
            ]);
            body.extend_from_slice(bytes);
        }
        vpd::page(0x83, &body)
    }

    /// The target port group of the port that answered.
    #[must_use]
    pub fn port_group(&self) -> Option<u16> {
        self.port(Designator::PORT_GROUP)
    }

    /// The relative target port identifier of the port that answered.
    #[must_use]
    pub fn relative_port(&self) -> Option<u16> {
        self.port(Designator::RELATIVE_PORT)
    }

    fn port(&self, kind: u8) -> Option<u16> {
        self.designators
            .iter()
            .find(|d| {
                d.association == Association::TargetPort && d.kind == kind && d.bytes.len() == 4
            })
            .map(|d| be16(&d.bytes, 2))
    }
}

/// What a logical unit is, stable over paths, sessions and LUN renumbering; compared before the first
/// write after every reconnect.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(String);

impl Identity {
    /// The best identity that page 83h and, failing that, page 80h offer: NAA 6, other NAA, EUI-64,
    /// UUID, SCSI name, T10 vendor, serial number. `None` when a device names itself in no way, or
    /// only with zeroes and blanks.
    #[must_use]
    pub fn choose(page83: Option<&DeviceIdentification>, serial: Option<&str>) -> Option<Self> {
        page83
            .into_iter()
            .flat_map(|page| &page.designators)
            .filter(|d| d.association == Association::LogicalUnit)
            .filter_map(|d| Some((rank(d)?, Self(render(d)))))
            .min()
            .map(|(_, identity)| identity)
            .or_else(|| {
                let serial = serial?.trim();
                (!serial.is_empty()).then(|| Self(format!("serial.{}", escape(serial.as_bytes()))))
            })
    }

    /// An identity from its text, as kept in a file.
    ///
    /// # Errors
    /// [`ParseError::Value`] when the text is empty, too long or not printable ASCII.
    pub fn from_text(text: &str) -> Result<Self, ParseError> {
        let is_fine = |byte: u8| byte.is_ascii_graphic();
        if text.is_empty() || text.len() > IDENTITY_MAX_BYTES || !text.bytes().all(is_fine) {
            return Err(ParseError::Value {
                what: "identity",
                field: "length in bytes",
                value: text.len() as u64,
                expected: "1 to 800 printable ASCII characters without blanks",
            });
        }
        Ok(Self(text.to_owned()))
    }

    /// The text: kind, dot, value.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0)
    }
}

/// Order of preference, smallest first; `None` for what is no identity.
fn rank(designator: &Designator) -> Option<u8> {
    let bytes = &designator.bytes;
    if bytes.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    match designator.kind {
        Designator::NAA if bytes[0] >> 4 == 6 && bytes.len() == 16 => Some(0),
        Designator::NAA if matches!(bytes.len(), 8 | 16) => Some(1),
        Designator::EUI64 if matches!(bytes.len(), 8 | 12 | 16) => Some(2),
        Designator::UUID if bytes.len() == 18 => Some(3),
        Designator::SCSI_NAME => Some(4),
        Designator::T10 => Some(5),
        _ => None,
    }
}

fn render(designator: &Designator) -> String {
    let bytes = &designator.bytes;
    match designator.kind {
        Designator::NAA => format!("naa.{}", hex(bytes)),
        Designator::EUI64 => format!("eui.{}", hex(bytes)),
        // Two bytes of locator type and reserved come first (SPC-5 7.7.6.11).
        Designator::UUID => format!("uuid.{}", hex(&bytes[2..])),
        Designator::SCSI_NAME => format!("name.{}", escape(bytes)),
        _ => format!("t10.{}", escape(bytes)),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Printable ASCII as it is; blanks, `%` and everything else as `%xx`. Padding at the end is dropped.
fn escape(bytes: &[u8]) -> String {
    let is_padding = |byte: &u8| matches!(*byte, 0 | b' ');
    let end = bytes.len()
        - bytes
            .iter()
            .rev()
            .take_while(|byte| is_padding(byte))
            .count();
    let mut out = String::new();
    for byte in &bytes[..end] {
        match byte {
            b'%' => out.push_str("%25"),
            byte if byte.is_ascii_graphic() => out.push(char::from(*byte)),
            byte => out.push_str(&format!("%{byte:02x}")),
        }
    }
    out
}

impl Designator {
    /// The designator for people.
    #[must_use]
    pub fn text(&self) -> String {
        match (self.kind, rank(self)) {
            (_, Some(_)) => render(self),
            _ if self.code_set != 1 => text(&self.bytes),
            _ => hex(&self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// SPC-4 7.8.6: a page with T10, NAA 6, relative port and port group designators.
    const PAGE: &[u8] = b"\x00\x83\x00\x34\
        \x02\x01\x00\x0cIET     0001\
        \x01\x03\x00\x10\x60\x01\x40\x5a\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\
        \x51\x94\x00\x04\x00\x00\x00\x02\
        \x51\x95\x00\x04\x00\x00\x01\x00";

    #[test]
    fn known_bytes() {
        let page = DeviceIdentification::parse(PAGE).unwrap();
        assert_eq!(page.designators.len(), 4);
        assert_eq!(
            (page.relative_port(), page.port_group()),
            (Some(2), Some(256))
        );
        assert_eq!(page.designators[0].text(), "t10.IET%20%20%20%20%200001");
        assert_eq!(page.designators[2].protocol, Some(5));
        assert_eq!(page.emit(), PAGE);
        let identity = Identity::choose(Some(&page), Some("serial")).unwrap();
        assert_eq!(identity.as_str(), "naa.6001405a0102030405060708090a0b0c");
        assert_eq!(Identity::from_text(identity.as_str()), Ok(identity));
    }

    #[test]
    fn preference_from_worst_to_best() {
        let mut page = DeviceIdentification::default();
        let best = |page: &DeviceIdentification| {
            Identity::choose(Some(page), Some(" 42 "))
                .unwrap()
                .to_string()
        };
        assert_eq!(best(&page), "serial.42");
        let steps: [(u8, Vec<u8>, &str); 6] = [
            (
                Designator::T10,
                b"BERTH   x".to_vec(),
                "t10.BERTH%20%20%20x",
            ),
            (Designator::SCSI_NAME, b"iqn.x\0\0".to_vec(), "name.iqn.x"),
            (
                Designator::UUID,
                [&[0x10, 0][..], &[0xab; 16]].concat(),
                "uuid.abababababababababababababababab",
            ),
            (Designator::EUI64, vec![1; 8], "eui.0101010101010101"),
            (Designator::NAA, vec![0x51; 8], "naa.5151515151515151"),
            (
                Designator::NAA,
                vec![0x61; 16],
                "naa.61616161616161616161616161616161",
            ),
        ];
        for (kind, bytes, expected) in steps {
            page.designators.push(Designator::of_unit(1, kind, bytes));
            assert_eq!(best(&page), expected);
        }
    }

    #[test]
    fn nothing_is_no_identity() {
        let zero = Designator::of_unit(1, Designator::NAA, [0; 16]);
        let mut port = Designator::of_unit(1, Designator::NAA, [0x61; 16]);
        port.association = Association::TargetPort;
        let page = DeviceIdentification {
            designators: vec![zero, port],
        };
        assert_eq!(Identity::choose(Some(&page), Some("  ")), None);
        assert_eq!(Identity::choose(None, None), None);
        assert!(Identity::from_text("").is_err());
        assert!(Identity::from_text("naa.6\n").is_err());
    }

    #[test]
    fn a_designator_that_is_cut_off_ends_the_list() {
        let page = DeviceIdentification::parse(&PAGE[..30]).unwrap();
        assert_eq!(page.designators.len(), 1);
    }

    proptest! {
        #[test]
        fn round_trip(list in proptest::collection::vec(
            (0u8..16, 0u8..16, 0u8..3, proptest::option::of(0u8..16),
             proptest::collection::vec(any::<u8>(), 0..256)), 0..6)) {
            let designators = list.into_iter().map(|(code_set, kind, association, protocol, bytes)| {
                let association = match association {
                    0 => Association::LogicalUnit,
                    1 => Association::TargetPort,
                    _ => Association::TargetDevice,
                };
                Designator { association, code_set, kind, protocol, bytes }
            }).collect();
            let page = DeviceIdentification { designators };
            prop_assert_eq!(DeviceIdentification::parse(&page.emit()), Ok(page));
        }

        /// Whatever a device calls itself, the text is fit for files and logs.
        #[test]
        fn any_bytes_are_safe(mut bytes in proptest::collection::vec(any::<u8>(), 2..400), fix: bool) {
            bytes[1] = 0x83;
            if fix && bytes.len() > 7 {
                bytes[2] = 1;
                bytes[5] &= 0x0f;
                bytes[7] &= 0x1f;
            }
            if let Ok(page) = DeviceIdentification::parse(&bytes)
                && let Some(identity) = Identity::choose(Some(&page), None)
            {
                prop_assert_eq!(Identity::from_text(identity.as_str()), Ok(identity));
            }
        }
    }
}
