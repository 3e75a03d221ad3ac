use proptest::prelude::*;

use super::*;
use crate::types::Isid;

/// SPC-4 6.15.2 and 6.15.3.
#[test]
fn keys_and_reservation_known_bytes() {
    let bytes = [0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x12, 0x34];
    let keys = RegisteredKeys::parse(&bytes).unwrap();
    assert_eq!((keys.generation, &keys.keys[..]), (7, &[0x1234][..]));
    assert_eq!(keys.emit(), bytes);
    let bytes = [
        0, 0, 0, 7, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 0, 0, 5, 0, 0,
    ];
    let report = ReservationReport::parse(&bytes).unwrap();
    let kind = ReservationType::WriteExclusiveRegistrantsOnly;
    assert_eq!(report.reservation, Some((0x1234, Some(kind))));
    assert_eq!(report.emit(), bytes);
    assert_eq!(
        ReservationReport::parse(&[0, 0, 0, 7, 0, 0, 0, 0])
            .unwrap()
            .reservation,
        None
    );
    // Cut off: not the same as "no reservation".
    assert!(ReservationReport::parse(&bytes[..12]).is_err());
}

/// SPC-4 6.15.4, table 219.
#[test]
fn capabilities_known_bytes() {
    let bytes = [0, 8, 0x15, 0x91, 0xea, 0x01, 0, 0];
    let capabilities = ReservationCapabilities::parse(&bytes).unwrap();
    assert!(capabilities.compatible_handling && capabilities.all_target_ports);
    assert!(capabilities.power_loss_capable && capabilities.power_loss_active);
    assert_eq!(capabilities.allow_commands, 1);
    assert!(
        ReservationType::ALL
            .into_iter()
            .all(|kind| capabilities.may_support(kind))
    );
    assert_eq!(capabilities.emit(), bytes);
}

/// SPC-4 6.16.3, table 231.
#[test]
fn out_parameters_known_bytes() {
    let mut bytes = [0; 24];
    (bytes[7], bytes[15], bytes[20]) = (1, 2, 0x0d);
    let parameters = PrOutParameters {
        key: 1,
        action_key: 2,
        specify_initiator_ports: true,
        all_target_ports: true,
        persist_through_power_loss: true,
    };
    assert_eq!(PrOutParameters::parse(&bytes), Ok(parameters));
    assert_eq!(parameters.emit(), bytes);
    assert!(PrOutParameters::parse(&bytes[..23]).is_err());
}

/// SPC-4 7.6.4.6, tables 471 and 472.
#[test]
fn transport_id_known_bytes() {
    let bytes = b"\x45\x00\x00\x20iqn.2026-11.x:a,i,0x80123456abcd";
    let mut bytes = bytes.to_vec();
    bytes.extend_from_slice(&[0; 4]);
    bytes[3] = 36;
    let id = TransportId {
        name: "iqn.2026-11.x:a".into(),
        isid: Some(Isid([0x80, 0x12, 0x34, 0x56, 0xab, 0xcd])),
    };
    assert_eq!(TransportId::parse(&bytes), Ok((id.clone(), 40)));
    assert_eq!(id.emit(), bytes);
    let short = TransportId {
        name: "iqn.a".into(),
        isid: None,
    };
    // SPC-4: the additional length is at least 20.
    assert_eq!(short.emit().len(), 24);
    assert_eq!(TransportId::parse(&short.emit()), Ok((short, 24)));
    assert!(TransportId::parse(&[0x06, 0, 0, 20]).is_err());
}

#[test]
fn types_say_who_is_admitted() {
    use ReservationType as T;
    assert!(T::WriteExclusive.admits_reads() && !T::ExclusiveAccess.admits_reads());
    assert!(!T::WriteExclusive.admits_registrants());
    assert!(T::ExclusiveAccessRegistrantsOnly.admits_registrants());
    for kind in T::ALL {
        assert_eq!(T::from_bits(kind as u8), Some(kind));
        assert_eq!(kind.is_all_registrants(), kind as u8 >= 7);
    }
    assert_eq!(T::from_bits(2), None);
}

fn any_type() -> impl Strategy<Value = ReservationType> {
    (0..ReservationType::ALL.len()).prop_map(|i| ReservationType::ALL[i])
}

fn any_initiator() -> impl Strategy<Value = TransportId> {
    ("iqn\\.[a-z0-9.:-]{1,200}", any::<Option<[u8; 6]>>()).prop_map(|(name, isid)| TransportId {
        name,
        isid: isid.map(Isid),
    })
}

proptest! {
    #[test]
    fn in_data_round_trips(
        generation: u32,
        keys in proptest::collection::vec(any::<u64>(), 0..20),
        holder in proptest::option::of((any::<u64>(), any_type())),
        registrations in proptest::collection::vec(
            (any::<(u64, bool, u16)>(), proptest::option::of(any_type()), any_initiator()), 0..5),
    ) {
        let keys = RegisteredKeys { generation, keys };
        prop_assert_eq!(RegisteredKeys::parse(&keys.emit()), Ok(keys));
        let reservation = holder.map(|(key, kind)| (key, Some(kind)));
        let report = ReservationReport { generation, reservation };
        prop_assert_eq!(ReservationReport::parse(&report.emit()), Ok(report));
        let registrations = registrations.into_iter()
            .map(|((key, all_target_ports, relative_port), holds, initiator)| FullStatus {
                key, all_target_ports, holds, relative_port, initiator: Some(initiator),
            })
            .collect();
        let full = FullStatusReport { generation, registrations };
        prop_assert_eq!(FullStatusReport::parse(&full.emit()), Ok(full));
    }

    #[test]
    fn out_data_round_trips(keys: (u64, u64), flags: [bool; 3], relative_port: u16, initiator in any_initiator()) {
        let parameters = PrOutParameters {
            key: keys.0,
            action_key: keys.1,
            specify_initiator_ports: flags[0],
            all_target_ports: flags[1],
            persist_through_power_loss: flags[2],
        };
        prop_assert_eq!(PrOutParameters::parse(&parameters.emit()), Ok(parameters));
        let list = RegisterAndMove {
            key: keys.0,
            action_key: keys.1,
            unregister: flags[0],
            persist_through_power_loss: flags[1],
            relative_port,
            initiator,
        };
        prop_assert_eq!(RegisterAndMove::parse(&list.emit()), Ok(list));
    }

    #[test]
    fn any_bytes_are_safe(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), fix: bool) {
        if fix && bytes.len() > 32 {
            bytes[4..8].copy_from_slice(&[0, 0, 0, 190]);
            bytes[28..32].copy_from_slice(&[0, 0, 0, 30]);
        }
        let _ = (RegisteredKeys::parse(&bytes), ReservationReport::parse(&bytes));
        let _ = (ReservationCapabilities::parse(&bytes), FullStatusReport::parse(&bytes));
        let _ = (PrOutParameters::parse(&bytes), RegisterAndMove::parse(&bytes));
        let _ = TransportId::parse(&bytes);
    }
}
