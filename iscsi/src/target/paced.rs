//! Commands that wait for the limits of their logical unit.

use std::time::{Duration, Instant};

use berth_iobuf::Payload;

use super::connection::Connection;
use super::portal::Shared;

/// A command that has all its data and waits for its turn.
#[derive(Debug)]
pub(super) struct Paced {
    ticket: u64,
    unit: usize,
    task: usize,
    data: Payload,
    since: Instant,
}

impl Connection {
    /// Whether the command has to wait; if so, its data is kept here until its turn comes.
    pub(super) fn waits_for_limits(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        task: usize,
        data: &Payload,
    ) -> bool {
        let asking = &self.tasks[task];
        let Some(unit) = asking.unit.filter(|_| asking.override_.is_none()) else {
            return false;
        };
        let load = shared
            .units
            .get(unit)
            .and_then(|found| found.load(&asking.cdb));
        let Some(load) = load else {
            return false;
        };
        let Some(ticket) = shared.pacing.ask(now, unit, self.id, load) else {
            return false;
        };
        self.paced.push_back(Paced {
            ticket,
            unit,
            task,
            data: data.clone(),
            since: now,
        });
        true
    }

    /// When the next of them may start.
    pub(super) fn paced_due(&self, shared: &Shared) -> Option<Instant> {
        let due = |paced: &Paced| match shared.pacing.due(paced.unit, self.id) {
            Ok(due) => due,
            // The limits are gone.
            Err(()) => Some(paced.since),
        };
        self.paced.iter().filter_map(due).min()
    }

    /// Executes those whose turn has come.
    pub(super) fn release_paced(&mut self, shared: &mut Shared, now: Instant) {
        while let Some(at) = self.next_paced(shared, now) {
            let Some(Paced { task, data, .. }) = self.paced.remove(at) else {
                break;
            };
            self.execute(shared, now, task, Ok(data));
        }
    }

    fn next_paced(&self, shared: &mut Shared, now: Instant) -> Option<usize> {
        let mut asked = None;
        for (at, paced) in self.paced.iter().enumerate() {
            if asked == Some(paced.unit) {
                continue;
            }
            asked = Some(paced.unit);
            if shared.pacing.due(paced.unit, self.id).is_err() {
                return Some(at);
            }
            let started = shared
                .pacing
                .start(now, paced.unit, self.id, &mut shared.orders);
            if let Some(started) = started {
                if started.waited > Duration::ZERO
                    && let Some(unit) = shared.units.get_mut(paced.unit)
                {
                    unit.waited(started.load, started.waited);
                }
                return self.paced.iter().position(|p| p.ticket == started.ticket);
            }
        }
        None
    }

    /// The command is aborted.
    pub(super) fn withdraw_paced(&mut self, shared: &mut Shared, task: usize) {
        let orders = &mut shared.orders;
        self.paced.retain(|paced| {
            let stays = paced.task != task;
            if !stays {
                shared.pacing.withdraw(paced.unit, paced.ticket, orders);
            }
            stays
        });
    }

    /// All commands of the connection are gone.
    pub(super) fn forget_paced(&mut self, shared: &mut Shared) {
        if !self.paced.is_empty() {
            self.paced.clear();
            shared.pacing.forget(self.id, &mut shared.orders);
        }
    }
}
