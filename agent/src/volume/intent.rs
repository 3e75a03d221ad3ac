//! What is kept of an attachment on disk, apart from the types of the API.
//!
//! The attach request without its secrets, the secrets in a document of their own, and what must stay
//! the same over a restart: ISIDs and paths, the identity of the volume, and what is known about sessions
//! and reservations that an earlier life may have left on the target.

use std::sync::{Mutex, PoisonError};

use berth_api::types::unix_ms_now;
use berth_api::{
    AttachmentName, Portal,
    types::{
        AttachRequest, DeviceWish, DigestPolicy, Digests, Fence, IscsiSource, RecoveryTimeout,
    },
};
use berth_iscsi::types::Isid;
use serde::{Deserialize, Serialize};

use super::store::{Store, StoreError};
use super::stored_source::{StoredSecrets, StoredSource, secrets_of};

/// The intent to have an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// What was asked for, as changed since; its `takeover` is never kept.
    pub request: AttachRequest,
    /// The ISID of path 0; each path adds its number. A new login with it ends the old session on the
    /// target.
    pub isid: Isid,
    /// Every path that may have a session on the target.
    pub paths: Vec<KnownPath>,
    /// The number that the next new path gets; none is given twice.
    pub next_path: u16,
    /// No session of ours can be left on the target: none was ever made, or all were logged out.
    pub clean: bool,
    /// The fence of the present attach.
    pub fence: Option<KnownFence>,
    /// What the volume said it was when it was attached for the first time.
    pub identity: Option<KnownIdentity>,
    /// The kernel device that there is, or that is about to be made.
    pub device: Option<KnownDevice>,
    /// It was detached here, and the fabric has to be told: nothing else is done about it any more.
    pub leaving: bool,
}

/// A kernel device, as it is kept. Written before the device is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownDevice {
    /// Tells it from every other device; its number does not, numbers are used again.
    pub backend: String,
    /// NBD transmission flags that it was connected with. The kernel keeps to them as long as the device lives,
    /// so later versions of berth do, too.
    pub flags: u16,
    /// The last life left its connection at a message boundary with nothing unanswered, and the service manager
    /// keeps the socket: the next life may go on with it, once.
    #[serde(default)]
    pub parked: bool,
}

/// A path, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownPath {
    /// Its number.
    pub index: u16,
    /// Its portal.
    pub portal: Portal,
    /// The portal group that the target named there last.
    pub portal_group: Option<u16>,
    /// It was taken away, and its session may still be there.
    pub retired: bool,
}

/// A fence, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownFence {
    /// The epoch of the last attempt to attach: part of the reservation key. 0 with a fence by the fabric's list.
    pub epoch: u32,
    /// What came of it.
    pub standing: Standing,
}

/// How an attachment stands with its fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It was asked for; no I/O was served.
    Asked,
    /// The volume was ours, and I/O may have been served: the next life may only go on if it still is.
    Held,
    /// Another node took it: nothing is sent any more until somebody asks for an attach anew.
    Lost,
}

/// What a volume said it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownIdentity {
    /// The best designator of VPD page 83h, as `naa.…`, or the serial number, as `serial.…`.
    pub designator: String,
    /// Logical block length in bytes.
    pub block_bytes: u32,
}

/// Intents that were read, and files that could not be.
pub type Loaded = (Vec<(AttachmentName, Intent)>, Vec<(String, StoreError)>);

/// Where intents are kept.
#[derive(Debug)]
pub struct Intents {
    attachments: Store,
    secrets: Store,
    /// Facts of the node; locked while the epoch grows.
    node: Mutex<Store>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEpoch {
    last: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredAttachment {
    source: StoredSource,
    device: DeviceWish,
    read_only: bool,
    fence: Fence,
    header_digest: DigestPolicy,
    data_digest: DigestPolicy,
    /// Nothing: as configured.
    recovery_timeout: Option<RecoveryTimeout>,
    attach_timeout_seconds: u32,
    isid: String,
    identity: Option<KnownIdentity>,
    /// Not in files of version 1: one path for each portal, and whether their sessions are gone is not
    /// known.
    #[serde(default)]
    paths: Option<StoredPaths>,
    #[serde(default)]
    clean: bool,
    #[serde(default, rename = "reservation")]
    known_fence: Option<KnownFence>,
    #[serde(default)]
    kernel_device: Option<KnownDevice>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    leaving: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPaths {
    next: u16,
    known: Vec<KnownPath>,
}

impl Intents {
    /// Opens the stores below the state directory.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(state_dir: &std::path::Path) -> Result<Self, StoreError> {
        Ok(Self {
            attachments: Store::open(state_dir.join("attachments"))?,
            secrets: Store::open(state_dir.join("secrets"))?,
            node: Mutex::new(Store::open(state_dir.join("node"))?),
        })
    }

    /// An epoch for a new attach with a fence: higher than any before on this node, and durable when it
    /// returns. It follows the clock where it can, so that it grows even when the state directory was lost.
    ///
    /// # Errors
    /// When it cannot be read or written, or all epochs are used up.
    pub fn next_epoch(&self) -> Result<u32, StoreError> {
        const DOCUMENT: &str = "epoch";
        let node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        let last = node
            .get::<StoredEpoch>(DOCUMENT)?
            .map_or(0, |stored| stored.last);
        let now = u32::try_from(unix_ms_now() / 1000).unwrap_or(0);
        let next = last
            .checked_add(1)
            .ok_or_else(|| StoreError::Damaged {
                path: DOCUMENT.into(),
                message: "the epoch cannot grow any more".to_owned(),
            })?
            .max(now);
        node.put(DOCUMENT, &StoredEpoch { last: next })?;
        Ok(next)
    }

    /// Keeps the intent; durable when it returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, name: &AttachmentName, intent: &Intent) -> Result<(), StoreError> {
        // Secrets first: an attachment that is there can always be made.
        match secrets_of(&intent.request) {
            Some(secrets) => self.secrets.put(name.as_str(), &secrets)?,
            None => self.secrets.remove(name.as_str())?,
        }
        self.attachments
            .put(name.as_str(), &StoredAttachment::from(intent))
    }

    /// Forgets the intent; absent is fine. Durable when it returns.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &AttachmentName) -> Result<(), StoreError> {
        self.attachments.remove(name.as_str())?;
        self.secrets.remove(name.as_str())
    }

    /// All intents that can be read, and an error for each one that cannot.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for name in self.attachments.names()? {
            match self.load_one(&name) {
                Ok(Some(entry)) => good.push(entry),
                Ok(None) => {}
                Err(error) => bad.push((name, error)),
            }
        }
        Ok((good, bad))
    }

    fn load_one(&self, file_name: &str) -> Result<Option<(AttachmentName, Intent)>, StoreError> {
        let damaged = |message: String| StoreError::Damaged {
            path: format!("attachment {file_name}").into(),
            message,
        };
        let name: AttachmentName = file_name
            .parse()
            .map_err(|error| damaged(format!("{error}")))?;
        let Some(stored) = self.attachments.get::<StoredAttachment>(file_name)? else {
            return Ok(None);
        };
        let secrets = self.secrets.get::<StoredSecrets>(file_name)?;
        let isid = parse_isid(&stored.isid).ok_or_else(|| damaged("wrong isid".to_owned()))?;
        let source = stored.source.restore(secrets).map_err(damaged)?;
        let portals = source.iscsi().map_or(&[][..], |source| &source.portals);
        let stored_paths = stored.paths.unwrap_or_else(|| StoredPaths::first(portals));
        check_paths(&stored_paths, source.iscsi()).map_err(damaged)?;
        let request = AttachRequest {
            source,
            device: stored.device,
            read_only: stored.read_only,
            fence: stored.fence,
            takeover: false,
            digests: Digests {
                header: stored.header_digest,
                data: stored.data_digest,
            },
            recovery_timeout_seconds: stored.recovery_timeout,
            attach_timeout_seconds: stored.attach_timeout_seconds,
        };
        Ok(Some((
            name,
            Intent {
                request,
                isid,
                paths: stored_paths.known,
                next_path: stored_paths.next,
                clean: stored.clean,
                fence: stored.known_fence,
                identity: stored.identity,
                device: stored.kernel_device,
                leaving: stored.leaving,
            },
        )))
    }
}

impl Intent {
    /// A new one: one path for each portal, nothing on the target yet.
    #[must_use]
    pub fn new(request: AttachRequest, isid: Isid) -> Self {
        let source = request.source.iscsi();
        let paths = StoredPaths::first(source.map_or(&[], |source| &source.portals));
        Self {
            isid,
            paths: paths.known,
            next_path: paths.next,
            clean: true,
            fence: None,
            identity: None,
            device: None,
            leaving: false,
            request,
        }
    }

    /// The portals that are wanted.
    #[must_use]
    pub fn portals(&self) -> &[Portal] {
        let source = self.request.source.iscsi();
        source.map_or(&[], |source| &source.portals)
    }

    /// How long I/O waits; `default` where nobody said.
    #[must_use]
    pub fn recovery_timeout(&self, default: RecoveryTimeout) -> RecoveryTimeout {
        self.request.recovery_timeout_seconds.unwrap_or(default)
    }

    /// Wants these portals from now on: a path for each new one, and the paths to others are retired.
    ///
    /// # Errors
    /// When numbers of paths are used up.
    pub fn set_portals(&mut self, portals: &[Portal]) -> Result<(), PathsUsedUp> {
        for path in &mut self.paths {
            path.retired |= !portals.contains(&path.portal);
        }
        let mut wanted = Vec::with_capacity(portals.len());
        for portal in portals {
            if wanted.contains(portal) {
                continue;
            }
            wanted.push(portal.clone());
            // A path that is still leaving does not come back: its number stands for its old session.
            if self
                .paths
                .iter()
                .any(|path| !path.retired && path.portal == *portal)
            {
                continue;
            }
            let index = self.next_path;
            self.next_path = index.checked_add(1).ok_or(PathsUsedUp)?;
            self.paths.push(KnownPath {
                index,
                portal: portal.clone(),
                portal_group: None,
                retired: false,
            });
        }
        if let Some(source) = self.request.source.iscsi_mut() {
            source.portals = wanted;
        }
        Ok(())
    }
}

/// An attachment had more paths in its life than it can number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no more paths can be numbered; detach and attach again")]
pub struct PathsUsedUp;

impl StoredPaths {
    /// The paths of a new attachment: one for each portal, in order.
    fn first(portals: &[Portal]) -> Self {
        let mut known: Vec<KnownPath> = Vec::with_capacity(portals.len());
        for portal in portals {
            if known.iter().any(|path| path.portal == *portal) {
                continue; // Named twice: one way is one path.
            }
            known.push(KnownPath {
                index: u16::try_from(known.len()).unwrap_or(u16::MAX),
                portal: portal.clone(),
                portal_group: None,
                retired: false,
            });
        }
        Self {
            next: u16::try_from(known.len()).unwrap_or(u16::MAX),
            known,
        }
    }
}

fn check_paths(paths: &StoredPaths, source: Option<&IscsiSource>) -> Result<(), String> {
    let numbers: std::collections::BTreeSet<u16> =
        paths.known.iter().map(|path| path.index).collect();
    if numbers.len() != paths.known.len() || numbers.last().is_some_and(|last| *last >= paths.next)
    {
        return Err("wrong path numbers".to_owned());
    }
    let Some(source) = source else {
        return Ok(()); // The fabric did not say yet where it is.
    };
    let portals = &source.portals;
    let usable = |portal: &Portal| {
        let mut known = paths.known.iter();
        known.any(|path| !path.retired && path.portal == *portal)
    };
    if portals.is_empty() || !portals.iter().all(usable) {
        return Err("a portal without path".to_owned());
    }
    Ok(())
}

impl From<&Intent> for StoredAttachment {
    fn from(intent: &Intent) -> Self {
        let request = &intent.request;
        Self {
            source: StoredSource::from(&request.source),
            device: request.device,
            read_only: request.read_only,
            fence: request.fence,
            header_digest: request.digests.header,
            data_digest: request.digests.data,
            recovery_timeout: request.recovery_timeout_seconds,
            attach_timeout_seconds: request.attach_timeout_seconds,
            isid: intent.isid.to_string(),
            identity: intent.identity.clone(),
            paths: Some(StoredPaths {
                next: intent.next_path,
                known: intent.paths.clone(),
            }),
            clean: intent.clean,
            known_fence: intent.fence,
            kernel_device: intent.device.clone(),
            leaving: intent.leaving,
        }
    }
}

pub(super) fn parse_isid(text: &str) -> Option<Isid> {
    if text.len() != 12 || !text.is_ascii() {
        return None;
    }
    let mut isid = [0; 6];
    for (at, byte) in isid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(Isid(isid))
}

#[cfg(test)]
#[path = "intent_tests.rs"]
mod tests;
