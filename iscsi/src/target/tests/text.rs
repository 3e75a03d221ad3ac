//! SendTargets and text negotiation (RFC 7143 11.10, 11.11, appendix C).

use super::*;
use crate::login::TargetAuth;
use crate::target::{Access, PortalGroup};

fn discovery(world: &mut World) -> Client {
    let config = LoginConfig::new(
        name(INITIATOR),
        SessionKind::Discovery,
        Isid::random([9, 9, 9], 9),
    );
    world.try_login(config).unwrap()
}

/// Asks and joins all pages; gives the text and the number of pages.
fn ask(world: &mut World, client: &mut Client, keys: &[u8]) -> (String, usize) {
    let itt = client.itt();
    let request = client.text(Ttt::NONE, itt, keys);
    client.send(world, request);
    let mut all = Vec::new();
    let mut pages = 0;
    loop {
        match client.recv(world) {
            Some(Pdu::TextResponse(response)) => {
                assert_eq!(response.itt, itt);
                pages += 1;
                all.extend_from_slice(&response.data.to_bytes());
                if response.final_ {
                    assert!(response.ttt.is_none() && !response.continue_);
                    let text = String::from_utf8(all).unwrap();
                    return (text.replace('\0', "\n"), pages);
                }
                assert!(!response.ttt.is_none());
                let more = client.text(response.ttt, itt, b"");
                client.send(world, more);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn all_targets_that_the_initiator_may_see() {
    let mut world = World::new();
    for (suffix, access) in [
        ("mine", Access::Only(vec![name(INITIATOR)])),
        (
            "hidden",
            Access::Only(vec![name("iqn.2026-11.io.berth:other")]),
        ),
    ] {
        let mut target = TargetConfig::new(name(&format!("iqn.2026-11.io.berth:{suffix}")));
        target.access = access;
        world.portal.add_target(target).unwrap();
    }
    let mut client = discovery(&mut world);
    let (text, pages) = ask(&mut world, &mut client, b"SendTargets=All\0");
    assert_eq!(pages, 1);
    assert_eq!(
        text,
        "TargetName=iqn.2026-11.io.berth:mine\nTargetAddress=127.0.0.1:3260,1\n\
         TargetName=iqn.2026-11.io.berth:t1\nTargetAddress=127.0.0.1:3260,1\n"
    );
    let one = ask(
        &mut world,
        &mut client,
        b"SendTargets=iqn.2026-11.io.berth:T1\0",
    );
    assert!(one.0.contains("berth:t1") && !one.0.contains("mine"));
    let hidden = ask(
        &mut world,
        &mut client,
        b"SendTargets=iqn.2026-11.io.berth:hidden\0",
    );
    assert_eq!(hidden.0, "");
}

#[test]
fn long_lists_are_paged_with_and_without_the_c_bit() {
    for text_continue in [false, true] {
        let mut world = World::with(PortalSettings {
            text_page_bytes: 700,
            text_continue,
            groups: vec![
                PortalGroup {
                    tag: 1,
                    addresses: vec!["192.0.2.1:3260".into(), "[2001:db8::1]:3260".into()],
                },
                PortalGroup {
                    tag: 2,
                    addresses: vec!["storage.example:860".into()],
                },
            ],
            ..PortalSettings::default()
        });
        for i in 0..100 {
            let target = TargetConfig::new(name(&format!("iqn.2026-11.io.berth:n{i:03}")));
            world.portal.add_target(target).unwrap();
        }
        let mut client = discovery(&mut world);
        let (text, pages) = ask(&mut world, &mut client, b"SendTargets=All\0");
        assert!(pages > 15, "{pages}");
        assert_eq!(text.matches("TargetName=").count(), 101);
        assert_eq!(
            text.matches("TargetAddress=[2001:db8::1]:3260,1\n").count(),
            101
        );
        assert_eq!(
            text.matches("TargetAddress=storage.example:860,2\n")
                .count(),
            101
        );
    }
}

#[test]
fn a_request_in_pieces_is_joined() {
    let mut world = World::new();
    let mut client = discovery(&mut world);
    let itt = client.itt();
    let mut ttt = Ttt::NONE;
    for piece in ["Send", "Targets=A"] {
        let mut part = client.text(ttt, itt, piece.as_bytes());
        (part.final_, part.continue_) = (false, true);
        client.send(&mut world, part);
        match client.recv(&mut world) {
            Some(Pdu::TextResponse(response)) => {
                assert!(!response.final_ && response.data.is_empty());
                ttt = response.ttt;
            }
            other => panic!("{other:?}"),
        }
    }
    let last = client.text(ttt, itt, b"ll\0");
    client.send(&mut world, last);
    match client.recv(&mut world) {
        Some(Pdu::TextResponse(response)) => {
            assert!(response.final_);
            assert!(response.data.to_bytes().starts_with(b"TargetName="));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_that_are_wrong_here() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    let (text, _) = ask(
        &mut world,
        &mut client,
        b"SendTargets=Alle\0SendTargetsPlease=All\0MaxBurstLength=512\0",
    );
    assert_eq!(
        text,
        "SendTargets=Reject\nSendTargetsPlease=NotUnderstood\nMaxBurstLength=Reject\n"
    );
    let (text, _) = ask(&mut world, &mut client, b"SendTargets=\0");
    assert_eq!(
        text,
        format!("TargetName={TARGET}\nTargetAddress=127.0.0.1:3260,1\n")
    );
    // A continuation of nothing, and text that is none.
    for (ttt, keys) in [(Ttt(77), &b""[..]), (Ttt::NONE, &b"no equals sign\0"[..])] {
        let itt = client.itt();
        let request = client.text(ttt, itt, keys);
        client.send(&mut world, request);
        match client.recv(&mut world) {
            Some(Pdu::Reject(reject)) => assert_eq!(reject.reason, 4),
            other => panic!("{other:?}"),
        }
    }
}

/// RFC 7143 13.12: the receive limit may be declared anew.
#[test]
fn the_receive_limit_can_change_in_full_feature_phase() {
    let mut world = World::new();
    let mut client = world.login(Offer::default());
    ask(&mut world, &mut client, b"MaxRecvDataSegmentLength=512\0");
    let read = client.read(0, 4);
    client.send(&mut world, read);
    for i in 0..4 {
        let data = client.recv_data(&mut world);
        assert_eq!((data.data.len(), data.data_sn), (512, i));
    }
}

/// A discovery session carries text, pings and logout.
#[test]
fn discovery_sessions_carry_no_commands() {
    let mut world = World::new();
    let mut client = discovery(&mut world);
    let read = client.read(0, 1);
    client.send(&mut world, read);
    match client.recv(&mut world) {
        Some(Pdu::Reject(reject)) => assert_eq!(reject.reason, 4),
        other => panic!("{other:?}"),
    }
    let ping = client.ping(b"");
    client.send(&mut world, ping);
    assert!(matches!(client.recv(&mut world), Some(Pdu::NopIn(_))));
    let logout = client.logout(0);
    client.send(&mut world, logout);
    assert!(matches!(
        client.recv(&mut world),
        Some(Pdu::LogoutResponse(_))
    ));
    assert!(client.is_closed(&mut world));
}

#[test]
fn discovery_may_ask_for_credentials() {
    let mut world = World::with(PortalSettings {
        discovery_auth: TargetAuth::Chap {
            accounts: Vec::new(),
            mutual: None,
            algorithms: crate::login::ChapAlgorithm::STRONGEST_FIRST.to_vec(),
            required: true,
        },
        ..PortalSettings::default()
    });
    let config = LoginConfig::new(name(INITIATOR), SessionKind::Discovery, Isid::default());
    assert!(world.try_login(config).is_err());
}
