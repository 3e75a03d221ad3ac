//! What must never happen, and what is left when something fails.

use berth_api::Code;
use serde_json::json;

use super::world::Disk;
use super::{Rig, options, paths, xfs};
use crate::filesystem::Content;

const GIB: u64 = 1 << 30;

fn disk(content: Result<Content, String>) -> Disk {
    Disk {
        content,
        size: GIB,
        device_size: None,
    }
}

/// A file system is made on what is proven blank, and on nothing else, by neither dialect.
#[tokio::test]
async fn what_is_not_blank_is_not_touched() {
    let broken = disk(Err("cannot read bytes 0 to 4096".into()));
    let truncated = Disk {
        device_size: Some(GIB / 2),
        ..disk(Ok(Content::Blank))
    };
    let disks = [
        (disk(Ok(Content::FileSystem("ext4".into()))), "of type ext4"),
        (disk(Ok(Content::FileSystem("ntfs".into()))), "of type ntfs"),
        (
            disk(Ok(Content::PartitionTable("gpt".into()))),
            "partition table",
        ),
        (disk(Ok(Content::Luks)), "LUKS"),
        (disk(Ok(Content::Other("swap".into()))), "swap"),
        (disk(Ok(Content::Unknown { at_bytes: 7 })), "at byte 7"),
        (broken, "cannot read"),
        (truncated, "bytes, and the volume"),
    ];
    for (disk, says) in disks {
        let rig = Rig::new();
        let before = disk.content.clone();
        rig.world.state().disks.insert("vol-1".into(), disk);
        let json = xfs("vol-1");
        let late = ["mount", "/pods/1", &json];
        let early = ["mount", "/pods/1", "/dev/nbd0", &json];
        let staged = ["mountdevice", "/global", "/dev/nbd0", &json];
        for words in [&late[..], &early, &staged] {
            let error = rig.fails(words).await;
            assert!(error.contains(says), "{error}");
        }
        let after = rig.world.state().disks["vol-1"].content.clone();
        assert_eq!(after, before);
        let done = rig.world.done();
        let touched = |line: &&String| line.starts_with("make") || line.starts_with("mount");
        assert_eq!(done.iter().find(touched), None, "{done:?}");
        assert_eq!(rig.world.mounted(), paths(&[]));
    }
}

#[tokio::test]
async fn a_reader_makes_nothing() {
    let rig = Rig::new();
    let read = options("vol-1", &json!({ "kubernetes.io/readwrite": "ro" }));
    let error = rig.fails(&["mount", "/pods/1", &read]).await;
    assert!(error.contains("read only"), "{error}");
    assert_eq!(rig.world.content("vol-1"), Content::Blank);
    assert_eq!(rig.service.names(), [""; 0]);
}

/// A pod without a wish gets what is there, and the default only on what is blank.
#[tokio::test]
async fn without_a_wish_what_is_there_will_do() {
    let rig = Rig::new();
    let any = |volume| options(volume, &json!({ "kubernetes.io/fsType": "" }));
    let btrfs = disk(Ok(Content::FileSystem("btrfs".into())));
    rig.world.state().disks.insert("vol-1".into(), btrfs);
    rig.ok(&["mount", "/pods/1", &any("vol-1")]).await;
    rig.ok(&["mount", "/pods/2", &any("vol-2")]).await;
    assert_eq!(rig.world.state().mounts[0].fs_type, "btrfs");
    assert_eq!(
        rig.world.content("vol-2"),
        Content::FileSystem("ext4".into())
    );
    let ntfs = disk(Ok(Content::FileSystem("ntfs".into())));
    rig.world.state().disks.insert("vol-3".into(), ntfs);
    rig.fails(&["mount", "/pods/3", &any("vol-3")]).await;
}

/// Whatever step fails: no mount, no directory, no attachment, no record is left, and the next call succeeds.
#[tokio::test]
async fn a_mount_that_fails_leaves_nothing() {
    for step in ["create", "attach", "make", "mount"] {
        for device in [None, Some("/dev/nbd0")] {
            let rig = Rig::new();
            let json = xfs("vol-1");
            let mut words = vec!["mount", "/pods/1"];
            words.extend(device);
            words.push(&json);
            rig.world.fail(step);
            let error = rig.fails(&words).await;
            assert!(error.contains("the test wants it"), "{step}: {error}");
            assert_eq!(rig.world.mounted(), paths(&[]), "{step}");
            assert!(rig.world.state().dirs.is_empty(), "{step}");
            assert_eq!(rig.service.names(), [""; 0], "{step}");
            assert_eq!(rig.records(), [], "{step}");
            rig.ok(&words).await;
            assert_eq!(rig.world.mounted(), paths(&["/pods/1"]));
        }
    }
}

/// Attached by a call of its own before: a mount that fails detaches in the early dialect, where nobody else would, and does not
/// in the late one, where the controller does.
#[tokio::test]
async fn who_detaches_after_a_mount_that_fails() {
    let rig = Rig::new();
    let json = xfs("vol-1");
    rig.ok(&["attach", &json]).await;
    rig.world.fail("make");
    rig.fails(&["mount", "/pods/1", "/dev/nbd0", &json]).await;
    assert_eq!(rig.service.names(), [""; 0]);
    rig.ok(&["attach", &json, "worker-1"]).await;
    rig.world.fail("make");
    rig.fails(&["mountdevice", "/global", "/dev/nbd0", &json])
        .await;
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
    rig.ok(&["mountdevice", "/global", "/dev/nbd0", &json])
        .await;
}

/// The failure of one pod is none of the other's business.
#[tokio::test]
async fn other_pods_keep_their_volume() {
    let rig = Rig::new();
    let json = xfs("vol-1");
    rig.ok(&["mount", "/pods/1", &json]).await;
    rig.world.fail("bind");
    rig.fails(&["mount", "/pods/2", &json]).await;
    assert_eq!(rig.world.mounted(), paths(&["/pods/1"]));
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.service.names(), [""; 0]);
}

/// Something else is mounted where the volume is to be: it stays.
#[tokio::test]
async fn what_others_mounted_stays() {
    let rig = Rig::new();
    rig.ok(&["mount", "/pods/1", &xfs("vol-1")]).await;
    let error = rig.fails(&["mount", "/pods/1", &xfs("vol-2")]).await;
    assert!(error.contains("is mounted at /pods/1 already"), "{error}");
    assert_eq!(rig.world.mounted(), paths(&["/pods/1"]));
}

/// Every undo succeeds when what it undoes is gone.
#[tokio::test]
async fn what_is_gone_is_undone() {
    let rig = Rig::new();
    for words in [
        &["unmount", "/pods/1"][..],
        &["unmountdevice", "/global"],
        &["detach", "/dev/nbd0"],
        &["detach", "pv-1", "worker-1"],
    ] {
        rig.ok(words).await;
    }
    let json = xfs("vol-1");
    // The attachment is gone, with its device.
    rig.ok(&["mount", "/pods/1", &json]).await;
    rig.service.lose("flex.vol-1");
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.records(), []);
    // The volume is gone from the fabric.
    rig.ok(&["mount", "/pods/1", &json]).await;
    rig.world.state().disks.remove("vol-1");
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.service.names(), [""; 0]);
    // Nothing is written down any more; the mount table still tells.
    rig.ok(&["mount", "/pods/1", &json]).await;
    std::fs::remove_dir_all(&rig.config.state_dir).unwrap();
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.service.names(), [""; 0]);
}

/// berthd is away: what is mounted is unmounted, and the volume is detached when it is back.
#[tokio::test]
async fn without_berthd() {
    let mut rig = Rig::new();
    let json = xfs("vol-1");
    rig.ok(&["mount", "/pods/1", &json]).await;
    rig.stop().await;
    let error = rig.fails(&["mount", "/pods/2", &xfs("vol-2")]).await;
    assert!(error.contains("berthd is not reachable at"), "{error}");
    let error = rig.fails(&["unmount", "/pods/1"]).await;
    assert!(error.contains("berthd is not reachable at"), "{error}");
    assert_eq!(rig.world.mounted(), paths(&[]));
    rig.start();
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.service.names(), [""; 0]);
    // What nothing is known about is unmounted at any rate.
    rig.ok(&["mount", "/pods/1", &json]).await;
    std::fs::remove_dir_all(&rig.config.state_dir).unwrap();
    rig.stop().await;
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.world.mounted(), paths(&[]));
}

/// It comes back while the call waits.
#[tokio::test]
async fn a_restart_of_berthd_is_waited_for() {
    let mut rig = Rig::new();
    rig.config.connect_retry_seconds = 30;
    rig.stop().await;
    let json = xfs("vol-1");
    let words = ["mount", "/pods/1", &json];
    let service = std::sync::Arc::clone(&rig.service);
    let socket = rig.config.socket.clone();
    let (reply, _served) = tokio::join!(rig.ok(&words), async {
        tokio::task::yield_now().await;
        service.serve(&socket)
    });
    assert_eq!(reply.message, None);
}

/// A detach that is refused is tried again by the next call, and nothing is forgotten.
#[tokio::test]
async fn a_detach_that_fails_comes_again() {
    let rig = Rig::new();
    rig.ok(&["mount", "/pods/1", &xfs("vol-1")]).await;
    rig.service.refuse.lock().unwrap().replace(Code::InUse);
    let error = rig.fails(&["unmount", "/pods/1"]).await;
    assert!(error.contains("in-use"), "{error}");
    assert_eq!(rig.world.mounted(), paths(&[]));
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.service.names(), [""; 0]);
    assert_eq!(rig.records(), []);
}

/// Calls about one volume at the same time come one after the other: one makes the file system.
#[tokio::test]
async fn pods_at_the_same_time() {
    let rig = Rig::new();
    let json = xfs("vol-1");
    let mount = async |dir| {
        rig.ok(&["mount", dir, &json]).await;
    };
    tokio::join!(
        mount("/pods/1"),
        mount("/pods/2"),
        mount("/pods/3"),
        mount("/pods/4")
    );
    assert_eq!(rig.world.mounted().len(), 4);
    let done = rig.world.done();
    let count = |start| done.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(
        (count("make"), count("mount"), count("bind")),
        (1, 1, 3),
        "{done:?}"
    );
    for dir in ["/pods/3", "/pods/1", "/pods/4", "/pods/2"] {
        rig.ok(&["unmount", dir]).await;
    }
    assert_eq!(rig.service.names(), [""; 0]);
}
