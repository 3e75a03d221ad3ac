//! The daemon with kernel devices, on a kernel that is made up but keeps the real one's pitfalls.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_api::client::{Client, ClientError};
use berth_api::types::{
    AttachRequest, Attachment, AttachmentState, DeviceWish, IscsiSource, Source,
};
use berth_api::{AttachmentName, Code};
use berth_iscsi::target::lu::LogicalUnit;
use rustix::io::Errno;

use crate::app::Daemon;
use crate::config::Config;
use crate::nbd::kernel::KernelNbd;
use crate::nbd::kernel::fake::FakeKernel;
use crate::nbd::kernel::users::User;
use crate::service_manager::fake::FakeManager;
use crate::service_manager::{FdStore, Inherited, Notifier, ServiceManager};
use crate::sim::portal::{SimPortal, SimVolume};

const TARGET: &str = "iqn.2026-11.io.berth.test:device";
const SIZE: u64 = 8 << 20;
/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// What outlives a daemon.
struct Node {
    dir: tempfile::TempDir,
    portal: SimPortal,
    kernel: FakeKernel,
    manager: Option<FakeManager>,
}

impl Node {
    fn new() -> Self {
        let volume = SimVolume {
            target: TARGET.parse().expect("a name"),
            serial: "unit-one".to_owned(),
            size_bytes: SIZE,
            write_cache: true,
        };
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            portal: SimPortal::start(vec![volume]).expect("the portal starts"),
            kernel: FakeKernel::new(),
            manager: None,
        }
    }

    /// With a service manager that keeps descriptors.
    fn managed() -> Self {
        Self {
            manager: Some(FakeManager::new()),
            ..Self::new()
        }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.node.initiator_name = Some("iqn.2026-11.io.berth.test:node".to_owned());
        config.node.state_dir = self.dir.path().join("state");
        config.node.runtime_dir = self.dir.path().to_owned();
        config.nbd.device.release_timeout.0 = Duration::from_millis(100);
        config
    }

    async fn start(&self) -> Daemon {
        let service_manager = match &self.manager {
            None => ServiceManager::none(),
            Some(manager) => {
                let mut inherited = Inherited::new(manager.stored()).expect("all are open");
                ServiceManager {
                    store: FdStore::new(&mut inherited, Notifier::to(manager.socket())),
                    inherited,
                    notifier: Notifier::none(),
                }
            }
        };
        let kernel = Arc::new(self.kernel.clone());
        Daemon::start_with(&self.config(), service_manager, kernel)
            .await
            .expect("the daemon starts")
    }

    fn client(&self) -> Client {
        Client::unix(self.dir.path().join("api.sock"))
    }

    fn request(&self, device: DeviceWish) -> AttachRequest {
        let source = Source::Iscsi(IscsiSource {
            portals: vec![self.portal.address().to_string().parse().expect("a portal")],
            target: TARGET.parse().expect("a name"),
            lun: 0,
            auth: None,
        });
        AttachRequest {
            device,
            ..AttachRequest::new(source)
        }
    }

    async fn attach(&self, device: DeviceWish) -> Result<Attachment, ClientError> {
        let attached = self.client().attach(&name(), &self.request(device)).await;
        attached.map(|attached| attached.attachment)
    }

    async fn detach(&self, force: bool) -> Result<(), ClientError> {
        self.client().detach(&name(), force).await
    }

    /// Waits until the attachment is like this.
    async fn wait(&self, like: impl Fn(&Attachment) -> bool) -> Attachment {
        let look = async {
            loop {
                let now = self
                    .client()
                    .attachment(&name())
                    .await
                    .expect("it is known");
                if like(&now) {
                    return now;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, look)
            .await
            .expect("it gets so")
    }

    /// I/O of a user of the device, who may have to wait.
    fn write(&self, byte: u8) -> tokio::task::JoinHandle<Result<(), u32>> {
        let kernel = self.kernel.clone();
        tokio::task::spawn_blocking(move || kernel.write(0, 4096, &[byte; 4096]))
    }

    async fn read(&self) -> Vec<u8> {
        let kernel = self.kernel.clone();
        let read = tokio::task::spawn_blocking(move || kernel.read(0, 4096, 4096));
        read.await.expect("no panic").expect("reads")
    }

    fn asked(&self, what: &str) -> usize {
        let asked = self.kernel.asked();
        asked.iter().filter(|asked| asked.starts_with(what)).count()
    }
}

fn name() -> AttachmentName {
    "vol-0".parse().expect("a name")
}

fn code(error: &ClientError) -> Code {
    error.code().expect("a problem document")
}

fn mounted(at: &str) -> Vec<User> {
    vec![User::Mount {
        at: at.to_owned(),
        namespace_of: None,
    }]
}

fn is_up(attachment: &Attachment) -> bool {
    attachment.state == AttachmentState::Attached
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_made_used_and_taken_away() {
    let node = Node::new();
    let daemon = node.start().await;
    // udev has just looked into the device that was chosen.
    node.kernel.refuse_connect(Errno::BUSY);
    let attachment = node.attach(DeviceWish::Kernel).await.expect("attaches");
    assert_eq!(attachment.device.as_deref(), Some("/dev/nbd0"));
    assert_eq!(node.asked("connect berth."), 2);
    node.write(7).await.expect("no panic").expect("writes");
    assert_eq!(node.read().await, [7; 4096]);

    node.kernel.set_users(0, mounted("/srv/data"));
    let refused = node.detach(false).await.expect_err("it is mounted");
    assert_eq!(code(&refused), Code::InUse);
    let text = refused.to_string();
    assert!(text.contains("/dev/nbd0 is mounted at /srv/data"), "{text}");
    node.write(8).await.expect("no panic").expect("it works on");

    node.kernel.set_users(0, Vec::new());
    node.detach(false).await.expect("detaches");
    let asked = node.kernel.asked();
    let order = &asked[asked.len() - 2..];
    assert_eq!(order, ["flush 0", "disconnect 0"]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nbd_in_the_kernel_auto_is_the_socket_and_says_why() {
    let node = Node::new();
    node.kernel.set_missing(true);
    let daemon = node.start().await;
    let refused = node.attach(DeviceWish::Kernel).await.expect_err("refused");
    assert_eq!(code(&refused), Code::NotImplemented);
    assert!(refused.to_string().contains("modprobe nbd"), "{refused}");
    assert!(
        !node
            .client()
            .node()
            .await
            .expect("answers")
            .kernel_nbd
            .available
    );
    let attachment = node.attach(DeviceWish::Auto).await.expect("attaches");
    assert_eq!(attachment.device, None);
    let detail = attachment.device_detail.expect("it says why");
    assert!(detail.contains("modprobe nbd"), "{detail}");
    assert!(attachment.nbd_uri.is_some());
    node.detach(false).await.expect("detaches");
    // Loaded meanwhile: no restart is needed.
    node.kernel.set_missing(false);
    let attachment = node.attach(DeviceWish::Auto).await.expect("attaches");
    assert_eq!(attachment.device.as_deref(), Some("/dev/nbd0"));
    node.detach(false).await.expect("detaches");
    let attachment = node.attach(DeviceWish::Socket).await.expect("attaches");
    assert_eq!((attachment.device, attachment.device_detail), (None, None));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_whose_device_fails_leaves_nothing() {
    let node = Node::new();
    let daemon = node.start().await;
    node.kernel.refuse_connect(Errno::NOMEM);
    let failed = node.attach(DeviceWish::Kernel).await.expect_err("fails");
    assert_eq!(code(&failed), Code::DeviceFailed);
    node.wait(|now| now.state == AttachmentState::Failed && now.sessions.is_empty())
        .await;
    let attachment = node.attach(DeviceWish::Kernel).await.expect("works now");
    assert!(is_up(&attachment));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_with_a_store_keeps_the_connection() {
    let mut node = Node::managed();
    let daemon = node.start().await;
    node.attach(DeviceWish::Kernel).await.expect("attaches");
    node.manager.as_mut().expect("managed").receive();
    node.write(1).await.expect("no panic").expect("writes");
    daemon.stop().await;
    let waits = node.write(2);
    let daemon = node.start().await;
    let attachment = node.wait(is_up).await;
    assert_eq!(attachment.device.as_deref(), Some("/dev/nbd0"));
    waits.await.expect("no panic").expect("it only waited");
    assert_eq!(node.read().await, [2; 4096]);
    assert_eq!(node.asked("replace"), 0, "the kernel noticed nothing");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_a_store_ends_the_connection_and_the_next_life_makes_one() {
    let node = Node::new();
    let daemon = node.start().await;
    node.attach(DeviceWish::Kernel).await.expect("attaches");
    let flags = node.kernel.flags(0);
    daemon.stop().await;
    let waits = node.write(3);
    let daemon = node.start().await;
    node.wait(is_up).await;
    waits.await.expect("no panic").expect("it only waited");
    assert_eq!(node.read().await, [3; 4096]);
    assert!(node.asked("replace") >= 1);
    assert_eq!(node.kernel.flags(0), flags);
    daemon.stop().await;
}

/// A life that ends without a word: what it kept says that its connection is in use.
fn crash_after_attach(node: &Node) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let daemon = runtime.block_on(async {
        let daemon = node.start().await;
        node.attach(DeviceWish::Kernel).await.expect("attaches");
        daemon
    });
    runtime.shutdown_timeout(DEADLINE);
    drop(daemon);
}

#[test]
fn after_a_crash_a_stored_connection_is_never_used_again() {
    let mut node = Node::managed();
    crash_after_attach(&node);
    node.manager.as_mut().expect("managed").receive();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        // The store keeps the old connection open: the kernel has noticed nothing, and would drop a new one.
        let waits = node.write(4);
        let daemon = node.start().await;
        node.wait(is_up).await;
        waits.await.expect("no panic").expect("it only waited");
        assert_eq!(node.read().await, [4; 4096]);
        assert!(node.asked("replace") >= 1);
        daemon.stop().await;
    });
    let manager = node.manager.as_mut().expect("managed");
    let messages = [manager.receive(), manager.receive()];
    assert!(messages[0].starts_with("FDSTOREREMOVE=1\n"), "{messages:?}");
    assert!(messages[1].starts_with("FDSTORE=1\n"), "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_replaced() {
    let node = Node::new();
    let daemon = node.start().await;
    node.attach(DeviceWish::Kernel).await.expect("attaches");
    for byte in 1..=5 {
        node.kernel.cut(0);
        node.write(byte)
            .await
            .expect("no panic")
            .expect("it only waited");
        assert_eq!(node.read().await, [byte; 4096]);
    }
    let attachment = node.wait(is_up).await;
    assert_eq!(attachment.device.as_deref(), Some("/dev/nbd0"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_taken_away_from_outside_is_noticed() {
    let node = Node::new();
    let daemon = node.start().await;
    node.attach(DeviceWish::Kernel).await.expect("attaches");
    node.kernel.disconnect_from_outside(0);
    let lost = node.wait(|now| now.state == AttachmentState::Failed).await;
    assert_eq!(lost.device, None);
    let reason = lost.reason.expect("failed has a reason");
    assert_eq!(reason.code, Code::DeviceLost);
    assert!(reason.detail.contains("/dev/nbd0"), "{}", reason.detail);
    let attachment = node.attach(DeviceWish::Kernel).await.expect("attaches");
    assert_eq!(attachment.device.as_deref(), Some("/dev/nbd0"));
    node.write(9).await.expect("no panic").expect("writes");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detach_by_force_ends_with_errors_and_the_number_is_not_used_meanwhile() {
    let node = Node::new();
    let daemon = node.start().await;
    node.attach(DeviceWish::Kernel).await.expect("attaches");
    node.kernel.set_users(0, mounted("/srv"));
    node.detach(true).await.expect("detaches");
    assert_eq!(node.write(1).await.expect("no panic"), Err(5));
    let attachment = node.attach(DeviceWish::Kernel).await.expect("attaches");
    assert_eq!(attachment.device.as_deref(), Some("/dev/nbd1"));
    node.kernel.set_users(0, Vec::new());
    node.detach(false).await.expect("detaches");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_use_is_not_detached_while_its_target_is_away_unless_by_force() {
    let mut node = Node::new();
    let daemon = node.start().await;
    node.attach(DeviceWish::Kernel).await.expect("attaches");
    node.kernel.set_users(0, mounted("/srv"));
    daemon.stop().await;
    node.portal = SimPortal::start(Vec::new()).expect("another portal, without the volume");
    let daemon = node.start().await;
    node.wait(|now| now.state == AttachmentState::Connecting)
        .await;
    let waits = node.write(1);
    let refused = node.detach(false).await.expect_err("it is mounted");
    assert_eq!(code(&refused), Code::InUse);
    node.detach(true).await.expect("detaches");
    assert_eq!(waits.await.expect("no panic"), Err(5));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_grows_makes_its_device_grow() {
    let node = Node::new();
    let daemon = node.start().await;
    node.attach(DeviceWish::Kernel).await.expect("attaches");
    let unit = node.portal.units()[0];
    let grow = node.portal.handle().with(move |portal, _| {
        portal
            .unit_mut::<LogicalUnit>(unit)
            .expect("a unit")
            .resize(SIZE * 2)
            .expect("grows");
    });
    grow.await.expect("the portal runs");
    // The next command brings the news.
    node.read().await;
    node.wait(|now| now.size_bytes == Some(SIZE * 2)).await;
    let asked = format!("resize 0 {}", SIZE * 2);
    let resized = async {
        while node.asked(&asked) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, resized)
        .await
        .expect("the kernel is told");
    daemon.stop().await;
}

#[test]
fn identifiers_name_the_attachment_and_are_never_the_same() {
    let [a, b] = [0, 1].map(|_| super::new_backend(&name()).expect("random numbers"));
    assert_ne!(a, b);
    assert!(a.starts_with("berth.") && a.ends_with(".vol-0"), "{a}");
    assert!(
        Path::new(&a).components().count() == 1,
        "it can be a file name"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_an_attachment_is_found_and_left_alone() {
    let node = Node::new();
    let kernel = || {
        let config = node.config();
        let settings = config.nbd.device.settings(config.nbd.kernel);
        KernelNbd::new(Arc::new(node.kernel.clone()), FdStore::none(), settings)
    };
    let daemon = node.start().await;
    let attached = node.attach(DeviceWish::Kernel).await.expect("attaches");
    let backend = kernel().strangers(&[]).await.expect("a list");
    let backend = backend[0].backend.clone().expect("an identifier");
    let known = kernel().strangers(&[backend]).await.expect("a list");
    assert_eq!(known, []);
    daemon.stop().await;
    // Its intent is gone.
    std::fs::remove_dir_all(node.config().node.state_dir).expect("removed");
    let daemon = node.start().await;
    let strangers = kernel().strangers(&[]).await.expect("a list");
    assert_eq!(strangers.len(), 1);
    assert_eq!(attached.device, Some(kernel().node(strangers[0].index)));
    daemon.stop().await;
}
