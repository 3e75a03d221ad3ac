//! What a detach leaves is found by the next attach of the LUN, once, and over a restart.

use berth_api::Portal;

use super::*;

fn request(target: &str, lun: u16, portals: &[&str]) -> AttachRequest {
    let portals = portals.join("\",\"");
    let text = format!(
        r#"{{"source":{{"iscsi":{{"portals":["{portals}"],"target":"iqn.2026-11.example:{target}","lun":{lun}}}}}}}"#
    );
    serde_json::from_str(&text).expect("a valid request")
}

fn unclean(request: AttachRequest, number: u16) -> Intent {
    Intent {
        clean: false,
        ..Intent::new(request, Isid::random([1, 2, 3], number))
    }
}

#[test]
fn the_next_attach_of_the_lun_goes_on_with_its_isid_and_paths() {
    let dir = tempfile::tempdir().expect("a directory");
    let left = Leftovers::open(dir.path()).expect("opens");
    let gone = unclean(request("a", 1, &["192.0.2.1", "192.0.2.2"]), 7);
    left.remember(&gone).expect("writes");
    for other in [
        request("b", 1, &["192.0.2.1"]),
        request("a", 2, &["192.0.2.1"]),
    ] {
        assert_eq!(left.resume(&other).expect("room"), None, "another LUN");
    }
    let wanted = request("a", 1, &["192.0.2.3", "192.0.2.2"]);
    let intent = left.resume(&wanted).expect("room").expect("found");
    assert_eq!((intent.isid, intent.clean), (gone.isid, false));
    let portal = |text: &str| text.parse::<Portal>().expect("a portal");
    let paths: Vec<_> = intent
        .paths
        .iter()
        .map(|path| (path.index, path.portal.clone(), path.retired))
        .collect();
    let expected = [
        (0, portal("192.0.2.1"), true),
        (1, portal("192.0.2.2"), false),
        (2, portal("192.0.2.3"), false),
    ];
    assert_eq!(paths, expected);
    assert_eq!(left.resume(&wanted).expect("room"), None, "it is taken");
}

#[test]
fn what_was_logged_out_is_not_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let left = Leftovers::open(dir.path()).expect("opens");
    let request = request("a", 1, &["192.0.2.1"]);
    let clean = Intent::new(request.clone(), Isid::random([1, 2, 3], 4));
    left.remember(&clean).expect("nothing to write");
    assert_eq!(left.resume(&request).expect("room"), None);
}

#[test]
fn a_crash_at_any_point_keeps_it_and_gives_it_to_one_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let request = request("a", 1, &["192.0.2.1"]);
    let gone = unclean(request.clone(), 7);
    let reopen = |intents: &[&Intent]| {
        let left = Leftovers::open(dir.path()).expect("opens");
        left.restore(intents.iter().copied()).expect("reads");
        left
    };
    let left = reopen(&[]);
    left.remember(&gone).expect("writes");
    // Before the intent was removed: the attachment is still there, and has its sessions.
    assert_eq!(reopen(&[&gone]).resume(&request).expect("room"), None);
    // Before the intent of the next attach was written.
    let taken = reopen(&[]).resume(&request).expect("room").expect("found");
    let left = reopen(&[]);
    assert_eq!(left.resume(&request).expect("room"), Some(taken.clone()));
    // Another detach meanwhile does not drop it from the disk.
    left.remember(&unclean(request.clone(), 9)).expect("writes");
    let both = reopen(&[]);
    assert!(both.resume(&request).expect("room").is_some());
    assert!(both.resume(&request).expect("room").is_some());
    // After it was written.
    left.settle(taken.isid, true).expect("writes");
    let last = reopen(&[])
        .resume(&request)
        .expect("room")
        .expect("the other one");
    assert_eq!(last.isid, Isid::random([1, 2, 3], 9));
}

#[test]
fn an_attach_that_could_not_be_kept_gives_it_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let left = Leftovers::open(dir.path()).expect("opens");
    let request = request("a", 1, &["192.0.2.1"]);
    left.remember(&unclean(request.clone(), 7)).expect("writes");
    let intent = left.resume(&request).expect("room").expect("found");
    left.settle(intent.isid, false).expect("nothing to write");
    assert_eq!(left.resume(&request).expect("room"), Some(intent));
}

#[test]
fn the_oldest_is_forgotten_when_there_are_too_many() {
    let dir = tempfile::tempdir().expect("a directory");
    let left = Leftovers::open(dir.path()).expect("opens");
    left.0.lock().expect("nobody panics").free = (0..LEFT_MAX)
        .filter_map(|n| {
            Left::of(&unclean(
                request("full", n as u16, &["192.0.2.1"]),
                n as u16,
            ))
        })
        .collect();
    left.remember(&unclean(request("a", 1, &["192.0.2.1"]), 7777))
        .expect("writes");
    let find = |target, lun| {
        left.resume(&request(target, lun, &["192.0.2.1"]))
            .expect("room")
    };
    assert_eq!(find("full", 0), None);
    assert!(find("full", 1).is_some());
    assert!(find("a", 1).is_some());
}
