//! The sequences of calls that kubelets make.

use berth_api::Code;
use berth_api::types::Fence;
use serde_json::json;

use super::{Rig, options, paths, xfs};
use crate::filesystem::Content;

const NBD0: &str = "/dev/nbd0";

/// Kubernetes 1.3: attach and mount for each pod; unmount for each; detach by the device, after the last one.
#[tokio::test]
async fn the_early_dialect() {
    let rig = Rig::new();
    let json = xfs("vol-1");
    rig.ok(&["init"]).await;
    let reply = rig.ok(&["attach", &json]).await;
    assert_eq!(reply.device, Some(NBD0.into()));
    assert_eq!(rig.world.done(), ["create vol-1", "attach vol-1"]);
    rig.ok(&["mount", "/pods/1", NBD0, &json]).await;
    assert_eq!(
        rig.world.done(),
        ["make xfs /dev/nbd0", "mount /dev/nbd0 /pods/1 xfs"]
    );
    // A second pod on the node.
    let reply = rig.ok(&["attach", &json]).await;
    assert_eq!(reply.device, Some(NBD0.into()));
    rig.ok(&["mount", "/pods/2", NBD0, &json]).await;
    assert_eq!(rig.world.done(), ["bind /pods/1 /pods/2"]);
    // The first one goes: two mounts of the device were in the table, so kubelet does not detach.
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.world.done(), ["unmount /pods/1"]);
    // The second one goes, and with it the last mount.
    rig.ok(&["unmount", "/pods/2"]).await;
    assert_eq!(rig.world.done(), ["unmount /pods/2"]);
    // kubelet looks at the directory after the call, and fails for ever when it is gone.
    assert!(rig.world.state().dirs.contains(&paths(&["/pods/2"])[0]));
    rig.ok(&["detach", NBD0]).await;
    assert_eq!(rig.world.done(), ["detach vol-1"]);
    assert_eq!(rig.records(), []);
    // Again, as after a kubelet that was killed before it heard the answer.
    rig.ok(&["unmount", "/pods/2"]).await;
    rig.ok(&["detach", NBD0]).await;
    assert_eq!(rig.world.done(), Vec::<String>::new());
    // The next pod finds the file system.
    rig.ok(&["attach", &json]).await;
    rig.ok(&["mount", "/pods/3", NBD0, &json]).await;
    assert_eq!(
        rig.world.done(),
        [
            "attach vol-1",
            "check xfs /dev/nbd0",
            "mount /dev/nbd0 /pods/3 xfs"
        ]
    );
}

/// The device was taken by another volume between the last unmount of one and the detach that was meant for it.
#[tokio::test]
async fn a_device_of_another_volume_is_not_detached() {
    let rig = Rig::new();
    let (one, two) = (xfs("vol-1"), xfs("vol-2"));
    rig.ok(&["attach", &one]).await;
    rig.ok(&["mount", "/pods/1", NBD0, &one]).await;
    rig.ok(&["unmount", "/pods/1"]).await;
    rig.service.lose("flex.vol-1");
    let reply = rig.ok(&["attach", &two]).await;
    assert_eq!(reply.device, Some(NBD0.into()), "used again");
    rig.world.done();
    // What was meant is gone, so that is a success; what has the device now stays.
    rig.ok(&["detach", NBD0]).await;
    assert_eq!(rig.service.names(), ["flex.vol-2"]);
    // Nobody has unmounted the second volume, so nobody can mean it, neither before its mount nor after.
    let error = rig.fails(&["detach", NBD0]).await;
    assert!(
        error.contains("vol-2") && error.contains("not detached"),
        "{error}"
    );
    rig.ok(&["mount", "/pods/2", NBD0, &two]).await;
    rig.fails(&["detach", NBD0]).await;
    assert_eq!(rig.world.mounted(), paths(&["/pods/2"]));
    assert_eq!(rig.service.names(), ["flex.vol-2"]);
}

/// Another pod has attached the volume again between the last unmount and its detach.
#[tokio::test]
async fn a_volume_that_is_wanted_again_is_not_detached() {
    let rig = Rig::new();
    let json = xfs("vol-1");
    rig.ok(&["attach", &json]).await;
    rig.ok(&["mount", "/pods/1", NBD0, &json]).await;
    rig.ok(&["unmount", "/pods/1"]).await;
    rig.ok(&["attach", &json]).await;
    rig.fails(&["detach", NBD0]).await;
    rig.ok(&["mount", "/pods/2", NBD0, &json]).await;
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
}

#[tokio::test]
async fn a_device_that_is_not_ours_is_not_detached() {
    let rig = Rig::new();
    let json = xfs("vol-1");
    rig.ok(&["attach", &json]).await;
    // What is written down is lost.
    std::fs::remove_dir_all(&rig.config.state_dir).unwrap();
    let error = rig.fails(&["detach", NBD0]).await;
    assert!(error.contains("flex.vol-1"), "{error}");
    rig.ok(&["detach", "/dev/nbd7"]).await;
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
}

/// Kubernetes 1.6 and later, as `init` answers by default: mount and unmount do everything.
#[tokio::test]
async fn the_late_dialect() {
    let rig = Rig::new();
    let json = options("vol-1", &json!({ "kubernetes.io/pvOrVolumeName": "pv-1" }));
    let capabilities = rig.ok(&["init"]).await.capabilities.unwrap();
    assert!(!capabilities.attach);
    let name = rig.ok(&["getvolumename", &json]).await.volume_name;
    assert_eq!(name.as_deref(), Some("vol-1"));
    rig.ok(&["mount", "/pods/1", &json]).await;
    rig.ok(&["mount", "/pods/2", &json]).await;
    // kubelet repeats what it does not know the outcome of.
    rig.ok(&["mount", "/pods/2", &json]).await;
    assert_eq!(rig.world.mounted(), paths(&["/pods/1", "/pods/2"]));
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
    rig.ok(&["unmount", "/pods/2"]).await;
    assert_eq!(rig.service.names(), [""; 0]);
    assert_eq!(rig.records(), []);
    rig.ok(&["unmount", "/pods/2"]).await;
    assert_eq!(
        rig.world.done(),
        [
            "create vol-1",
            "attach vol-1",
            "make xfs /dev/nbd0",
            "mount /dev/nbd0 /pods/1 xfs",
            "bind /pods/1 /pods/2",
            "unmount /pods/1",
            "unmount /pods/2",
            "detach vol-1",
        ]
    );
}

/// With `attach = true`: every step is a call of its own.
#[tokio::test]
async fn the_late_dialect_with_calls_for_attaching() {
    let mut rig = Rig::new();
    rig.config.attach = true;
    assert!(rig.ok(&["init"]).await.capabilities.unwrap().attach);
    let json = options("vol-1", &json!({ "kubernetes.io/pvOrVolumeName": "pv-1" }));
    let reply = rig.ok(&["isattached", &json, "worker-1"]).await;
    assert_eq!(reply.attached, Some(false));
    let reply = rig.ok(&["attach", &json, "worker-1"]).await;
    assert_eq!(reply.device, Some(NBD0.into()));
    let reply = rig.ok(&["isattached", &json, "worker-1"]).await;
    assert_eq!(reply.attached, Some(true));
    let reply = rig.ok(&["waitforattach", NBD0, &json]).await;
    assert_eq!(reply.device, Some(NBD0.into()));
    rig.ok(&["mountdevice", "/global/pv-1", NBD0, &json]).await;
    rig.ok(&["mount", "/pods/1", &json]).await;
    rig.ok(&["mount", "/pods/2", &json]).await;
    let error = rig.fails(&["detach", "pv-1", "worker-1"]).await;
    assert!(error.contains("/global/pv-1"), "{error}");
    rig.ok(&["unmount", "/pods/1"]).await;
    rig.ok(&["unmount", "/pods/2"]).await;
    assert_eq!(rig.world.mounted(), paths(&["/global/pv-1"]));
    rig.ok(&["unmountdevice", "/global/pv-1"]).await;
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
    rig.ok(&["detach", "pv-1", "worker-1"]).await;
    rig.ok(&["detach", "pv-1", "worker-1"]).await;
    assert_eq!(rig.service.names(), [""; 0]);
    assert_eq!(rig.records(), []);
}

/// The controller asks for another node, which is not for this one to do.
#[tokio::test]
async fn other_nodes_are_refused() {
    let rig = Rig::new();
    let json = xfs("vol-1");
    for node in ["worker-1", "WORKER-1.other.example", "storage-name"] {
        rig.ok(&["attach", &json, node]).await;
    }
    for node in ["worker-2", "", "worker-10"] {
        let error = rig.fails(&["attach", &json, node]).await;
        assert!(error.contains("enable-controller-attach-detach"), "{error}");
        rig.fails(&["isattached", &json, node]).await;
        rig.fails(&["detach", "vol-1", node]).await;
    }
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
}

#[tokio::test]
async fn volumes_grow() {
    let rig = Rig::new();
    let json = xfs("vol-1");
    rig.ok(&["mount", "/pods/1", &json]).await;
    let new = (2_u64 << 30).to_string();
    let grow = ["expandfs", &json, "", "/pods/1", &new, "1"];
    let error = rig.fails(&grow).await;
    assert!(error.contains("has not grown"), "{error}");
    let reply = rig.ok(&["expandvolume", &json, "/pods/1", &new, "1"]).await;
    assert_eq!(reply.volume_new_size, Some(2 << 30));
    rig.ok(&["expandvolume", &json, "/pods/1", &new, "1"]).await;
    let reply = rig.ok(&grow).await;
    assert_eq!(reply.volume_new_size, Some(2 << 30));
    let done = rig.world.done();
    assert_eq!(
        done[done.len() - 2..],
        ["resize vol-1", "grow xfs /dev/nbd0"]
    );
    let error = rig
        .fails(&["expandfs", &json, "", "/pods/2", &new, "1"])
        .await;
    assert!(error.contains("not mounted"), "{error}");
    let other = xfs("vol-2");
    rig.fails(&["expandfs", &other, "", "/pods/1", &new, "1"])
        .await;
    rig.fails(&["expandvolume", &other, "/pods/1", &new, "1"])
        .await;
}

/// What a pod wants otherwise than the one before it, of a volume that is attached.
#[tokio::test]
async fn wishes_that_differ() {
    let rig = Rig::new();
    rig.ok(&["mount", "/pods/1", &xfs("vol-1")]).await;
    let resized = options("vol-1", &json!({ "size": "5" }));
    rig.ok(&["mount", "/pods/2", &resized]).await;
    let read = options("vol-1", &json!({ "kubernetes.io/readwrite": "ro" }));
    rig.ok(&["mount", "/pods/3", &read]).await;
    assert!(rig.world.state().mounts[2].is_read_only());
    // Attached so that it can only be read: nobody can write.
    let read = options("vol-1", &json!({ "kubernetes.io/readwrite": "ro" }));
    for pod in ["/pods/1", "/pods/2", "/pods/3"] {
        rig.ok(&["unmount", pod]).await;
    }
    rig.ok(&["mount", "/pods/4", &read]).await;
    let request = rig.service.request("flex.vol-1");
    assert!(request.read_only);
    assert_eq!(
        request.fence,
        Fence::None,
        "a reader does not take the writer's place"
    );
    let error = rig.fails(&["mount", "/pods/5", &xfs("vol-1")]).await;
    assert!(error.contains("conflict-incompatible"), "{error}");
    assert_eq!(rig.world.mounted(), paths(&["/pods/4"]));
}

/// Another tenant would be another volume of the same name.
#[tokio::test]
async fn other_tenants_are_refused() {
    let rig = Rig::new();
    let here = options("vol-1", &json!({ "tenant": "/root" }));
    rig.ok(&["mount", "/pods/1", &here]).await;
    let there = options("vol-2", &json!({ "tenant": "/root/team" }));
    for words in [
        &["mount", "/pods/2", &there][..],
        &["attach", &there],
        &["mountdevice", "/global", "", &there],
        &["expandvolume", &there, "/pods/2", "5", "1"],
    ] {
        let error = rig.fails(words).await;
        assert!(error.contains("/root/team"), "{error}");
    }
    assert_eq!(rig.service.names(), ["flex.vol-1"]);
}

/// The daemon hears who asks.
#[tokio::test]
async fn the_request_id_is_passed_on() {
    let rig = Rig::new();
    rig.ok(&["mount", "/pods/1", &xfs("vol-1")]).await;
    rig.ok(&["unmount", "/pods/1"]).await;
    assert_eq!(*rig.service.requests.lock().unwrap(), ["flex-test"; 2]);
}

/// A volume that has to exist, and does not.
#[tokio::test]
async fn nothing_is_made_unasked() {
    let rig = Rig::new();
    let json = json!({ "volumeID": "vol-1", "kubernetes.io/fsType": "xfs" }).to_string();
    let error = rig.fails(&["mount", "/pods/1", &json]).await;
    assert!(error.contains("no volume vol-1"), "{error}");
    assert_eq!(rig.records(), []);
    rig.service
        .refuse
        .lock()
        .unwrap()
        .replace(Code::AttachedElsewhere);
    let error = rig.fails(&["attach", &xfs("vol-1")]).await;
    assert!(error.contains("attached-elsewhere"), "{error}");
    assert_eq!(rig.world.done(), Vec::<String>::new());
    assert!(!matches!(
        rig.world
            .state()
            .disks
            .get("vol-1")
            .map(|disk| &disk.content),
        Some(Ok(Content::FileSystem(_)))
    ));
}
