//! What a target answers itself: REPORT LUNS, and commands to LUNs that are not there (SPC-4 6.33, SAM-5 5.11).

use berth_iobuf::Payload;
use bytes::BytesMut;

use super::executor::ScsiReply;
use crate::types::Lun;

const INQUIRY: u8 = 0x12;
const REQUEST_SENSE: u8 = 0x03;
const REPORT_LUNS: u8 = 0xa0;

/// Whether the target answers this command and not the logical unit.
pub(super) fn is_report_luns(cdb: &[u8]) -> bool {
    cdb.first() == Some(&REPORT_LUNS)
}

/// REPORT LUNS with the numbers in `luns`.
pub(super) fn report_luns(cdb: &[u8; 16], luns: impl Iterator<Item = u16>) -> ScsiReply {
    let allocation = u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]) as usize;
    if allocation < 16 {
        // SPC-4 6.33: INVALID FIELD IN CDB.
        return ScsiReply::check_condition(0x05, 0x24, 0x00);
    }
    let entries: Vec<Lun> = match cdb[2] {
        // 01: well-known logical units only, of which there are none.
        0x01 => Vec::new(),
        0x00 | 0x02 => luns.filter_map(Lun::from_number).collect(),
        _ => return ScsiReply::check_condition(0x05, 0x24, 0x00),
    };
    let mut data = BytesMut::with_capacity(8 + entries.len() * 8);
    data.extend_from_slice(&(entries.len() as u32 * 8).to_be_bytes());
    data.extend_from_slice(&[0; 4]);
    for lun in entries {
        data.extend_from_slice(&lun.0);
    }
    data.truncate(allocation);
    ScsiReply {
        data_in: Payload::from(data.freeze()),
        ..ScsiReply::status(0)
    }
}

/// A command to a LUN that is not mapped: INQUIRY and REQUEST SENSE answer, all else is refused with LOGICAL
/// UNIT NOT SUPPORTED.
pub(super) fn absent(cdb: &[u8; 16]) -> ScsiReply {
    const NOT_SUPPORTED: (u8, u8, u8) = (0x05, 0x25, 0x00);
    let (key, asc, ascq) = NOT_SUPPORTED;
    match cdb[0] {
        INQUIRY if cdb[1] & 1 == 0 && cdb[2] == 0 => {
            let mut data = [b' '; 36];
            // Peripheral qualifier 011b, type 1Fh: no logical unit can be here (SPC-4 6.6.2).
            data[..8].copy_from_slice(&[0x7f, 0, 6, 0x02, 31, 0, 0, 0x02]);
            data[8..13].copy_from_slice(b"BERTH");
            cut(&data, u16::from_be_bytes([cdb[3], cdb[4]]).into())
        }
        REQUEST_SENSE => {
            let sense = ScsiReply::check_condition(key, asc, ascq).sense;
            cut(&sense, cdb[4].into())
        }
        _ => ScsiReply::check_condition(key, asc, ascq),
    }
}

fn cut(data: &[u8], allocation: usize) -> ScsiReply {
    ScsiReply {
        data_in: Payload::from(data[..data.len().min(allocation)].to_vec()),
        ..ScsiReply::status(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdb(start: &[u8]) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[..start.len()].copy_from_slice(start);
        cdb
    }

    #[test]
    fn report_luns_is_cut_at_its_allocation_length() {
        let reply = report_luns(
            &cdb(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 24]),
            [0, 1, 300].into_iter(),
        );
        assert_eq!(
            reply.data_in.to_bytes(),
            &[
                0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
            ][..]
        );
        let reply = report_luns(&cdb(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 15]), [0].into_iter());
        assert_eq!((reply.status, reply.sense[12]), (2, 0x24));
        let reply = report_luns(&cdb(&[0xa0, 0, 1, 0, 0, 0, 0, 0, 1, 0]), [0].into_iter());
        assert_eq!(reply.data_in.to_bytes(), &[0; 8][..]);
    }

    #[test]
    fn an_absent_lun_says_so() {
        let reply = absent(&cdb(&[0x12, 0, 0, 0, 5]));
        assert_eq!(reply.data_in.to_bytes(), &[0x7f, 0, 6, 2, 31][..]);
        assert_eq!(absent(&cdb(&[0x12, 1, 0x83, 0, 255])).sense[12], 0x25);
        assert_eq!(absent(&cdb(&[0x00])).sense[12], 0x25);
        assert_eq!(
            absent(&cdb(&[0x03, 0, 0, 0, 18])).data_in.to_bytes()[12],
            0x25
        );
    }
}
