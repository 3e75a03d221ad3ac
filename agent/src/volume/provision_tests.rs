//! Attachments of the fabric's volumes: a daemon, a scripted fabric and a real portal.

use std::sync::Arc;
use std::time::Duration;

use berth_api::client::Client;
use berth_api::types::{
    AttachRequest, Attachment, AttachmentState, DeviceWish, FabricSource, Source, VolumeRequest,
};
use berth_api::{AttachmentName, Code};
use serde_json::{Value, json};

use crate::app::Daemon;
use crate::config::{Config, KernelDevices};
use crate::fabric::datera::tests::stub::{Fault, Stub};
use crate::nbd::kernel::fake::FakeKernel;
use crate::service_manager::ServiceManager;
use crate::sim::portal::{SimPortal, SimVolume};

const TARGET: &str = "iqn.2013-05.com.daterainc:tc:01:sn:4a6f0c1d92e83b57";
const INITIATOR: &str = "iqn.2026-11.io.berth.test:node";
const GIB: u64 = 1 << 30;
/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// What outlives a daemon.
struct Node {
    dir: tempfile::TempDir,
    portal: SimPortal,
    stub: Stub,
}

impl Node {
    async fn new() -> Self {
        let volume = SimVolume {
            target: TARGET.parse().expect("a name"),
            serial: "unit-one".to_owned(),
            size_bytes: 8 << 20,
            write_cache: true,
        };
        let stub = Stub::start().await;
        stub.model().place = Some((TARGET.to_owned(), "127.0.0.1".to_owned()));
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            portal: SimPortal::start(vec![volume]).expect("the portal starts"),
            stub,
        }
    }

    async fn start(&self) -> Daemon {
        let mut config = Config::default();
        config.node.initiator_name = Some(INITIATOR.to_owned());
        config.node.state_dir = self.dir.path().join("state");
        config.node.runtime_dir = self.dir.path().to_owned();
        config.nbd.kernel = KernelDevices::Never;
        let mut fabric = self.stub.settings();
        fabric.iscsi_port = self.portal.address().port();
        // A request that is never answered ends with its daemon, not by itself.
        fabric.request_timeout.0 = Duration::from_secs(600);
        config.fabric = Some(fabric);
        Daemon::start_with(&config, ServiceManager::none(), Arc::new(FakeKernel::new()))
            .await
            .expect("the daemon starts")
    }

    fn client(&self) -> Client {
        Client::unix(self.dir.path().join("api.sock"))
    }

    async fn attached(&self) -> Attachment {
        let look = async {
            loop {
                let now = self
                    .client()
                    .attachment(&name())
                    .await
                    .expect("it is known");
                if now.state == AttachmentState::Attached {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, look)
            .await
            .expect("it is attached in the end")
    }

    /// Names of the volumes on the fabric, and who is admitted to them.
    fn on_fabric(&self) -> Vec<(Value, Value)> {
        let model = self.stub.model();
        let instances = model.instances.iter().map(|instance| {
            let acl = &instance["storage_instances"][0]["acl_policy"]["initiators"];
            (instance["name"].clone(), acl.clone())
        });
        instances.collect()
    }
}

fn name() -> AttachmentName {
    "data".parse().expect("a name")
}

fn source() -> FabricSource {
    let create = VolumeRequest {
        size_bytes: Some(GIB),
        ..VolumeRequest::default()
    };
    FabricSource {
        create: Some(Box::new(create)),
        revoke_on_detach: true,
        ..FabricSource::new("vol-1".parse().expect("a name"))
    }
}

fn request(source: FabricSource) -> AttachRequest {
    AttachRequest {
        device: DeviceWish::Socket,
        ..AttachRequest::new(Source::Fabric(source))
    }
}

fn admitted() -> Vec<(Value, Value)> {
    let entry = json!([{ "path": format!("/initiators/{INITIATOR}") }]);
    vec![(json!("vol-1"), entry)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_made_admitted_attached_and_left() {
    let node = Node::new().await;
    let daemon = node.start().await;
    let attached = node
        .client()
        .attach(&name(), &request(source()))
        .await
        .expect("attached");
    assert!(attached.created);
    let found = attached
        .attachment
        .source
        .iscsi()
        .expect("it is known where it is")
        .clone();
    assert_eq!(found.target.as_str(), TARGET);
    assert_eq!(node.on_fabric(), admitted());
    let again = node
        .client()
        .attach(&name(), &request(source()))
        .await
        .expect("attached");
    assert!(!again.created);
    let other = FabricSource {
        revoke_on_detach: false,
        ..source()
    };
    let conflict = node
        .client()
        .attach(&name(), &request(other))
        .await
        .expect_err("another wish");
    assert_eq!(conflict.code(), Some(Code::ConflictIncompatible));
    daemon.stop().await;

    // The next life needs no fabric: it is not even asked.
    let asked = node.stub.model().log.len();
    let daemon = node.start().await;
    let restored = node.attached().await;
    assert_eq!(restored.source.iscsi(), Some(&found));
    assert_eq!(node.stub.model().log.len(), asked);

    // A fabric that cannot be told keeps the detach from its end; force does not wait for it.
    let down = json!({ "message": "down" });
    for _ in 0..8 {
        node.stub
            .fault("GET /v2.2/app_instances", Fault::Status(500, down.clone()));
    }
    let failed = node
        .client()
        .detach(&name(), false)
        .await
        .expect_err("it cannot be told");
    assert_eq!(failed.code(), Some(Code::FabricUnavailable), "{failed}");
    node.stub.model().faults.clear();
    node.client()
        .detach(&name(), false)
        .await
        .expect("detached");
    assert_eq!(node.on_fabric(), [(json!("vol-1"), json!([]))]);
    node.client()
        .attach(&name(), &request(source()))
        .await
        .expect("attached");
    for _ in 0..8 {
        node.stub
            .fault("GET /v2.2/app_instances", Fault::Status(500, down.clone()));
    }
    node.client().detach(&name(), true).await.expect("by force");
    assert_eq!(node.on_fabric(), admitted(), "it stays, as the log says");
    daemon.stop().await;
}

/// A detach of which the fabric could not be told is gone on with by the next life; nothing is attached again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detach_that_was_begun_is_ended() {
    let node = Node::new().await;
    let daemon = node.start().await;
    let attach = node.client().attach(&name(), &request(source())).await;
    attach.expect("attached");
    for _ in 0..8 {
        let down = Fault::Status(500, json!({ "message": "down" }));
        node.stub.fault("GET /v2.2/app_instances", down);
    }
    let failed = node.client().detach(&name(), false).await;
    failed.expect_err("the fabric cannot be told");
    daemon.stop().await;
    assert_eq!(node.on_fabric(), admitted());
    node.stub.model().faults.clear();
    let daemon = node.start().await;
    let gone = async {
        while node.client().attachment(&name()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("it goes");
    assert_eq!(node.on_fabric(), [(json!("vol-1"), json!([]))]);
    daemon.stop().await;
}

/// The daemon ends while a request to the fabric is under way, once done and once not, at every request of an attach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_cut_off_is_taken_up_again() {
    let requests: Vec<String> = {
        let node = Node::new().await;
        let daemon = node.start().await;
        node.client()
            .attach(&name(), &request(source()))
            .await
            .expect("attached");
        daemon.stop().await;
        let model = node.stub.model();
        model.log.iter().map(|(what, _)| what.clone()).collect()
    };
    assert!(requests.len() >= 12, "{requests:?}");
    for (at, what) in requests.iter().enumerate() {
        for fault in [Fault::Silent, Fault::Slow(Duration::from_secs(600))] {
            let node = Node::new().await;
            let before = requests[..at]
                .iter()
                .filter(|other| other.starts_with(what.as_str()))
                .count();
            for _ in 0..before {
                node.stub.fault(what, Fault::Slow(Duration::ZERO));
            }
            node.stub.fault(what, fault.clone());
            let daemon = node.start().await;
            let client = node.client();
            let asked =
                tokio::spawn(async move { client.attach(&name(), &request(source())).await });
            let met = async {
                while !node.stub.model().faults.is_empty() {
                    node.stub.met.notified().await;
                }
            };
            tokio::time::timeout(DEADLINE, met)
                .await
                .unwrap_or_else(|_| panic!("{at} {what}"));
            daemon.stop().await;
            let cut_off = asked.await.expect("no panic");
            assert!(cut_off.is_err(), "{at} {what}");
            let daemon = node.start().await;
            node.attached().await;
            assert_eq!(node.on_fabric(), admitted(), "{at} {what} {fault:?}");
            daemon.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_attached_says_why() {
    let node = Node::new().await;
    let daemon = node.start().await;
    let absent = FabricSource {
        create: None,
        ..source()
    };
    let error = node
        .client()
        .attach(&name(), &request(absent))
        .await
        .expect_err("absent");
    assert_eq!(error.code(), Some(Code::NotFound), "{error}");
    node.client()
        .detach(&name(), false)
        .await
        .expect("a volume that is not there is fine");
    let unit = FabricSource {
        unit: Some("storage-9/volume-1".to_owned()),
        ..source()
    };
    let error = node
        .client()
        .attach(&name(), &request(unit))
        .await
        .expect_err("no such unit");
    assert_eq!(error.code(), Some(Code::InvalidArgument), "{error}");
    assert!(error.to_string().contains("storage-1/volume-1"), "{error}");
    node.client()
        .detach(&name(), false)
        .await
        .expect("detached");
    node.client()
        .attach(&name(), &request(source()))
        .await
        .expect("attached");
    daemon.stop().await;
}
