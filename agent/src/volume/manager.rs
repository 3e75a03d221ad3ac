//! All attachments of the node, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use berth_api::events::EventLog;
use berth_api::types::{
    AttachRequest, AttachmentPatch, AttachmentState, Fence, RecoveryTimeout, Source,
};
use berth_api::{AttachmentName, Code, Error};
use berth_iscsi::types::Isid;

use super::attachment::{Attachment, Context, MakeSpec, Origin, View};
use super::intent::{Intent, Intents};
use super::left::Leftovers;
use super::provision::FabricAccess;
use super::store::StoreError;
use crate::block::Geometry;
use crate::block::lun::reservation::{Key, NodeId};
use crate::nbd::connection::Handover;
use crate::nbd::export::{ExportInfo, ExportSummary, Exports};
use crate::nbd::kernel::{KernelNbd, Unavailable};
use crate::plane::{DataPlane, Volume};

/// A data-plane thread that takes no work for so long is stuck.
const DATA_PLANE_LIMIT: Duration = Duration::from_secs(2);

/// What the manager is made of.
pub struct ManagerOptions {
    /// Where intents are kept.
    pub intents: Intents,
    /// What detaches left on targets.
    pub left: Leftovers,
    /// Where volumes live.
    pub plane: Arc<DataPlane>,
    /// Where state changes are told.
    pub events: Arc<EventLog>,
    /// Makes the plan for the data plane out of an intent.
    pub spec: MakeSpec,
    /// Kernel devices of this node.
    pub kernel: KernelNbd,
    /// The node's number in reservation keys.
    pub node_id: NodeId,
    /// The storage fabric, if one is configured.
    pub fabric: Option<FabricAccess>,
    /// For attachments that do not say how long I/O waits.
    pub recovery_timeout: RecoveryTimeout,
    /// Most attachments at a time.
    pub attachments_max: usize,
}

/// Knows all attachments. Each is owned by a task of its own; this is the directory.
pub struct Manager {
    attachments: Mutex<BTreeMap<AttachmentName, Attachment>>,
    context: Arc<Context>,
    attachments_max: usize,
    /// Cleared while the daemon stops: nothing new is taken on.
    open: std::sync::atomic::AtomicBool,
}

/// An attachment as the manager knows it.
pub struct Known {
    /// Its name.
    pub name: AttachmentName,
    /// What was asked for, as changed since.
    pub request: Arc<AttachRequest>,
    pub(super) view: View,
}

impl Known {
    /// Where it stands, since when, and why.
    #[must_use]
    pub fn state(&self) -> (AttachmentState, u64, Option<berth_api::types::Reason>) {
        (
            self.view.state,
            self.view.since_unix_ms,
            self.view.reason.clone(),
        )
    }

    /// The reservation key of the last attach, with a fence by reservation.
    #[must_use]
    pub fn reservation_key(&self) -> Option<Key> {
        self.view.reservation_key
    }

    /// Times that it was attached again, as a whole.
    #[must_use]
    pub fn reconnects(&self) -> u64 {
        self.view.attached_times.saturating_sub(1)
    }

    /// Its kernel device, as `/dev/nbd3`.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.view.device.as_deref()
    }

    /// Why there is no kernel device, where one was wanted.
    #[must_use]
    pub fn device_detail(&self) -> Option<&str> {
        self.view.device_detail.as_deref()
    }

    /// Its volume, while attached.
    #[must_use]
    pub fn volume(&self) -> Option<&Arc<Volume>> {
        self.view.volume.as_ref()
    }
}

impl Manager {
    /// A manager without attachments; [`Manager::restore`] takes on what was kept.
    #[must_use]
    pub fn new(options: ManagerOptions) -> Arc<Self> {
        Arc::new_cyclic(|manager: &Weak<Self>| {
            let manager = manager.clone();
            let context = Context {
                intents: Arc::new(options.intents),
                left: Arc::new(options.left),
                plane: options.plane,
                events: options.events,
                spec: options.spec,
                kernel: options.kernel,
                node_id: options.node_id,
                fabric: options.fabric,
                recovery_timeout: options.recovery_timeout,
                forget: Box::new(move |name| {
                    if let Some(manager) = manager.upgrade() {
                        manager.lock().remove(name);
                    }
                }),
            };
            Self {
                attachments: Mutex::default(),
                context: Arc::new(context),
                attachments_max: options.attachments_max,
                open: true.into(),
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AttachmentName, Attachment>> {
        // The map is changed by single inserts and removes: it is whole even after a panic.
        self.attachments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes on what was kept from the last run. Gives the number, and the files that cannot be read.
    ///
    /// # Errors
    /// When the state directory cannot be listed.
    pub fn restore(&self) -> Result<(usize, Vec<(String, StoreError)>), StoreError> {
        let (intents, unreadable) = self.context.intents.load()?;
        let count = intents.len();
        if let Err(error) = self
            .context
            .left
            .restore(intents.iter().map(|(_, intent)| intent))
        {
            tracing::error!(%error, "what detaches have left on targets is not known");
        }
        let mut attachments = self.lock();
        let wanted = intents
            .iter()
            .filter_map(|(_, intent)| intent.device.as_ref());
        let wanted: Vec<_> = wanted.map(|device| device.backend.clone()).collect();
        self.context.kernel.keep_only(&wanted);
        tokio::spawn(name_strangers(self.context.kernel.clone(), wanted));
        for (name, intent) in intents {
            let context = Arc::clone(&self.context);
            let attachment = Attachment::spawn(name.clone(), intent, Origin::Restored, context);
            attachments.insert(name, attachment);
        }
        Ok((count, unreadable))
    }

    /// Makes the attachment exist; `true` when this call made it.
    ///
    /// # Errors
    /// See [`berth_api::NodeService::attach`].
    pub async fn attach(
        &self,
        name: &AttachmentName,
        request: AttachRequest,
    ) -> Result<bool, Error> {
        let takeover = request.takeover;
        let (attachment, created) = self.find_or_make(name, request)?;
        match attachment.attach(takeover).await {
            Some(result) => result.map(|()| created),
            None => Err(Error::new(
                Code::OperationPending,
                format!("{name} was detached meanwhile; try again"),
            )
            .with_attachment(name)),
        }
    }

    fn find_or_make(
        &self,
        name: &AttachmentName,
        mut request: AttachRequest,
    ) -> Result<(Attachment, bool), Error> {
        request.takeover = false; // It is for this call, and not kept.
        check_fence(&request)?;
        let mut attachments = self.lock();
        if let Some(attachment) = attachments.get(name) {
            let differences = attachment.view.borrow().request.differences(&request);
            if !differences.is_empty() {
                let detail = format!(
                    "{name} exists with another {}; detach it first, or use another name",
                    differences.join(", ")
                );
                return Err(Error::new(Code::ConflictIncompatible, detail).with_attachment(name));
            }
            return Ok((attachment.clone(), false));
        }
        if !self.open.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Error::new(Code::Unavailable, "the daemon is stopping"));
        }
        if attachments.len() >= self.attachments_max {
            let detail = format!("this node has {} attachments, its limit", attachments.len());
            return Err(Error::new(Code::Exhausted, detail).with_attachment(name));
        }
        if let Some(other) = same_unit(&attachments, &request) {
            let detail = format!(
                "{other} is the same LUN, and one of the two has fence \"reservation\": this node has one \
                 reservation key for it; use {other}, or detach it first"
            );
            return Err(Error::new(Code::ConflictIncompatible, detail).with_attachment(name));
        }
        let intent = self.intent_for(request)?;
        let context = Arc::clone(&self.context);
        let attachment = Attachment::spawn(name.clone(), intent, Origin::Asked, context);
        attachments.insert(name.clone(), attachment.clone());
        Ok((attachment, true))
    }

    /// A new intent; it goes on where the last attachment of the LUN left sessions on the target.
    fn intent_for(&self, request: AttachRequest) -> Result<Intent, Error> {
        let used_up = |error| Error::new(Code::Exhausted, format!("{error}"));
        let resumed = self.context.left.resume(&request).map_err(used_up)?;
        match resumed {
            Some(intent) => {
                tracing::info!(
                    isid = %intent.isid,
                    "the last detach left sessions on the target: they are ended first"
                );
                Ok(intent)
            }
            None => Ok(Intent::new(request, new_isid()?)),
        }
    }

    /// Changes the attachment.
    ///
    /// # Errors
    /// See [`berth_api::NodeService::change`].
    pub async fn change(&self, name: &AttachmentName, patch: AttachmentPatch) -> Result<(), Error> {
        let gone = || Error::no_attachment(name);
        let attachment = self.lock().get(name).cloned().ok_or_else(gone)?;
        attachment
            .change(patch)
            .await
            .unwrap_or_else(|| Err(gone()))
    }

    /// Makes the attachment not exist.
    ///
    /// # Errors
    /// See [`berth_api::NodeService::detach`].
    pub async fn detach(&self, name: &AttachmentName, force: bool) -> Result<(), Error> {
        let attachment = self.lock().get(name).cloned();
        match attachment {
            // Absent, or gone while we asked: detached is what was wanted.
            None => Ok(()),
            Some(attachment) => attachment.detach(force).await.unwrap_or(Ok(())),
        }
    }

    /// The attachment of this name.
    #[must_use]
    pub fn get(&self, name: &AttachmentName) -> Option<Known> {
        self.lock()
            .get(name)
            .map(|attachment| known(name, attachment))
    }

    /// All attachments, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Known> {
        self.lock()
            .iter()
            .map(|(name, attachment)| known(name, attachment))
            .collect()
    }

    /// Number of attachments.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Stops every attachment: I/O in flight is finished, sessions are closed, intents are kept.
    /// Whatever takes longer than `limit` is left to the end of the process.
    pub async fn stop(&self, limit: Duration) {
        self.open.store(false, std::sync::atomic::Ordering::Relaxed);
        let attachments: Vec<_> = self.lock().values().cloned().collect();
        let mut stops = tokio::task::JoinSet::new();
        for attachment in attachments {
            stops.spawn(async move { attachment.stop().await });
        }
        let all = async { while stops.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(
                limit_s = limit.as_secs(),
                "some attachments did not stop in time"
            );
        }
    }

    /// Whether kernel devices can be had, as of now.
    ///
    /// # Errors
    /// Why not.
    pub async fn kernel_available(&self) -> Result<(), Unavailable> {
        self.context.kernel.available().await
    }

    /// Whether every thread of the data plane takes work.
    pub async fn data_plane_responds(&self) -> bool {
        self.context.plane.responds(DATA_PLANE_LIMIT).await
    }

    /// Hands an NBD connection to the volume that it asked for.
    pub fn serve(&self, handover: Handover) {
        let volume = handover
            .negotiated
            .export
            .parse::<AttachmentName>()
            .ok()
            .and_then(|name| self.get(&name))
            .and_then(|known| known.view.volume);
        match volume {
            Some(volume) => volume.serve(handover),
            // Detached between its handshake and now: closing the connection says so.
            None => drop(handover),
        }
    }
}

fn known(name: &AttachmentName, attachment: &Attachment) -> Known {
    let view = attachment.view.borrow().clone();
    Known {
        name: name.clone(),
        request: Arc::clone(&view.request),
        view,
    }
}

/// Refuses a fence that the source cannot have.
fn check_fence(request: &AttachRequest) -> Result<(), Error> {
    if request.fence != Fence::Acl || matches!(request.source, Source::Fabric(_)) {
        return Ok(());
    }
    let detail = "fence: \"acl\" is for volumes of the storage fabric, whose access list berth can change; use \
                  \"reservation\" with a target of your own";
    Err(Error::new(Code::InvalidArgument, detail).with_field("fence"))
}

/// Another attachment of the same unit that a reservation would tell apart from this one only by its age.
fn same_unit(
    attachments: &BTreeMap<AttachmentName, Attachment>,
    request: &AttachRequest,
) -> Option<AttachmentName> {
    let same = |attachment: &Attachment| {
        let view = attachment.view.borrow();
        let fenced = [request.fence, view.request.fence].contains(&Fence::Reservation);
        fenced && is_same_unit(&view.request.source, &request.source)
    };
    let mut found = attachments
        .iter()
        .filter(|(_, attachment)| same(attachment));
    found.next().map(|(name, _)| name.clone())
}

/// Whether two sources are known to be the same unit.
fn is_same_unit(a: &Source, b: &Source) -> bool {
    if let (Source::Fabric(a), Source::Fabric(b)) = (a, b)
        && a.volume == b.volume
        && a.unit == b.unit
    {
        return true;
    }
    match (a.iscsi(), b.iscsi()) {
        (Some(a), Some(b)) => a.target == b.target && a.lun == b.lun,
        _ => false,
    }
}

/// A new ISID of the random type; kept with the intent, so that a later login finds the old session.
/// Says which kernel devices of an earlier life belong to no attachment. They are left alone: whoever uses one may
/// have its state somewhere else.
async fn name_strangers(kernel: KernelNbd, wanted: Vec<String>) {
    // Without NBD in the kernel there are none.
    for facts in kernel.strangers(&wanted).await.unwrap_or_default() {
        let device = kernel.node(facts.index);
        tracing::warn!(
            device,
            backend = facts.backend,
            "a kernel device of berth belongs to no attachment of this daemon, and I/O on it waits; if nobody \
             else serves it, take it away with: nbd-client -d {device}"
        );
    }
}

fn new_isid() -> Result<Isid, Error> {
    let mut random = [0; 5];
    getrandom::fill(&mut random).map_err(|error| Error::internal(error.to_string()))?;
    let [a, b, c, d, e] = random;
    Ok(Isid::random([a, b, c], u16::from_be_bytes([d, e])))
}

impl Exports for Manager {
    fn list(&self) -> Vec<ExportSummary> {
        Self::list(self)
            .into_iter()
            .filter(|known| known.view.volume.is_some())
            .map(|known| ExportSummary {
                name: known.name.to_string(),
                description: describe(&known),
            })
            .collect()
    }

    fn open(&self, name: &str) -> Option<ExportInfo> {
        let known = self.get(&name.parse().ok()?)?;
        let geometry: Geometry = known.view.volume.as_ref()?.geometry();
        Some(ExportInfo::new(
            known.name.as_str(),
            &describe(&known),
            &geometry,
        ))
    }
}

fn describe(known: &Known) -> String {
    match known.request.source.iscsi() {
        Some(source) => format!("{} LUN {}", source.target, source.lun),
        None => "a volume of the fabric".to_owned(),
    }
}
