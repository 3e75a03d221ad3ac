//! Who is admitted to the fabric's volumes: two daemons, one simulated fabric with real portals.

use std::sync::Arc;
use std::time::Duration;

use berth_api::client::{Client, ClientError};
use berth_api::types::{
    AttachRequest, Attachment, AttachmentState, BreakerState, DeviceWish, FabricSource, Fence,
    RecoveryTimeout, Source, VolumeRequest,
};
use berth_api::{AttachmentName, Code, TargetName, VolumeName};

use crate::app::Daemon;
use crate::config::{Config, Fabric as Settings, KernelDevices, Span};
use crate::nbd::kernel::fake::FakeKernel;
use crate::service_manager::ServiceManager;
use crate::sim::fabric::{DEFAULT_PASSWORD, DEFAULT_USER, Fabric, FaultRule, Options};

const GIB: u64 = 1 << 30;
/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// A fabric, and a place for the nodes that use it.
struct Site {
    fabric: Fabric,
    dir: tempfile::TempDir,
}

/// A node that runs.
struct Node {
    daemon: Daemon,
    client: Client,
    initiator: TargetName,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("password"), DEFAULT_PASSWORD).expect("writes");
        let fabric = Fabric::start(Options::new(dir.path().join("fabric"))).expect("it starts");
        Self { fabric, dir }
    }

    async fn node(&self, name: &str) -> Node {
        let initiator = format!("iqn.2026-11.io.berth.test:{name}");
        let mut config = Config::default();
        config.node.initiator_name = Some(initiator.clone());
        config.node.state_dir = self.dir.path().join(name).join("state");
        config.node.runtime_dir = self.dir.path().join(name);
        config.nbd.kernel = KernelDevices::Never;
        let http = self.fabric.http().expect("HTTP is served");
        let ms = |ms| Span(Duration::from_millis(ms));
        config.fabric = Some(Settings {
            url: Some(format!("http://{http}")),
            user: Some(DEFAULT_USER.to_owned()),
            password_file: Some(self.dir.path().join("password")),
            poll_interval: ms(5),
            retry_first: ms(1),
            retry_max: ms(5),
            breaker_failures: 2,
            ..Settings::default()
        });
        let kernel = Arc::new(FakeKernel::new());
        let daemon = Daemon::start_with(&config, ServiceManager::none(), kernel)
            .await
            .expect("the daemon starts");
        Node {
            daemon,
            client: Client::unix(self.dir.path().join(name).join("api.sock")),
            initiator: initiator.parse().expect("a name"),
        }
    }
}

impl Node {
    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, ClientError> {
        let attached = self.client.attach(&attachment(), request).await?;
        assert_eq!(attached.attachment.state, AttachmentState::Attached);
        Ok(attached.attachment)
    }

    /// Fails to attach; the code, and the holder.
    async fn refused(&self, request: &AttachRequest) -> (Code, Option<String>) {
        let error = self.attach(request).await.expect_err("it is refused");
        let ClientError::Problem(problem) = &error else {
            panic!("{error}");
        };
        (problem.code, problem.holder.clone())
    }

    /// Who is admitted to the volume, and who is logged in.
    async fn listed(&self) -> (Vec<String>, Vec<String>) {
        let volume = self.client.volume(&volume()).await.expect("it is there");
        let unit = volume.units.into_iter().next().expect("a unit");
        (unit.access, unit.sessions)
    }
}

fn attachment() -> AttachmentName {
    "data".parse().expect("a name")
}

fn volume() -> VolumeName {
    "vol-1".parse().expect("a name")
}

fn request(fence: Fence) -> AttachRequest {
    let create = VolumeRequest {
        size_bytes: Some(GIB),
        ..VolumeRequest::default()
    };
    let source = FabricSource {
        create: Some(Box::new(create)),
        ..FabricSource::new(volume())
    };
    AttachRequest {
        device: DeviceWish::Socket,
        fence,
        ..AttachRequest::new(Source::Fabric(source))
    }
}

fn ungranted(fence: Fence) -> AttachRequest {
    let mut request = request(fence);
    if let Source::Fabric(source) = &mut request.source {
        source.grant = false;
    }
    request
}

fn only(node: &Node) -> Vec<String> {
    vec![node.initiator.to_string()]
}

/// Waits until the attachment is as asked for; nothing tells of it, so it is looked at again and again.
async fn until(node: &Node, what: &str, done: impl Fn(&Attachment) -> bool) {
    let look = async {
        while !done(
            &node
                .client
                .attachment(&attachment())
                .await
                .expect("it is known"),
        ) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, look).await.expect(what);
}

/// Waits until the attachment is in no state that works.
async fn shut_out(node: &Node) {
    until(node, "it is shut out", |now| {
        now.state != AttachmentState::Attached
    })
    .await;
}

/// Waits until the attachment has failed for this reason.
async fn failed(node: &Node, code: Code) {
    until(node, "it fails", |now| {
        let reason = now.reason.as_ref().map(|reason| reason.code);
        now.state == AttachmentState::Failed && reason == Some(code)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_admits_one_node_until_another_takes_over() {
    let site = Site::new();
    let (a, b) = (site.node("a").await, site.node("b").await);
    a.attach(&request(Fence::Acl)).await.expect("nobody has it");
    let refused = b.refused(&request(Fence::Acl)).await;
    assert_eq!(
        refused,
        (Code::AttachedElsewhere, Some(a.initiator.to_string()))
    );
    assert_eq!(
        a.listed().await,
        (only(&a), only(&a)),
        "whoever failed is not on the list"
    );
    let takeover = AttachRequest {
        takeover: true,
        ..request(Fence::Acl)
    };
    b.attach(&takeover).await.expect("it takes over");
    assert_eq!(b.listed().await.0, only(&b));
    shut_out(&a).await;
    // To leave what one does not hold any more takes nothing from who does.
    a.client
        .detach(&attachment(), true)
        .await
        .expect("detached");
    assert_eq!(b.listed().await, (only(&b), only(&b)));
    let refused = a.refused(&request(Fence::Acl)).await;
    assert_eq!(
        refused,
        (Code::AttachedElsewhere, Some(b.initiator.to_string()))
    );
    assert_eq!(b.listed().await, (only(&b), only(&b)));
    a.daemon.stop().await;
    b.daemon.stop().await;
}

/// Two nodes claim the volume at once, again and again: never do both have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_claim_at_once_one_has_it_at_most() {
    let site = Site::new();
    let (a, b) = (site.node("a").await, site.node("b").await);
    for round in 0..8 {
        let (with_a, with_b) = (request(Fence::Acl), request(Fence::Acl));
        let (at_a, at_b) = tokio::join!(a.attach(&with_a), b.attach(&with_b));
        let (access, _) = a.listed().await;
        match (&at_a, &at_b) {
            (Ok(_), Err(_)) => assert_eq!(access, only(&a), "{round}"),
            (Err(_), Ok(_)) => assert_eq!(access, only(&b), "{round}"),
            (Err(_), Err(_)) => assert_eq!(access, [""; 0], "{round}"),
            (Ok(_), Ok(_)) => panic!("both have it in round {round}: {access:?}"),
        }
        for (node, result) in [(&a, at_a), (&b, at_b)] {
            if let Err(error) = result {
                assert_eq!(error.code(), Some(Code::AttachedElsewhere), "{error}");
            }
            node.client
                .detach(&attachment(), true)
                .await
                .expect("detached");
            let volume = volume();
            let revoked = node.client.revoke(&volume, &node.initiator).await;
            revoked.expect("revoked");
        }
    }
    a.daemon.stop().await;
    b.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_to_be_admitted_has_to_be() {
    let site = Site::new();
    let (a, b) = (site.node("a").await, site.node("b").await);
    for fence in [Fence::None, Fence::Acl] {
        let refused = a.refused(&ungranted(fence)).await;
        assert_eq!(refused, (Code::AccessDenied, None), "{fence:?}");
        assert_eq!(a.listed().await.0, [""; 0]);
        a.client
            .detach(&attachment(), false)
            .await
            .expect("detached");
    }
    // The controller admits it, by whatever node.
    b.client
        .grant(&volume(), &a.initiator)
        .await
        .expect("granted");
    a.attach(&ungranted(Fence::None))
        .await
        .expect("it is admitted");
    a.client
        .detach(&attachment(), false)
        .await
        .expect("detached");
    assert_eq!(a.listed().await.0, only(&a), "and stays so");
    a.attach(&ungranted(Fence::Acl))
        .await
        .expect("it alone is admitted");
    a.client
        .detach(&attachment(), false)
        .await
        .expect("detached");
    b.client
        .grant(&volume(), &b.initiator)
        .await
        .expect("granted");
    let takeover = AttachRequest {
        takeover: true,
        ..ungranted(Fence::Acl)
    };
    let refused = a.refused(&takeover).await;
    assert_eq!(
        refused,
        (Code::AttachedElsewhere, Some(b.initiator.to_string()))
    );
    let (access, _) = a.listed().await;
    assert_eq!(access.len(), 2, "the list is not its own: {access:?}");
    a.daemon.stop().await;
    b.daemon.stop().await;
}

/// I/O that waits without an end.
fn patient() -> AttachRequest {
    AttachRequest {
        recovery_timeout_seconds: Some(RecoveryTimeout::Forever),
        ..request(Fence::None)
    }
}

/// The target refuses the login, and the fabric says that it is meant: I/O does not wait for the recovery timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_taken_off_the_list_is_fenced() {
    let site = Site::new();
    let (a, b) = (site.node("a").await, site.node("b").await);
    a.attach(&patient()).await.expect("attached");
    let revoked = b.client.revoke(&volume(), &a.initiator).await;
    revoked.expect("revoked");
    failed(&a, Code::Fenced).await;
    // It does not come back by itself, and not in its next life.
    a.daemon.stop().await;
    let a = site.node("a").await;
    failed(&a, Code::Fenced).await;
    let detached = a.client.detach(&attachment(), false).await;
    detached.expect("detached");
    // Whoever asks anew is admitted anew.
    a.attach(&patient()).await.expect("attached");
    a.daemon.stop().await;
    b.daemon.stop().await;
}

/// The same when the volume was deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_was_deleted_is_not_waited_for() {
    let site = Site::new();
    let (a, b) = (site.node("a").await, site.node("b").await);
    a.attach(&patient()).await.expect("attached");
    let revoked = b.client.revoke(&volume(), &a.initiator).await;
    revoked.expect("revoked");
    let deleted = b.client.delete_volume(&volume(), None, true).await;
    deleted.expect("deleted");
    until(&a, "it fails", |now| now.state == AttachmentState::Failed).await;
    let detached = a.client.detach(&attachment(), false).await;
    detached.expect("detached");
    a.daemon.stop().await;
    b.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_the_fabric_is_is_told() {
    let site = Site::new();
    let a = site.node("a").await;
    let status = a.client.fabric().await.expect("told");
    assert!(status.reachable && status.reason.is_none(), "{status:?}");
    assert_eq!(status.version.as_deref(), Some("3.3.0.0"));
    assert_eq!(status.api_version.as_deref(), Some("v2.2"));
    let capacity = status.capacity.expect("it tells");
    assert!(capacity.total_bytes >= capacity.available_bytes);
    assert_eq!(
        status.breaker.expect("there is one").state,
        BreakerState::Closed
    );
    site.fabric
        .set_faults(vec![FaultRule::status(500)])
        .expect("a rule");
    let status = a.client.fabric().await.expect("told");
    let reason = status.reason.expect("it says why");
    assert!(
        !status.reachable && reason.code == Code::FabricUnavailable,
        "{reason:?}"
    );
    let breaker = status.breaker.expect("there is one");
    assert_eq!((breaker.state, breaker.failures), (BreakerState::Open, 2));
    // The node is ready all the same, and says so.
    let health = a.client.ready().await.expect("told");
    let check = health.checks.iter().find(|check| check.name == "fabric");
    let check = check.expect("it is among the checks");
    assert!(health.is_ok() && check.ok);
    assert!(
        check
            .detail
            .as_deref()
            .is_some_and(|d| d.contains("left alone")),
        "{check:?}"
    );
    a.daemon.stop().await;
}
