use super::*;
use crate::pdu::testing::{header, known_pdu};
use proptest::prelude::*;

known_pdu! {
    /// RFC 7143 A.4: READ(10), and its digest.
    read_10: ScsiCommand,
    Digests { header: true, data: false },
    "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018
     28000000 00000000 02000000 00000000 563a96d9",
    |bhs| {
        assert_eq!(bhs.opcode(), Some(Opcode::ScsiCommand));
        assert!(!bhs.immediate());
        assert_eq!(bhs.flags(), FINAL | READ);
        assert_eq!(bhs.itt(), Itt(0x1400_0000));
        assert_eq!(bhs.u32(EXPECTED_LEN), 1024);
        assert_eq!(bhs.0[CDB], 0x28);
    },
    ScsiCommand {
        immediate: false,
        final_: true,
        read: true,
        write: false,
        attribute: TaskAttribute::Untagged,
        lun: Lun::default(),
        itt: Itt(0x1400_0000),
        expected_len_bytes: 1024,
        cmd_sn: CmdSn(0x14),
        exp_stat_sn: StatSn(0x18),
        cdb: [0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
        extended_cdb: Bytes::new(),
        bidi_read_len_bytes: None,
        data: Payload::new(),
    }
}

known_pdu! {
    /// A WRITE(10) that waits for R2T.
    write_10: ScsiCommand,
    Digests { header: true, data: true },
    "01a10000 00000000 00000000 00000000 00000010 00000200 00000007 00000009
     2a000000 00080000 01000000 00000000 87de5fa9",
    |bhs| {
        assert_eq!(bhs.flags(), FINAL | WRITE | TaskAttribute::Simple as u8);
        assert_eq!(bhs.cmd_sn(), CmdSn(7));
        assert_eq!(bhs.exp_stat_sn(), StatSn(9));
    },
    ScsiCommand {
        immediate: false,
        final_: true,
        read: false,
        write: true,
        attribute: TaskAttribute::Simple,
        lun: Lun::default(),
        itt: Itt(0x10),
        expected_len_bytes: 512,
        cmd_sn: CmdSn(7),
        exp_stat_sn: StatSn(9),
        cdb: [0x2a, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        extended_cdb: Bytes::new(),
        bidi_read_len_bytes: None,
        data: Payload::new(),
    }
}

known_pdu! {
    /// RFC 7143 11.2.2: a bidirectional command with a CDB of 18 bytes and immediate data.
    long_bidirectional: ScsiCommand,
    Digests::NONE,
    "41e20000 04000006 00010000 00000000 00000011 00000006 00000008 0000000a
     7f000000 0000000a 00000000 00000000
     00030100 aabb0000 00050200 00000400
     68656c6c 6f210000",
    |bhs| {
        assert!(bhs.immediate());
        assert_eq!(bhs.ahs_len_bytes(), 16);
        assert_eq!(bhs.data_len_bytes(), 6);
        assert_eq!(bhs.lun().number(), Some(1));
    },
    ScsiCommand {
        immediate: true,
        final_: true,
        read: true,
        write: true,
        attribute: TaskAttribute::Ordered,
        lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
        itt: Itt(0x11),
        expected_len_bytes: 6,
        cmd_sn: CmdSn(8),
        exp_stat_sn: StatSn(10),
        cdb: [0x7f, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0],
        extended_cdb: Bytes::from_static(&[0xaa, 0xbb]),
        bidi_read_len_bytes: Some(1024),
        data: Payload::from(&b"hello!"[..]),
    }
}

known_pdu! {
    /// CHECK CONDITION, 06/2A/09, underflow 512.
    check_condition: ScsiResponse,
    Digests::BOTH,
    "21820002 00000014 00000000 00000000 00000010 00000000 00000009 00000008
     00000047 00000000 00000000 00000200 f356e6ec
     00127000 06000000 000a0000 00002a09 00000000 2dac5dd0",
    |bhs| {
        assert_eq!(bhs.flags(), FINAL | UNDERFLOW);
        assert_eq!(bhs.0[RESPONSE], 0);
        assert_eq!(bhs.0[STATUS], 2);
        assert_eq!(bhs.target_sn().max_cmd_sn, CmdSn(0x47));
        assert_eq!(bhs.u32(RESIDUAL), 512);
    },
    ScsiResponse {
        response: 0,
        status: 2,
        status_qualifier: 0,
        itt: Itt(0x10),
        snack_tag: 0,
        sn: TargetSn {
            stat_sn: StatSn(9),
            exp_cmd_sn: CmdSn(8),
            max_cmd_sn: CmdSn(0x47),
        },
        exp_data_sn: 0,
        residual: Residual::Underflow(512),
        bidi_read_residual: Residual::None,
        data: sense_data(&[0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 9, 0, 0, 0, 0]),
    }
}

known_pdu! {
    /// All fields, no data: both residuals, qualifier, SNACK tag.
    bidirectional_response: ScsiResponse,
    Digests::NONE,
    "21940008 00000000 12340000 00000000 00000010 00000077 00000009 00000008
     00000047 00000003 00000100 00000200",
    |bhs| {
        assert_eq!(bhs.flags(), FINAL | BIDI_OVERFLOW | OVERFLOW);
        assert_eq!(bhs.u32(SNACK_TAG), 0x77);
    },
    ScsiResponse {
        response: 0,
        status: 8,
        status_qualifier: 0x1234,
        itt: Itt(0x10),
        snack_tag: 0x77,
        sn: TargetSn {
            stat_sn: StatSn(9),
            exp_cmd_sn: CmdSn(8),
            max_cmd_sn: CmdSn(0x47),
        },
        exp_data_sn: 3,
        residual: Residual::Overflow(512),
        bidi_read_residual: Residual::Overflow(256),
        data: Payload::new(),
    }
}

fn command(flags: u8, expected_len: u32, ahs: &[u8], data: usize) -> Result<ScsiCommand, Error> {
    let mut bhs = Bhs::new(Opcode::ScsiCommand, flags);
    bhs.put_u32(EXPECTED_LEN, expected_len);
    ScsiCommand::parse(Frame {
        bhs,
        ahs: Bytes::copy_from_slice(ahs),
        data: Payload::zeroes(data),
    })
}

#[test]
fn contradictions_in_commands_are_refused() {
    // RFC 7143 11.3.1: F or W; a length only with R or W. 11.3.4: immediate data fits the length.
    assert!(command(FINAL, 0, &[], 0).is_ok());
    assert!(command(WRITE, 8, &[], 4).is_ok());
    assert!(command(READ, 8, &[], 0).is_err());
    assert!(command(FINAL, 8, &[], 0).is_err());
    assert!(command(FINAL | READ, 8, &[], 4).is_err());
    assert!(command(FINAL | WRITE, 8, &[], 9).is_err());
    for attribute in 0..=7 {
        assert_eq!(
            command(FINAL | attribute, 0, &[], 0).is_ok(),
            attribute <= 4
        );
    }
}

#[test]
fn additional_headers_are_skipped_or_refused() {
    // RFC 7143 11.2.2
    let both = FINAL | READ | WRITE;
    assert!(command(both, 8, &[0, 2, 0x3f, 0, 7, 0, 0, 0], 0).is_ok());
    let bidi = [0, 5, 2, 0, 0, 0, 0, 9];
    assert_eq!(
        command(both, 8, &bidi, 0).unwrap().bidi_read_len_bytes,
        Some(9)
    );
    assert!(command(both, 8, &bidi.repeat(2), 0).is_err());
    assert!(command(both, 8, &[0, 4, 2, 0, 0, 0, 0, 9], 0).is_err());
    assert!(command(both, 8, &[0, 6, 2, 0, 0, 0, 0, 9], 0).is_err());
    let mut long = vec![0, 246, 1, 0];
    long.resize(252, 0);
    assert!(command(both, 8, &long, 0).is_err());
}

#[test]
fn a_response_that_was_not_delivered_has_no_residual() {
    // RFC 7143 11.4.3
    let mut bhs = header(Opcode::ScsiResponse, FINAL | OVERFLOW | UNDERFLOW);
    let parse = |bhs| {
        ScsiResponse::parse(Frame {
            bhs,
            ahs: Bytes::new(),
            data: Payload::new(),
        })
    };
    assert!(parse(bhs).is_err());
    bhs.0[RESPONSE] = 1;
    assert_eq!(parse(bhs).unwrap().residual, Residual::None);
    assert!(parse(header(Opcode::ScsiResponse, BIDI_OVERFLOW | BIDI_UNDERFLOW)).is_err());
}

#[test]
fn sense_survives_lying_lengths() {
    // RFC 7143 11.4.7; CHECK CONDITION without data is a format error there, and common.
    let mut response = ScsiResponse::parse(Frame {
        bhs: header(Opcode::ScsiResponse, FINAL),
        ahs: Bytes::new(),
        data: Payload::new(),
    })
    .unwrap();
    assert!(response.sense().is_empty());
    for (data, sense, rest) in [
        (&[0u8][..], &[][..], &[][..]),
        (&[0, 0], &[], &[]),
        (&[0, 9, 0x70, 1], &[0x70, 1], &[]),
        (&[0xff, 0xff, 0x70], &[0x70], &[]),
        (&[0, 1, 0x70, 5, 6], &[0x70], &[5, 6]),
        (&[0, 0, 5], &[], &[5]),
    ] {
        response.data = Payload::from(data.to_vec());
        assert_eq!(response.sense(), sense);
        assert_eq!(response.response_data().to_bytes(), rest);
    }
}

proptest! {
    #[test]
    fn any_sense_segment_comes_apart(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (sense, rest) = split_sense(&Payload::from(data.clone()));
        prop_assert_eq!(sense.len() + rest.len(), data.len().saturating_sub(2));
        let built = sense_data(&sense);
        prop_assert_eq!(split_sense(&built).0, sense);
    }
}
