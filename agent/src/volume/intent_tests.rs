//! Intents that come back as they were, and files that are not as they should be.

use super::*;

fn request(json: &str) -> AttachRequest {
    serde_json::from_str(json).expect("a valid request")
}

fn intent() -> Intent {
    let request = request(
        r#"{"source":{"iscsi":{"portals":["192.0.2.1:3260"],"target":"iqn.2026-11.example:t","lun":3,
           "auth":{"chap":{"user":"u","secret":"first-secret-value","mutual":{"user":"t","secret":"second-secret-value"}}}}},
           "digests":{"header":"require","data":"off"},"read_only":true,"fence":"reservation",
           "recovery_timeout_seconds":7}"#,
    );
    let identity = Some(KnownIdentity {
        designator: "naa.6001".to_owned(),
        block_bytes: 512,
    });
    Intent {
        identity,
        clean: false,
        fence: Some(KnownFence {
            epoch: 9,
            standing: Standing::Held,
        }),
        ..Intent::new(request, Isid::random([1, 2, 3], 4))
    }
}

#[test]
fn paths_keep_their_numbers_and_retired_ones_do_not_come_back() {
    let portal = |n: u8| -> Portal { format!("192.0.2.{n}").parse().expect("a portal") };
    let mut intent = intent();
    intent.paths[0].portal_group = Some(1);
    intent
        .set_portals(&[portal(2), portal(1), portal(2)])
        .expect("room");
    assert_eq!(intent.portals(), [portal(2), portal(1)]);
    intent.set_portals(&[portal(2)]).expect("room");
    intent.set_portals(&[portal(1), portal(2)]).expect("room");
    let paths: Vec<_> = intent
        .paths
        .iter()
        .map(|path| (path.index, path.portal.clone(), path.retired))
        .collect();
    let expected = [
        (0, portal(1), true),
        (1, portal(2), false),
        (2, portal(1), false),
    ];
    assert_eq!(paths, expected);
    assert_eq!(intent.paths[0].portal_group, Some(1));
    intent.next_path = u16::MAX;
    assert_eq!(intent.set_portals(&[portal(9)]), Err(PathsUsedUp));
}

#[test]
fn epochs_grow_also_when_the_clock_does_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let intents = Intents::open(dir.path()).expect("opens");
    let first = intents.next_epoch().expect("written");
    assert!(u64::from(first) * 1000 >= unix_ms_now() - 60_000);
    assert!(intents.next_epoch().expect("written") > first);
    let ahead = StoredEpoch { last: first + 1000 };
    intents
        .node
        .lock()
        .expect("not poisoned")
        .put("epoch", &ahead)
        .expect("written");
    let reopened = Intents::open(dir.path()).expect("opens");
    assert_eq!(reopened.next_epoch().expect("written"), first + 1001);
    let end = StoredEpoch { last: u32::MAX };
    reopened
        .node
        .lock()
        .expect("not poisoned")
        .put("epoch", &end)
        .expect("written");
    assert!(reopened.next_epoch().is_err());
}

/// As the version before this one wrote it.
#[test]
fn a_file_of_version_1_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let intents = Intents::open(dir.path()).expect("opens");
    let file = r#"{"version":1,"source":{"iscsi":{"portals":["192.0.2.1:3260","192.0.2.2:3260"],
        "target":"iqn.2026-11.example:t","lun":3,"chap":null}},"device":"auto","read_only":false,
        "fence":"none","header_digest":"prefer","data_digest":"prefer","recovery_timeout":120,
        "attach_timeout_seconds":30,"isid":"800102030004","identity":null}"#;
    std::fs::write(dir.path().join("attachments/old.json"), file).expect("writes");
    let (good, bad) = intents.load().expect("lists");
    assert!(bad.is_empty(), "{bad:?}");
    let intent = &good[0].1;
    assert_eq!(intent.isid, Isid::random([1, 2, 3], 4));
    assert!(!intent.clean, "nobody knows what its sessions left");
    assert_eq!((intent.paths.len(), intent.next_path), (2, 2));
    assert_eq!(intent.fence, None);
}

#[test]
fn paths_that_cannot_be_are_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    let intents = Intents::open(dir.path()).expect("opens");
    let name: AttachmentName = "a".parse().expect("a name");
    for spoil in [
        |intent: &mut Intent| intent.next_path = 0,
        |intent: &mut Intent| intent.paths.clear(),
        |intent: &mut Intent| intent.paths[0].retired = true,
        |intent: &mut Intent| intent.paths.push(intent.paths[0].clone()),
    ] {
        let mut intent = intent();
        spoil(&mut intent);
        intents.put(&name, &intent).expect("writes");
        assert_eq!(intents.load().expect("lists").1.len(), 1);
    }
}

#[test]
fn an_intent_comes_back_as_it_was_with_its_secrets_kept_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let intents = Intents::open(dir.path()).expect("opens");
    let name: AttachmentName = "pv-0".parse().expect("a name");
    intents.put(&name, &intent()).expect("writes");
    let text = std::fs::read_to_string(dir.path().join("attachments/pv-0.json")).expect("is there");
    assert!(!text.contains("secret-value"), "{text}");
    let (good, bad) = intents.load().expect("lists");
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!(good, [(name.clone(), intent())]);
    intents.remove(&name).expect("removes");
    assert!(intents.load().expect("lists").0.is_empty());
    assert!(!dir.path().join("secrets/pv-0.json").exists());
}

#[test]
fn a_damaged_intent_does_not_hide_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let intents = Intents::open(dir.path()).expect("opens");
    let name: AttachmentName = "good".parse().expect("a name");
    intents.put(&name, &intent()).expect("writes");
    intents
        .put(&"torn".parse().expect("a name"), &intent())
        .expect("writes");
    std::fs::write(dir.path().join("attachments/torn.json"), "{").expect("writes");
    let (good, bad) = intents.load().expect("lists");
    assert_eq!((good.len(), bad.len()), (1, 1));
    assert_eq!(bad[0].0, "torn");
}
