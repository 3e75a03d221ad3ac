//! Sessions that a detach could not end: a path was dead, or nobody waited.
//!
//! The target may still carry out what is under way in them, over newer data, long after. Only a login with
//! their ISID ends them (RFC 7143 6.3.5), so that is kept for the next attach of the same LUN, whatever its
//! name: it goes on where the last one stopped, as after a crash of the daemon.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_api::TargetName;
use berth_api::types::{AttachRequest, IscsiSource};
use berth_iscsi::types::Isid;
use serde::{Deserialize, Serialize};

use super::intent::{Intent, KnownPath, PathsUsedUp, parse_isid};
use super::store::{Store, StoreError};

/// Most LUNs of which sessions are remembered; the oldest are forgotten first. More than a node attaches.
const LEFT_MAX: usize = 1024;

/// What may be left of an attachment on its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Left {
    target: TargetName,
    lun: u16,
    /// That of path 0, in hexadecimal.
    isid: String,
    paths: Vec<KnownPath>,
    next_path: u16,
}

impl Left {
    /// What an attachment leaves that is gone; `None` when all of its sessions were logged out.
    fn of(intent: &Intent) -> Option<Self> {
        if intent.clean {
            return None;
        }
        let source = intent.request.source.iscsi()?;
        Some(Self {
            target: source.target.clone(),
            lun: source.lun,
            isid: intent.isid.to_string(),
            paths: intent.paths.clone(),
            next_path: intent.next_path,
        })
    }

    /// Whether a request is for the same LUN.
    fn is_of(&self, request: &AttachRequest) -> bool {
        let same = |source: &IscsiSource| self.target == source.target && self.lun == source.lun;
        request.source.iscsi().is_some_and(same)
    }

    /// Whether these are the sessions of an attachment with this ISID.
    fn has(&self, isid: Isid) -> bool {
        self.isid == isid.to_string()
    }

    /// An intent that goes on where this stopped. Paths to portals that are not wanted any more are retired:
    /// they are kept until their session is gone.
    fn resume(&self, request: AttachRequest, isid: Isid) -> Result<Intent, PathsUsedUp> {
        let wanted = Intent::new(request, isid);
        let portals = wanted.portals().to_vec();
        let mut intent = Intent {
            paths: self.paths.clone(),
            next_path: self.next_path,
            clean: false,
            ..wanted
        };
        intent.set_portals(&portals)?;
        Ok(intent)
    }
}

/// What was left, of every LUN; also on disk.
#[derive(Debug)]
pub struct Leftovers(Mutex<Book>);

#[derive(Debug)]
struct Book {
    store: Store,
    /// For the next attach of their LUN.
    free: Vec<Left>,
    /// Of an attach under way, whose intent is not on disk yet.
    taken: Vec<Left>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLeft {
    left: Vec<Left>,
}

const DOCUMENT: &str = "left-sessions";

impl Leftovers {
    /// Opens what is kept below the state directory.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        Ok(Self(Mutex::new(Book {
            store: Store::open(state_dir.join("node"))?,
            free: Vec::new(),
            taken: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // Whole after every statement, even if one panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the last run kept, except what an intent has taken over since.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn restore<'a>(&self, intents: impl Iterator<Item = &'a Intent>) -> Result<(), StoreError> {
        let mut book = self.lock();
        let stored = book.store.get::<StoredLeft>(DOCUMENT)?;
        let mut left = stored.map_or_else(Vec::new, |stored| stored.left);
        for intent in intents {
            left.retain(|one| !one.has(intent.isid));
        }
        book.free = left;
        Ok(())
    }

    /// Keeps what a detach leaves, if anything; durable when it returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, intent: &Intent) -> Result<(), StoreError> {
        let Some(left) = Left::of(intent) else {
            return Ok(());
        };
        let mut book = self.lock();
        book.free.retain(|one| !one.has(intent.isid));
        book.free.push(left);
        if book.free.len() > LEFT_MAX {
            let forgotten = book.free.remove(0);
            tracing::warn!(
                target = %forgotten.target, lun = forgotten.lun,
                "sessions that a detach left on their target are forgotten: there are too many"
            );
        }
        book.write()
    }

    /// The intent of an attach that goes on where the last one of this LUN left sessions, if it did. Until
    /// [`Leftovers::settle`] it stays on disk here.
    ///
    /// # Errors
    /// When numbers of paths are used up.
    pub fn resume(&self, request: &AttachRequest) -> Result<Option<Intent>, PathsUsedUp> {
        let mut book = self.lock();
        let Some(at) = book.free.iter().rposition(|left| left.is_of(request)) else {
            return Ok(None);
        };
        let Some(isid) = parse_isid(&book.free[at].isid) else {
            return Ok(None); // Not what this program wrote.
        };
        let intent = book.free[at].resume(request.clone(), isid)?;
        let left = book.free.remove(at);
        book.taken.push(left);
        Ok(Some(intent))
    }

    /// The intent that took something over is on disk (`kept`), or will never be.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn settle(&self, isid: Isid, kept: bool) -> Result<(), StoreError> {
        let mut book = self.lock();
        let Some(at) = book.taken.iter().position(|left| left.has(isid)) else {
            return Ok(());
        };
        let left = book.taken.remove(at);
        if !kept {
            book.free.push(left);
            return Ok(()); // As on disk.
        }
        book.write()
    }
}

impl Book {
    fn write(&self) -> Result<(), StoreError> {
        let left = self.taken.iter().chain(&self.free).cloned().collect();
        self.store.put(DOCUMENT, &StoredLeft { left })
    }
}

#[cfg(test)]
#[path = "left_tests.rs"]
mod tests;
