//! `berthctl bench` against a real NBD server with a disk in memory.

#![allow(clippy::unwrap_used, reason = "helpers are test code too")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use berth_agent::block::hub::DynHub;
use berth_agent::block::ram::RamDevice;
use berth_agent::block::{BlockDevice as _, Client, Hub};
use berth_agent::nbd::connection::{Stop, serve};
use berth_agent::nbd::export::{ExportInfo, ExportSummary, Exports};
use berth_agent::nbd::server::{Server, ServerLimits};
use berth_agent::nbd::transmission::Limits;
use common::Daemon;
use tokio::sync::{mpsc, oneshot};

struct One(ExportInfo);

impl Exports for One {
    fn list(&self) -> Vec<ExportSummary> {
        Vec::new()
    }

    fn open(&self, name: &str) -> Option<ExportInfo> {
        (name == self.0.name).then(|| self.0.clone())
    }
}

/// An NBD server with the export `disk0` of 8 MiB, on a thread of its own.
struct Disk {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    async fn start(path: &Path) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let path = path.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let device = RamDevice::new(8 << 20);
                let info = ExportInfo::new("disk0", "a disk", device.geometry());
                let hub: std::rc::Rc<std::cell::RefCell<DynHub>> = Hub::new(device);
                let server = Server::bind(&path, 0o600, ServerLimits::default()).unwrap();
                let (to_volume, mut handovers) = mpsc::channel(16);
                let hand_over = move |handover| to_volume.try_send(handover).unwrap();
                tokio::task::spawn_local(async move {
                    server.run(Arc::new(One(info)), hand_over).await;
                });
                tokio::task::spawn_local(async move {
                    while let Some(handover) = handovers.recv().await {
                        let client = Client::new(std::rc::Rc::clone(&hub));
                        let serving = serve(handover, client, Limits::default(), Stop::new());
                        tokio::task::spawn_local(serving);
                    }
                });
                ready.send(()).unwrap();
                let _ = stopped.await;
            });
        });
        is_ready.await.unwrap();
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A daemon whose attachment `disk0` is served at this socket, and open by so many clients.
async fn daemon(nbd_clients: u32) -> (Daemon, Disk) {
    let daemon = Daemon::start();
    let path = daemon.dir.path().join("nbd.sock");
    let disk = Disk::start(&path).await;
    let line = "attach disk0 --portal 192.0.2.10 --target iqn.2026-11.example:disk0 --lun 1";
    assert_eq!(daemon.run(line).await.code, 0);
    {
        let mut attachments = daemon.fake.attachments.lock().unwrap();
        let (_, attachment) = attachments.values_mut().next().unwrap();
        attachment.nbd_uri = Some(format!("nbd+unix:///disk0?socket={}", path.display()));
        attachment.nbd_clients = nbd_clients;
    }
    (daemon, disk)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_pattern_is_measured() {
    let (daemon, _disk) = daemon(0).await;
    for (pattern, size, bytes) in [
        ("randread", "4k", 4096.0),
        ("read", "128k", 131_072.0),
        ("randwrite --destructive", "512", 512.0),
        ("write --destructive", "1m", 1_048_576.0),
    ] {
        let line = format!("bench disk0 --pattern {pattern} --size {size} --depth 8 --seconds 1");
        let ran = daemon.run(&format!("{line} -o json")).await;
        assert_eq!(ran.code, 0, "{}", ran.said());
        let report = ran.json();
        let number = |name: &str| report[name].as_f64().unwrap();
        assert!(number("requests") > 8.0, "{report}");
        assert!((1.0..5.0).contains(&number("seconds")), "{report}");
        let ratio = number("bytes_per_second") / (number("iops") * bytes);
        assert!((0.999..1.001).contains(&ratio), "{report}");
        let latency = |name: &str| report["latency_us"][name].as_f64().unwrap();
        assert!(latency("min") > 0.0, "{report}");
        for pair in ["min", "p50", "p90", "p99", "p999"].windows(2) {
            assert!(latency(pair[0]) <= latency(pair[1]), "{report}");
        }
    }
    let ran = daemon.run("bench disk0 --seconds 1").await;
    assert!(
        ran.stdout
            .starts_with("disk0 randread of 4 KiB, 32 in flight"),
        "{}",
        ran.said()
    );
    assert!(ran.stdout.contains("p99.9"), "{}", ran.said());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn data_is_not_overwritten_by_mistake() {
    let (quiet, disk) = daemon(0).await;
    let ran = quiet.run("bench disk0 --pattern randwrite").await;
    assert_eq!(ran.code, 2, "{}", ran.said());
    assert!(ran.stderr.contains("--destructive"), "{}", ran.said());
    let ran = quiet.run("bench disk0 --size 16m --seconds 1").await;
    assert_eq!(ran.code, 2, "{}", ran.said());
    assert!(ran.stderr.contains("8388608 bytes"), "{}", ran.said());
    // The daemon says attached, and nobody serves: an error, no wait.
    drop(disk);
    let ran = quiet.run("bench disk0 --seconds 1").await;
    assert_eq!(ran.code, 1, "{}", ran.said());
    assert_eq!(quiet.run("bench nothing").await.code, 3);
    quiet.stop().await;

    let (busy, _disk) = daemon(1).await;
    let ran = busy.run("bench disk0 --pattern write --destructive").await;
    assert_eq!(ran.code, 1, "{}", ran.said());
    assert!(
        ran.stderr.contains("is open by 1 NBD client"),
        "{}",
        ran.said()
    );
    let ran = busy.run("bench disk0 --seconds 1").await;
    assert_eq!(ran.code, 0, "reading harms nobody: {}", ran.said());
    busy.stop().await;
}
