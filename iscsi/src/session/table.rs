//! Live tasks by Initiator Task Tag (RFC 7143 11.2.1.8).
//!
//! A tag is a slot index (low 16 bits) and the slot's generation (high 16 bits), so a lookup is one
//! array access, and a late or forged tag does not find the slot's next owner.

use std::time::Instant;

use super::api::TaskManagement;
use super::task::Task;
use crate::types::{Itt, Lun};

/// Index 0xffff is never used, so no tag is ever 0xffffffff.
const SLOTS_MAX: usize = 0xffff;

/// What a tag stands for.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all entries are tasks, and a box would cost an allocation per command"
)]
pub(super) enum Entry {
    Scsi(Task),
    Ping { sent_at: Instant },
    TaskManagement(PendingTaskManagement),
    Text { answer: Vec<u8>, until: Instant },
    Logout,
}

/// A task management request that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingTaskManagement {
    pub(super) request: ManagementRequest,
    /// Tasks sent before this count are reached by the request.
    pub(super) send_order: u64,
    /// When it must have been answered. ABORT TASK has none of its own: its task has.
    pub(super) until: Option<Instant>,
    /// Whether it counts among the requests in flight: not a reset of ours, nor an abort that was
    /// given up and may still be answered.
    pub(super) counted: bool,
}

/// A task management request, sent or not.
#[derive(Debug, Clone, Copy)]
pub(super) enum ManagementRequest {
    /// ABORT TASK for a live task.
    Abort { task: Itt },
    /// LOGICAL UNIT RESET because an abort failed.
    Reset { lun: Lun },
    /// What the user asked for.
    User {
        tag: u64,
        function: TaskManagement,
        lun: Lun,
    },
}

#[derive(Debug)]
struct Slot {
    generation: u16,
    entry: Option<Entry>,
}

/// The table; grows up to its capacity and never shrinks.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    /// Free slots; the last freed is used first, while it is in the cache.
    free: Vec<u16>,
    capacity: usize,
}

impl Table {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            capacity: capacity.min(SLOTS_MAX),
        }
    }

    /// Number of live entries.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Stores `entry` under a new tag; `None` when the table is full.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<Itt> {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[usize::from(index)];
            slot.generation = slot.generation.wrapping_add(1);
            debug_assert!(slot.entry.is_none());
            slot.entry = Some(entry);
            return Some(tag(index, slot.generation));
        }
        if self.slots.len() >= self.capacity {
            return None;
        }
        let index = u16::try_from(self.slots.len()).expect("capacity is below 0xffff");
        self.slots.push(Slot {
            generation: 0,
            entry: Some(entry),
        });
        Some(tag(index, 0))
    }

    pub(super) fn get(&self, itt: Itt) -> Option<&Entry> {
        let slot = self.slots.get(index(itt))?;
        (slot.generation == generation(itt))
            .then_some(slot.entry.as_ref())
            .flatten()
    }

    pub(super) fn get_mut(&mut self, itt: Itt) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(index(itt))?;
        (slot.generation == generation(itt))
            .then_some(slot.entry.as_mut())
            .flatten()
    }

    /// The SCSI task of that tag.
    pub(super) fn task_mut(&mut self, itt: Itt) -> Option<&mut Task> {
        match self.get_mut(itt) {
            Some(Entry::Scsi(task)) => Some(task),
            _ => None,
        }
    }

    /// Takes the entry out; its tag is free for reuse under another generation.
    pub(super) fn remove(&mut self, itt: Itt) -> Option<Entry> {
        let at = index(itt);
        let slot = self.slots.get_mut(at)?;
        if slot.generation != generation(itt) {
            return None;
        }
        let entry = slot.entry.take()?;
        self.free
            .push(u16::try_from(at).expect("indexes are 16 bits"));
        Some(entry)
    }

    /// All live entries; for rare events only.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Itt, &Entry)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| {
            let at = u16::try_from(at).expect("indexes are 16 bits");
            slot.entry
                .as_ref()
                .map(|entry| (tag(at, slot.generation), entry))
        })
    }

    /// Starts every slot at `generation`, to test the wrap.
    #[cfg(test)]
    pub(super) fn age(&mut self, slots: u16, generation: u16) {
        assert!(self.slots.is_empty());
        for index in 0..slots {
            self.slots.push(Slot {
                generation,
                entry: None,
            });
            self.free.push(index);
        }
    }
}

fn tag(index: u16, generation: u16) -> Itt {
    Itt(u32::from(generation) << 16 | u32::from(index))
}

fn index(itt: Itt) -> usize {
    (itt.0 & 0xffff) as usize
}

fn generation(itt: Itt) -> u16 {
    (itt.0 >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_tag_finds_nothing_rfc7143_11_2_1_8() {
        let mut table = Table::new(8);
        let first = table.insert(Entry::Logout).unwrap();
        assert!(table.get(first).is_some());
        assert!(table.remove(first).is_some());
        let second = table.insert(Entry::Logout).unwrap();
        assert_ne!(first, second);
        assert!(table.get(first).is_none());
        assert!(table.remove(first).is_none());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn the_reserved_tag_is_never_given_even_when_generations_wrap() {
        let mut table = Table::new(usize::MAX);
        table.age(u16::MAX, 0xfffe);
        for _ in 0..3 {
            let tags: Vec<Itt> = (0..SLOTS_MAX)
                .map(|_| table.insert(Entry::Logout).unwrap())
                .collect();
            assert!(tags.iter().all(|itt| !itt.is_none()));
            assert!(table.insert(Entry::Logout).is_none(), "the table is full");
            for itt in tags {
                table.remove(itt).unwrap();
            }
        }
        assert!(table.get(Itt::NONE).is_none());
        assert_eq!(table.len(), 0);
    }
}
