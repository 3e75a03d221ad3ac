//! Mounts, as far as they need no device: each test runs in a mount namespace of its own. The lab mounts real devices.

#![allow(clippy::unwrap_used, reason = "this is all test code")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use berth_plugin::limits::Limits;
use berth_plugin::mount::{self, Error};

/// Says to a test that it is in a namespace of its own.
const INSIDE: &str = "BERTH_TEST_IN_NAMESPACE";

/// Runs the test of this name again, alone and in a mount namespace of its own; `true` inside.
fn in_own_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let status = command
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its namespace");
    false
}

fn block_on(test: &str, body: impl AsyncFnOnce(&Path)) {
    if in_own_namespace(test) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // The kernel knows the place without symbolic links.
        runtime.block_on(body(&fs::canonicalize(dir.path()).unwrap()));
    }
}

fn limits() -> Limits {
    Limits {
        busy: Duration::from_millis(300),
        ..Limits::default()
    }
}

fn dirs<const N: usize>(base: &Path, names: [&str; N]) -> [PathBuf; N] {
    names.map(|name| {
        let path = base.join(name);
        fs::create_dir(&path).unwrap();
        path
    })
}

fn count(path: &Path) -> usize {
    mount::at(path).unwrap().len()
}

#[test]
fn a_bind_shows_the_same_and_may_be_read_only() {
    block_on("a_bind_shows_the_same_and_may_be_read_only", async |base| {
        let [source, open, closed] = dirs(base, ["source", "a \\ b\tc\nd", "closed"]);
        mount::bind(&source, &open, false, &limits()).await.unwrap();
        mount::bind(&source, &closed, true, &limits())
            .await
            .unwrap();
        fs::write(open.join("file"), "x").unwrap();
        assert_eq!(fs::read_to_string(closed.join("file")).unwrap(), "x");
        assert!(fs::write(closed.join("file"), "y").is_err());
        assert!(mount::at(&closed).unwrap()[0].is_read_only());
        assert!(!mount::at(&open).unwrap()[0].is_read_only());
        for place in [&open, &closed, &open, &closed] {
            mount::unmount_all(place, &limits()).await.unwrap();
            assert_eq!(count(place), 0);
        }
        assert!(source.join("file").exists() && !open.join("file").exists());
    });
}

#[test]
fn every_mount_of_a_stack_is_undone() {
    block_on("every_mount_of_a_stack_is_undone", async |base| {
        let [source, target] = dirs(base, ["source", "target"]);
        for _ in 0..5 {
            mount::bind(&source, &target, false, &limits())
                .await
                .unwrap();
        }
        assert_eq!(count(&target), 5);
        // Through a symbolic link to the directory, and through one on the way to it.
        let link = base.join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(count(&link), 5);
        let way = base.join("way");
        std::os::unix::fs::symlink(base, &way).unwrap();
        assert_eq!(count(&way.join("target")), 5);
        mount::unmount_all(&way.join("target"), &limits())
            .await
            .unwrap();
        assert_eq!(count(&target), 0);
        mount::unmount_all(&target, &limits()).await.unwrap();
        mount::unmount_all(&base.join("none/at/all"), &limits())
            .await
            .unwrap();
    });
}

#[test]
fn what_is_in_use_is_named_and_stays() {
    block_on("what_is_in_use_is_named_and_stays", async |base| {
        let [source, target] = dirs(base, ["source", "target"]);
        mount::bind(&source, &target, false, &limits())
            .await
            .unwrap();
        let open = File::create(target.join("file")).unwrap();
        let error = mount::unmount_all(&target, &limits()).await.unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        assert!(
            error.to_string().contains(target.to_str().unwrap()),
            "{error}"
        );
        assert_eq!(count(&target), 1);
        drop(open);
        mount::unmount_all(&target, &limits()).await.unwrap();
    });
}

#[test]
fn a_device_is_shown_at_a_file() {
    block_on("a_device_is_shown_at_a_file", async |base| {
        let device = base.join("device");
        fs::write(&device, "data").unwrap();
        let target = base.join("target");
        mount::bind_block(&device, &target, &limits())
            .await
            .unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "data");
        mount::unmount_all(&target, &limits()).await.unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "", "the file is left");
        fs::remove_file(&target).unwrap();
        // A bind that fails leaves no file.
        let error = mount::bind_block(&base.join("none"), &target, &limits()).await;
        assert!(matches!(error, Err(Error::Command { .. })), "{error:?}");
        assert!(!target.exists());
        let [file] = dirs(base, ["directory"]);
        assert!(
            mount::bind_block(&device, &file.join("no/parent"), &limits())
                .await
                .is_err()
        );
    });
}

#[test]
fn what_cannot_be_mounted_leaves_nothing() {
    block_on("what_cannot_be_mounted_leaves_nothing", async |base| {
        let [target] = dirs(base, ["target"]);
        let image = base.join("image");
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let flags = ["password=hunter2".to_owned()];
        let ext4 = berth_plugin::filesystem::FsType::Ext4;
        let mounted = mount::mount_device(&image, &target, ext4, &flags, false, &limits()).await;
        let error = mounted.unwrap_err();
        assert!(matches!(error, Error::Command { .. }), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let flags = ["remount".to_owned()];
        let mounted = mount::mount_device(&image, &target, ext4, &flags, false, &limits()).await;
        assert!(matches!(mounted, Err(Error::Flag(_))), "{mounted:?}");
        assert_eq!(count(&target), 0);
        // A file where a directory has to be.
        let error = mount::bind(&target, &image, false, &limits())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Command { .. }), "{error}");
        assert_eq!(count(&image), 0);
    });
}
