//! `berthctl` as people and scripts run it, against a daemon that only pretends.

#![allow(clippy::unwrap_used, reason = "helpers are test code too")]

mod common;

use berth_api::types::{Auth, CheckResult, Fence, RecoveryTimeout, Source};
use common::Daemon;
use serde_json::Value;

const DISK: &str = "--portal 192.0.2.10 --target iqn.2026-11.example:disk0 --lun 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn fences_and_changes() {
    let daemon = Daemon::start();
    let taken = daemon.run(&format!("attach disk0 {DISK} --takeover")).await;
    assert_ne!(taken.code, 0);
    assert!(taken.stderr.contains("takeover"), "{}", taken.said());
    let attach = format!("attach disk0 {DISK} --fence reservation --takeover");
    let ran = daemon.run(&attach).await;
    assert_eq!(ran.code, 0, "{}", ran.said());
    {
        let attachments = daemon.fake.attachments.lock().unwrap();
        let (request, _) = attachments.values().next().unwrap();
        assert_eq!(request.fence, Fence::Reservation);
        assert!(request.takeover);
    }
    let set = "set disk0 --recovery-timeout 7 --add-portal 192.0.2.11 --remove-portal 192.0.2.10";
    let changed = daemon.run(set).await;
    assert_eq!(changed.code, 0, "{}", changed.said());
    for told in ["7 s", "reservation"] {
        assert!(changed.stdout.contains(told), "{told}: {}", changed.said());
    }
    let json = daemon.run("show disk0 -o json").await.json();
    let portals = &json["source"]["iscsi"]["portals"];
    assert_eq!(*portals, serde_json::json!(["192.0.2.11:3260"]));
    let last = daemon.run("set disk0 --remove-portal 192.0.2.11").await;
    assert_eq!(last.code, 2, "{}", last.said());
    assert!(last.stderr.contains("no portal left"), "{}", last.said());
    let gone = daemon.run("set nothing --recovery-timeout forever").await;
    assert_ne!(gone.code, 0, "{}", gone.said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn attach_look_and_detach() {
    let daemon = Daemon::start();
    let empty = daemon.run("list").await;
    assert_eq!(
        (empty.code, empty.stdout.as_str()),
        (0, ""),
        "{}",
        empty.said()
    );
    assert_eq!(empty.stderr, "nothing is attached\n");

    let attach = format!("attach disk0 {DISK} --header-digest require --recovery-timeout forever");
    let ran = daemon.run(&attach).await;
    assert_eq!(ran.code, 0, "{}", ran.said());
    assert_eq!(
        ran.stdout,
        "disk0 is attached\n  nbd     nbd+unix:///disk0?socket=/run/berth/nbd.sock\n  size    1 GiB\n"
    );
    {
        let attachments = daemon.fake.attachments.lock().unwrap();
        let (request, _) = attachments.values().next().unwrap();
        assert_eq!(
            request.recovery_timeout_seconds,
            Some(RecoveryTimeout::Forever)
        );
    }
    let again = daemon.run(&attach).await;
    assert!(
        again
            .stdout
            .starts_with("disk0 is attached, as it was before\n"),
        "{}",
        again.said()
    );

    let list = daemon.run("list").await;
    let mut lines = list.stdout.lines();
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        words(lines.next().unwrap()),
        [
            "NAME", "STATE", "SIZE", "DEVICE", "TARGET", "LUN", "PATHS", "SINCE"
        ]
    );
    let row = words(lines.next().unwrap());
    assert_eq!(
        row[..4],
        ["disk0", "attached", "1", "GiB"],
        "{}",
        list.stdout
    );
    assert!(row.contains(&"iqn.2026-11.example:disk0".to_owned()));
    assert_eq!(lines.next(), None);
    let wide = daemon.run("ls -o wide").await;
    assert!(wide.stdout.contains("nbd+unix:///disk0"), "{}", wide.said());
    let json = daemon.run("list -o json").await.json();
    assert_eq!(json["attachments"][0]["name"], "disk0");

    let show = daemon.run("show disk0").await;
    for part in [
        "disk0 is attached",
        "blocks of 512",
        "without authentication",
        "header required",
        "forever",
    ] {
        assert!(show.stdout.contains(part), "{part}: {}", show.stdout);
    }
    assert!(
        !show.stdout.contains('\x1b'),
        "no colours but for terminals"
    );
    let stats = daemon.run("stats disk0 -o json").await.json();
    assert_eq!(stats[0]["counters"]["reconnects"], 0);
    let watch = daemon.run("stats --watch=1 --count 1 -o json").await.json();
    assert_eq!(watch["read"]["average_us"], Value::Null);

    let events = daemon.run("events").await;
    assert!(
        events
            .stdout
            .trim_end()
            .ends_with("disk0 attached disk0 is attached"),
        "{}",
        events.said()
    );
    let other = daemon.run("events other").await;
    assert_eq!((other.code, other.stdout.as_str()), (0, ""));

    let ran = daemon.run("detach disk0").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "disk0 is detached\n"));
    let ran = daemon.run("show disk0").await;
    assert_eq!(ran.code, 3, "{}", ran.said());
    assert_eq!(
        ran.stderr,
        "berthctl: there is no attachment disk0 (not-found)\n"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn failures_have_their_code_and_a_hint() {
    let daemon = Daemon::start();
    let ran = daemon.run("detach busy").await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("in-use") && ran.stderr.contains("--force"),
        "{}",
        ran.said()
    );
    assert_eq!(daemon.run("detach busy --force").await.code, 0);
    for (code, exit) in [
        ("lun-not-found", 3),
        ("deadline", 5),
        ("target-unreachable", 1),
    ] {
        let ran = daemon.run(&format!("attach {code} {DISK} -o json")).await;
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (exit, ""),
            "{}",
            ran.said()
        );
        let problem: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(problem["code"], code);
    }
    let ran = daemon.run("attach a/b").await;
    assert_eq!(ran.code, 2, "{}", ran.said());

    let failed = CheckResult::fail("nbd-socket", "not open");
    daemon.fake.ready.lock().unwrap().push(failed);
    let ran = daemon.run("node").await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.contains("worker-1") && ran.stdout.contains("FAILED not open"),
        "{}",
        ran.said()
    );

    let gone = "--socket /nonexistent/api.sock";
    let ran = daemon.run(&format!("list {gone}")).await;
    assert_eq!(ran.code, 4);
    assert!(
        ran.stderr
            .starts_with("berthctl: berthd is not running at /nonexistent/api.sock\n")
            && ran.stderr.contains("systemctl start berthd"),
        "{}",
        ran.said()
    );
    let ran = daemon.run("list --url http://127.0.0.1:1").await;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("--token-file"), "{}", ran.said());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn secrets_come_from_files_and_the_environment() {
    let daemon = Daemon::start();
    let ours = daemon.file("ours", "hunter2hunter2\n");
    let line = format!(
        "attach disk0 {DISK} --chap-user u --chap-secret-file {} --mutual-user t -o json",
        ours.display()
    );
    let ran = daemon
        .run_with(&line, &[("BERTH_MUTUAL_SECRET", "sesamesesame")])
        .await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.said());
    assert!(!ran.stdout.contains("hunter2") && !ran.stdout.contains("sesame"));
    {
        let attachments = daemon.fake.attachments.lock().unwrap();
        let (request, _) = attachments.values().next().unwrap();
        let Source::Iscsi(source) = &request.source else {
            panic!("it is a target");
        };
        let Some(Auth::Chap(chap)) = &source.auth else {
            panic!("CHAP was asked for");
        };
        assert_eq!(chap.secret.expose(), "hunter2hunter2");
        assert_eq!(
            chap.mutual.as_ref().unwrap().secret.expose(),
            "sesamesesame"
        );
    }
    // Without a terminal there is nobody to ask.
    let ran = daemon
        .run(&format!("attach disk1 {DISK} --chap-user u"))
        .await;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("BERTH_CHAP_SECRET"), "{}", ran.said());
    let found = daemon.run("discover [2001:db8::1]").await;
    assert!(
        found.stdout.contains("iqn.2026-11.example:open"),
        "{}",
        found.said()
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_does_not_wait_gets_the_operation() {
    let daemon = Daemon::start();
    let ran = daemon
        .run(&format!("attach slow {DISK} --no-wait -o json"))
        .await;
    assert_eq!(ran.code, 0, "{}", ran.said());
    assert_eq!(ran.json()["state"], "running");
    daemon.fake.release();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn completions_and_help_need_no_daemon() {
    let daemon = Daemon::start();
    for shell in ["bash", "zsh", "fish"] {
        let ran = daemon
            .run(&format!("completions {shell} --socket /nonexistent"))
            .await;
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("discover"), "{shell}");
    }
    let ran = daemon.run("--help").await;
    assert!(ran.stdout.contains("Exit codes:"), "{}", ran.said());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn volumes_of_the_fabric() {
    let daemon = Daemon::start();
    let empty = daemon.run("volume list").await;
    assert_eq!(
        (empty.code, empty.stdout.as_str()),
        (0, ""),
        "{}",
        empty.said()
    );
    let secret = daemon.file("secret", "twelve-bytes-x\n");
    let create = format!(
        "volume create vol-1 --size 10GiB --replicas 2 --placement-mode all-flash --total-iops 500 \
         --read-bandwidth 2MiB --chap-user node-1 --chap-secret-file {}",
        secret.display()
    );
    let made = daemon.run(&create).await;
    assert_eq!(made.code, 0, "{}", made.said());
    assert!(
        made.stdout
            .starts_with("vol-1 is available\n  size         10 GiB\n"),
        "{}",
        made.said()
    );
    {
        let requests = daemon.fake.volume_requests.lock().unwrap();
        let qos = requests[0].qos.unwrap();
        assert_eq!(
            (qos.total_iops, qos.read_bytes_per_second),
            (Some(500), Some(2 << 20))
        );
        assert_eq!(
            requests[0].chap.as_ref().unwrap().secret.expose(),
            "twelve-bytes-x"
        );
        assert_eq!(requests[0].replicas, Some(2));
    }
    let again = daemon.run(&create).await;
    assert!(
        again
            .stdout
            .starts_with("vol-1 is available, as it was before\n"),
        "{}",
        again.said()
    );
    let list = daemon.run("volume list -o wide").await;
    for word in ["NAME", "vol-1", "10 GiB", "available", "hybrid"] {
        assert!(list.stdout.contains(word), "{word}: {}", list.said());
    }
    let grown = daemon.run("volume grow vol-1 20GiB -o json").await.json();
    assert_eq!(grown["size_bytes"], 20u64 << 30);
    let shrunk = daemon.run("volume grow vol-1 1GiB").await;
    assert_eq!(shrunk.code, 1, "{}", shrunk.said());
    let limited = daemon.run("volume qos vol-1 --write-iops 7").await;
    assert!(
        limited.stdout.contains("write 7 IOPS"),
        "{}",
        limited.said()
    );
    let unlimited = daemon.run("volume qos vol-1 --none").await;
    assert!(!unlimited.stdout.contains("IOPS"), "{}", unlimited.said());
    assert_eq!(daemon.run("volume qos vol-1").await.code, 2);
    let granted = daemon.run("volume grant vol-1").await;
    assert!(
        granted
            .stdout
            .contains("iqn.2026-11.io.berth:worker-1 is admitted"),
        "{}",
        granted.said()
    );
    let revoked = daemon
        .run("volume revoke vol-1 iqn.2026-11.io.berth:worker-1")
        .await;
    assert_eq!(revoked.code, 0, "{}", revoked.said());
    let taken = daemon.run("volume snapshot take vol-1 nightly").await;
    assert!(taken.stdout.contains("id-of-nightly"), "{}", taken.said());
    let copy = daemon
        .run("volume clone vol-1 vol-2 --snapshot nightly")
        .await;
    assert_eq!(copy.code, 0, "{}", copy.said());
    let listed = daemon.run("volume snapshot list vol-1").await;
    assert!(listed.stdout.contains("id-of-nightly"), "{}", listed.said());
    assert_eq!(
        daemon
            .run("volume snapshot restore vol-1 nightly")
            .await
            .code,
        0
    );
    assert_eq!(
        daemon
            .run("volume snapshot delete vol-1 nightly")
            .await
            .code,
        0
    );
    assert_eq!(daemon.run("volume show vol-9").await.code, 3);
    assert_eq!(
        daemon.run("volume create vol-3").await.code,
        2,
        "a size or a template"
    );
    let deleted = daemon.run("volume delete vol-1").await;
    assert_eq!(deleted.stdout, "vol-1 is deleted\n", "{}", deleted.said());
    let templates = daemon.run("template list").await;
    assert!(
        templates.stdout.contains("gold") && templates.stdout.contains("all_flash"),
        "{}",
        templates.said()
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn attach_by_the_name_of_a_volume() {
    let daemon = Daemon::start();
    let ran = daemon
        .run("attach data --volume vol-1 --create-size 5GiB --revoke-on-detach")
        .await;
    assert_eq!(ran.code, 0, "{}", ran.said());
    {
        let attachments = daemon.fake.attachments.lock().unwrap();
        let (request, _) = attachments.values().next().unwrap();
        let Source::Fabric(source) = &request.source else {
            panic!("it is a volume of the fabric");
        };
        assert_eq!(source.volume.as_str(), "vol-1");
        assert_eq!(source.create.as_ref().unwrap().size_bytes, Some(5 << 30));
        assert!(source.revoke_on_detach);
    }
    let shown = daemon.run("show data").await;
    assert!(shown.stdout.contains("vol-1"), "{}", shown.said());
    assert_eq!(daemon.run("list").await.code, 0);
    let portals = daemon.run("set data --add-portal 192.0.2.1").await;
    assert_eq!(portals.code, 2, "{}", portals.said());
    let both = daemon
        .run(&format!("attach data --volume vol-1 {DISK}"))
        .await;
    assert_eq!(both.code, 2, "{}", both.said());
    assert_eq!(daemon.run("attach data --lun 1").await.code, 2);
    daemon.stop().await;
}
