//! Unit attention conditions, per I_T nexus (SAM-5 5.14).

use std::collections::VecDeque;

use super::super::executor::Nexus;
use crate::scsi::Code;

/// Conditions that wait for one nexus; a repeated one is kept once, so the codes in use bound it anyway.
const PENDING_MAX: usize = 16;

#[derive(Debug)]
struct Entry {
    nexus: Nexus,
    pending: VecDeque<Code>,
}

impl Entry {
    fn push(&mut self, code: Code) {
        if !self.pending.contains(&code) && self.pending.len() < PENDING_MAX {
            self.pending.push_back(code);
        }
    }
}

/// The nexuses that have a session, and what each is to be told.
#[derive(Debug, Default)]
pub(super) struct Nexuses {
    /// Few, so a search is cheaper than hashing two names per command.
    entries: Vec<Entry>,
    /// Conditions that wait, of all nexuses: usually 0, and then nothing is searched.
    pending: usize,
}

impl Nexuses {
    pub(super) fn begin(&mut self, nexus: &Nexus, code: Code) {
        self.end(nexus);
        self.entries.push(Entry {
            nexus: nexus.clone(),
            pending: VecDeque::from([code]),
        });
        self.count();
    }

    pub(super) fn end(&mut self, nexus: &Nexus) {
        self.entries.retain(|entry| entry.nexus != *nexus);
        self.count();
    }

    /// The next condition for this nexus, which is thereby told.
    pub(super) fn take_attention(&mut self, nexus: &Nexus) -> Option<Code> {
        if self.pending == 0 {
            return None;
        }
        let entry = self
            .entries
            .iter_mut()
            .find(|entry| entry.nexus == *nexus)?;
        let code = entry.pending.pop_front()?;
        self.pending -= 1;
        Some(code)
    }

    pub(super) fn attention(&mut self, nexus: &Nexus, code: Code) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.nexus == *nexus) {
            entry.push(code);
        }
        self.count();
    }

    pub(super) fn attention_all(&mut self, code: Code, except: Option<&Nexus>) {
        for entry in &mut self.entries {
            if except != Some(&entry.nexus) {
                entry.push(code);
            }
        }
        self.count();
    }

    /// A reset takes the place of everything that was to be told (SAM-5 5.14.2).
    pub(super) fn reset_all(&mut self, code: Code) {
        for entry in &mut self.entries {
            entry.pending.clear();
            entry.push(code);
        }
        self.count();
    }

    fn count(&mut self) {
        self.pending = self.entries.iter().map(|entry| entry.pending.len()).sum();
    }
}
