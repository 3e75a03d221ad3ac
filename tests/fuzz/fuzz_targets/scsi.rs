//! Replies to SCSI commands and parameter lists: taken or refused; what was taken, written and read again, is the same.
#![no_main]

use std::fmt::Debug;

use berth_iscsi::scsi::ParseError;
use berth_iscsi::scsi::alua::{SetTargetPortGroups, TargetPortGroups};
use berth_iscsi::scsi::capacity::Capacity;
use berth_iscsi::scsi::inquiry::{
    BlockCharacteristics, BlockLimits, DeviceIdentification, Identity, Inquiry,
    LogicalBlockProvisioning, SupportedPages, UnitSerialNumber,
};
use berth_iscsi::scsi::luns::LunList;
use berth_iscsi::scsi::mode::{ModeHeader, ModeParameters};
use berth_iscsi::scsi::opcodes::{ListedOpcode, OpcodeSupport};
use berth_iscsi::scsi::provisioning::{LbaStatusList, UnmapList};
use berth_iscsi::scsi::reservation::{
    FullStatusReport, PrOutParameters, RegisterAndMove, RegisteredKeys, ReservationCapabilities,
    ReservationReport,
};
use libfuzzer_sys::fuzz_target;

/// What a reply says may get lost by being cut off; what is left must be stable.
fn again<T: PartialEq + Debug, B: AsRef<[u8]>>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<T, ParseError>,
    emit: impl Fn(&T) -> B,
) -> Option<T> {
    let first = parse(bytes).ok()?;
    let second = parse(emit(&first).as_ref()).expect("we wrote it");
    let third = parse(emit(&second).as_ref()).expect("we wrote it");
    assert_eq!(second, third);
    Some(first)
}

fuzz_target!(|bytes: &[u8]| {
    let [kind, bytes @ ..] = bytes else { return };
    match kind % 22 {
        0 => drop(again(bytes, Inquiry::parse, Inquiry::emit).map(|i| i.product_text())),
        1 => drop(again(bytes, SupportedPages::parse, SupportedPages::emit)),
        2 => drop(again(
            bytes,
            UnitSerialNumber::parse,
            UnitSerialNumber::emit,
        )),
        3 => {
            let page = again(
                bytes,
                DeviceIdentification::parse,
                DeviceIdentification::emit,
            );
            if let Some(identity) = Identity::choose(page.as_ref(), None) {
                // This is what is stored and compared after a reconnect.
                assert_eq!(
                    Identity::from_text(identity.as_str()).as_ref(),
                    Ok(&identity)
                );
            }
            if let Some(page) = page {
                for designator in &page.designators {
                    let _ = designator.text();
                }
                let _ = (page.port_group(), page.relative_port());
            }
        }
        4 => drop(again(bytes, BlockLimits::parse, BlockLimits::emit)),
        5 => drop(again(
            bytes,
            BlockCharacteristics::parse,
            BlockCharacteristics::emit,
        )),
        6 => drop(again(
            bytes,
            LogicalBlockProvisioning::parse,
            LogicalBlockProvisioning::emit,
        )),
        7 => drop(Capacity::parse10(bytes)),
        8 => drop(again(bytes, Capacity::parse16, Capacity::emit16)),
        9 => drop(again(bytes, LunList::parse, LunList::emit)),
        10 | 11 => {
            let header = if kind % 2 == 0 {
                ModeHeader::Six
            } else {
                ModeHeader::Ten
            };
            let parse = |bytes: &[u8]| ModeParameters::parse(header, bytes);
            if let Some(list) = again(bytes, parse, |list| list.emit(header)) {
                let _ = (list.caching(), list.control());
            }
            let _ = ModeParameters::parse_select(header, bytes);
        }
        12 => drop(OpcodeSupport::parse(bytes)),
        13 => drop(ListedOpcode::parse_all(bytes).map(|all| assert!(all.len() * 8 <= bytes.len()))),
        14 => drop(again(bytes, UnmapList::parse, UnmapList::emit)),
        15 => drop(again(bytes, LbaStatusList::parse, LbaStatusList::emit)),
        16 => drop(again(
            bytes,
            TargetPortGroups::parse,
            TargetPortGroups::emit,
        )),
        17 => drop(again(
            bytes,
            SetTargetPortGroups::parse,
            SetTargetPortGroups::emit,
        )),
        18 => drop(again(bytes, RegisteredKeys::parse, RegisteredKeys::emit)),
        19 => drop(again(
            bytes,
            ReservationReport::parse,
            ReservationReport::emit,
        )),
        20 => {
            again(
                bytes,
                ReservationCapabilities::parse,
                ReservationCapabilities::emit,
            );
            drop(again(
                bytes,
                FullStatusReport::parse,
                FullStatusReport::emit,
            ));
        }
        _ => {
            again(bytes, PrOutParameters::parse, PrOutParameters::emit);
            drop(again(bytes, RegisterAndMove::parse, RegisterAndMove::emit));
        }
    }
});
