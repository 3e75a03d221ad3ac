//! The whole daemon in this process, against the simulated portal: attach, serve, restart, failures.
#![cfg(feature = "sim")]
#![allow(missing_docs)]

use std::path::Path;
use std::time::Duration;

use berth_agent::app::Daemon;
use berth_agent::config::{Config, KernelDevices};
use berth_agent::nbd::client::{Connection, Wishes};
use berth_agent::nbd::uri::Uri;
use berth_agent::sim::portal::{SimPortal, SimVolume};
use berth_agent::sim::workload;
use berth_api::client::{Client, ClientError};
use berth_api::types::{
    AttachRequest, Attachment, AttachmentState, DigestPolicy, Digests, IscsiSource, Source,
};
use berth_api::{AttachmentName, Code};
use berth_iobuf::Payload;
use berth_iscsi::scsi::ScsiStatus;
use berth_iscsi::target::lu::{LogicalUnit, LuIdentity};

const TARGET: &str = "iqn.2026-11.io.berth.test:unit";
const SIZE: u64 = 8 << 20;
/// Longer than anything here takes; a hang ends here and not with CI.
const DEADLINE: Duration = Duration::from_secs(60);

/// A daemon, a portal and a directory for both.
struct Bench {
    dir: tempfile::TempDir,
    portal: SimPortal,
    daemon: Daemon,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let portal = SimPortal::start(vec![SimVolume {
            target: TARGET.parse().expect("a name"),
            serial: "unit-one".to_owned(),
            size_bytes: SIZE,
            write_cache: true,
        }])
        .expect("the portal starts");
        let daemon = Daemon::start(&config(dir.path()))
            .await
            .expect("the daemon starts");
        Self {
            dir,
            portal,
            daemon,
        }
    }

    fn client(&self) -> Client {
        Client::unix(self.daemon.api_socket())
    }

    fn request(&self) -> AttachRequest {
        let source = Source::Iscsi(IscsiSource {
            portals: vec![self.portal.address().to_string().parse().expect("a portal")],
            target: TARGET.parse().expect("a name"),
            lun: 0,
            auth: None,
        });
        let digests = Digests {
            header: DigestPolicy::Require,
            data: DigestPolicy::Require,
        };
        AttachRequest {
            digests,
            ..AttachRequest::new(source)
        }
    }

    async fn attach(&self) -> Attachment {
        let attached = self
            .client()
            .attach(&name(), &self.request())
            .await
            .expect("attaches");
        attached.attachment
    }

    fn uri(&self) -> Uri {
        Uri::unix(self.daemon.nbd_socket(), name().as_str())
    }

    async fn open(&self) -> Connection {
        Connection::connect(&self.uri(), Wishes::default())
            .await
            .expect("the export is there")
    }

    /// Does something to the logical unit, on its own thread.
    async fn unit<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut LogicalUnit) -> R + Send + 'static,
    ) -> R {
        let unit = self.portal.units()[0];
        let handle = self.portal.handle().clone();
        handle
            .with(move |portal, _| job(portal.unit_mut(unit).expect("a logical unit")))
            .await
            .expect("the portal runs")
    }

    /// Waits for a state of the attachment.
    async fn wait_for(&self, state: AttachmentState) -> Attachment {
        let mut events = self.client().events(Some(0), None).await.expect("events");
        loop {
            let now = self
                .client()
                .attachment(&name())
                .await
                .expect("it is known");
            if now.state == state {
                return now;
            }
            events
                .next()
                .await
                .expect("events go on")
                .expect("the daemon runs");
        }
    }

    async fn stop(self) -> (tempfile::TempDir, SimPortal) {
        self.daemon.stop().await;
        (self.dir, self.portal)
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.node.state_dir = dir.join("state");
    config.node.runtime_dir = dir.to_owned();
    // The machine's own devices are not for tests.
    config.nbd.kernel = KernelDevices::Never;
    config
}

fn name() -> AttachmentName {
    "vol-0".parse().expect("a name")
}

fn code(error: &ClientError) -> Code {
    error
        .code()
        .unwrap_or_else(|| panic!("not a problem document: {error}"))
}

/// Runs a test body with a deadline.
async fn within<T>(body: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, body)
        .await
        .expect("it hangs")
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_still_there_after_detach_and_after_a_restart() {
    within(async {
        let bench = Bench::start().await;
        let attached = bench.attach().await;
        assert_eq!(attached.size_bytes, Some(SIZE));
        workload::write_all(&bench.uri(), 5, u64::MAX, |_| {})
            .await
            .expect("writes");
        bench
            .client()
            .detach(&name(), false)
            .await
            .expect("detaches");
        bench
            .client()
            .detach(&name(), false)
            .await
            .expect("absent is fine");
        bench.attach().await;
        workload::verify_all(&bench.uri(), 5, u64::MAX, |_| {})
            .await
            .expect("the same bytes");
        let (dir, portal) = bench.stop().await;
        let daemon = Daemon::start(&config(dir.path()))
            .await
            .expect("starts again");
        let bench = Bench {
            dir,
            portal,
            daemon,
        };
        bench.wait_for(AttachmentState::Attached).await;
        workload::verify_all(&bench.uri(), 5, u64::MAX, |_| {})
            .await
            .expect("the same bytes");
        bench.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_attaches_of_one_name_make_one_attachment() {
    within(async {
        let bench = Bench::start().await;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (client, request) = (bench.client(), bench.request());
            calls.spawn(async move { client.attach(&name(), &request).await });
        }
        let answers = calls.join_all().await;
        let created = answers
            .iter()
            .filter(|a| a.as_ref().is_ok_and(|a| a.created))
            .count();
        assert_eq!(created, 1);
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        let other = AttachRequest {
            read_only: true,
            ..bench.request()
        };
        let refused = bench
            .client()
            .attach(&name(), &other)
            .await
            .expect_err("another body");
        assert_eq!(code(&refused), Code::ConflictIncompatible);
        let sessions = bench
            .portal
            .handle()
            .with(|portal, _| portal.sessions().len())
            .await;
        assert_eq!(sessions, Ok(1));
        bench.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_export_is_detached_by_force_only() {
    within(async {
        let bench = Bench::start().await;
        bench.attach().await;
        let mut connection = bench.open().await;
        let refused = bench
            .client()
            .detach(&name(), false)
            .await
            .expect_err("it is open");
        assert_eq!(code(&refused), Code::InUse);
        connection
            .write(0, Payload::from(vec![1; 4096]), false)
            .await
            .expect("still served");
        bench.client().detach(&name(), true).await.expect("forced");
        assert!(
            connection.read(0, 4096).await.is_err(),
            "the connection has ended"
        );
        let sessions = bench
            .portal
            .handle()
            .with(|portal, _| portal.sessions().len())
            .await;
        assert_eq!(sessions, Ok(0), "logged out");
        bench.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_unit_delays_io_and_fails_none() {
    // Old bug: nobody set the timer for a command that waited out BUSY, and its request hung.
    within(async {
        let bench = Bench::start().await;
        bench.attach().await;
        let mut connection = bench.open().await;
        bench
            .unit(|unit| unit.faults().status(ScsiStatus::BUSY, 3))
            .await;
        connection
            .write(0, Payload::from(vec![9; 512]), false)
            .await
            .expect("after a pause");
        bench
            .unit(|unit| unit.faults().status(ScsiStatus::TASK_SET_FULL, 2))
            .await;
        let data = connection.read(0, 512).await.expect("after a pause");
        assert_eq!(data.to_bytes(), vec![9; 512]);
        bench.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_grows_is_seen_to_have_grown() {
    within(async {
        let bench = Bench::start().await;
        bench.attach().await;
        let mut connection = bench.open().await;
        bench
            .unit(|unit| unit.resize(SIZE * 2))
            .await
            .expect("grows");
        // The next command brings the unit attention.
        connection.read(0, 512).await.expect("served");
        loop {
            let now = bench.client().attachment(&name()).await.expect("is there");
            if now.size_bytes == Some(SIZE * 2) {
                break;
            }
            tokio::task::yield_now().await;
        }
        bench
            .open()
            .await
            .write(SIZE, Payload::from(vec![3; 512]), false)
            .await
            .expect("the new end");
        bench.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_goes_to_another_unit_behind_the_same_lun() {
    within(async {
        let bench = Bench::start().await;
        bench.attach().await;
        let mut connection = bench.open().await;
        connection
            .write(0, Payload::from(vec![1; 512]), true)
            .await
            .expect("written");
        bench
            .unit(|unit| unit.remap(LuIdentity::from_serial("another"), true))
            .await;
        assert!(
            connection
                .write(0, Payload::from(vec![2; 512]), true)
                .await
                .is_err()
        );
        let failed = bench.wait_for(AttachmentState::Failed).await;
        assert_eq!(
            failed.reason.map(|reason| reason.code),
            Some(Code::IdentityMismatch)
        );
        // And it is not taken for the old one when it is asked for again.
        let refused = bench
            .client()
            .attach(&name(), &bench.request())
            .await
            .expect_err("another unit");
        assert_eq!(code(&refused), Code::IdentityMismatch);
        bench
            .unit(|unit| unit.remap(LuIdentity::from_serial("unit-one"), false))
            .await;
        bench.attach().await;
        let data = bench.open().await.read(0, 512).await.expect("reads");
        assert_eq!(
            data.to_bytes(),
            vec![1; 512],
            "the other unit's write never happened"
        );
        bench.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_code() {
    within(async {
        let bench = Bench::start().await;
        let client = bench.client();
        let mut request = bench.request();
        let Source::Iscsi(source) = &mut request.source else {
            panic!("it is a target");
        };
        source.lun = 7;
        let no_lun = client.attach(&"a".parse().expect("a name"), &request).await;
        assert_eq!(code(&no_lun.expect_err("no such LUN")), Code::LunNotFound);
        let Source::Iscsi(source) = &mut request.source else {
            panic!("it is a target");
        };
        source.target = "iqn.2026-11.io.berth.test:absent".parse().expect("a name");
        let no_target = client.attach(&"b".parse().expect("a name"), &request).await;
        assert_eq!(
            code(&no_target.expect_err("no such target")),
            Code::TargetNotFound
        );
        let failed = client
            .attachment(&"b".parse().expect("a name"))
            .await
            .expect("is listed");
        assert_eq!(failed.state, AttachmentState::Failed);
        for name in ["a", "b"] {
            client
                .detach(&name.parse().expect("a name"), false)
                .await
                .expect("forgotten");
        }
        assert_eq!(client.attachments().await.expect("lists"), []);
        bench.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_is_set_up_again_and_no_request_fails() {
    within(async {
        let bench = Bench::start().await;
        bench.attach().await;
        let mut connection = bench.open().await;
        let cut = bench.portal.handle().with(|portal, _| {
            let ids: Vec<_> = portal.connections().collect();
            ids.into_iter().for_each(|id| portal.close(id));
        });
        cut.await.expect("the portal runs");
        let data = Payload::from(vec![1; 512]);
        connection
            .write(0, data.clone(), false)
            .await
            .expect("waits for the session and is done");
        let read = connection.read(0, 512).await.expect("served again");
        assert_eq!(read.to_bytes(), data.to_bytes());
        bench.wait_for(AttachmentState::Attached).await;
        bench.stop().await;
    })
    .await;
}
