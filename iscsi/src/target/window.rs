//! The command window of one session: which CmdSN may come, which come too early (RFC 7143 4.2.2.1).

use std::collections::VecDeque;

use crate::types::CmdSn;

/// What to do with a non-immediate command by its CmdSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is the next one.
    Now,
    /// Commands before it are missing: keep it.
    Early,
    /// Outside of the window, or seen before: ignored without an answer, as the RFC asks.
    Ignored,
}

/// Window and reorder queue. `T` is what is kept of a command that came too early.
///
/// The window follows the tasks: MaxCmdSN = ExpCmdSN + size - unfinished tasks - 1, so a session never
/// has more than `size` tasks, and a finished task opens the window by one. MaxCmdSN never goes back.
#[derive(Debug)]
pub(crate) struct CommandWindow<T> {
    exp: CmdSn,
    max: CmdSn,
    size: u32,
    unfinished: u32,
    frozen: bool,
    /// Slot `i` holds the command with CmdSN `exp + 1 + i`.
    early: VecDeque<Option<T>>,
}

impl<T> CommandWindow<T> {
    /// A window of `size` commands (at least one) that expects `exp` first.
    pub(crate) fn new(exp: CmdSn, size: u32) -> Self {
        let size = size.max(1);
        Self {
            exp,
            max: CmdSn(exp.0.wrapping_add(size - 1)),
            size,
            unfinished: 0,
            frozen: false,
            early: VecDeque::new(),
        }
    }

    /// Next CmdSN expected.
    pub(crate) fn exp(&self) -> CmdSn {
        self.exp
    }

    /// Last CmdSN accepted.
    pub(crate) fn max(&self) -> CmdSn {
        self.max
    }

    /// Whether no non-immediate command can come.
    pub(crate) fn is_closed(&self) -> bool {
        self.max.next() == self.exp
    }

    /// Where `cmd_sn` stands.
    pub(crate) fn arrival(&self, cmd_sn: CmdSn) -> Arrival {
        if cmd_sn.is_before(self.exp) || self.max.is_before(cmd_sn) {
            return Arrival::Ignored;
        }
        if cmd_sn == self.exp {
            return Arrival::Now;
        }
        match self.early.get(self.slot(cmd_sn)) {
            Some(Some(_)) => Arrival::Ignored,
            _ => Arrival::Early,
        }
    }

    /// Keeps a command that is [`Arrival::Early`].
    pub(crate) fn keep(&mut self, cmd_sn: CmdSn, command: T) {
        debug_assert_eq!(self.arrival(cmd_sn), Arrival::Early);
        let slot = self.slot(cmd_sn);
        if self.early.len() <= slot {
            self.early.resize_with(slot + 1, || None);
        }
        self.early[slot] = Some(command);
    }

    /// The expected command was delivered; gives the next one when it is already here.
    pub(crate) fn advance(&mut self) -> Option<T> {
        self.exp = self.exp.next();
        let next = self.early.pop_front().flatten();
        self.open();
        next
    }

    /// A delivered command became a task.
    pub(crate) fn task_started(&mut self) {
        self.unfinished += 1;
    }

    /// A task that was counted is over.
    pub(crate) fn task_finished(&mut self) {
        debug_assert!(self.unfinished > 0, "every finished task was started");
        self.unfinished = self.unfinished.saturating_sub(1);
        self.open();
    }

    /// Removes an early command for which `matches` holds; its place stays taken by `filler`, because
    /// an aborted command plugs its hole (RFC 7143 4.2.2.1).
    pub(crate) fn replace_early(
        &mut self,
        mut matches: impl FnMut(&T) -> bool,
        filler: T,
    ) -> Option<T> {
        let slot = self
            .early
            .iter_mut()
            .flatten()
            .find(|command| matches(command))?;
        Some(std::mem::replace(slot, filler))
    }

    /// Changes the size; what was granted before stays granted.
    pub(crate) fn resize(&mut self, size: u32) {
        self.size = size.max(1);
        self.open();
    }

    /// While frozen no new command is granted, so the window closes as commands come.
    pub(crate) fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
        self.open();
    }

    fn slot(&self, cmd_sn: CmdSn) -> usize {
        cmd_sn.0.wrapping_sub(self.exp.0).wrapping_sub(1) as usize
    }

    fn open(&mut self) {
        if self.frozen {
            return;
        }
        let room = self.size.saturating_sub(self.unfinished);
        let max = CmdSn(self.exp.0.wrapping_add(room).wrapping_sub(1));
        if self.max.is_before(max) {
            self.max = max;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_holds_back_what_came_early() {
        let mut window = CommandWindow::new(CmdSn(0xffff_fffe), 8);
        assert_eq!(window.max(), CmdSn(5));
        for (sn, name) in [(0xffff_ffff, 'b'), (1, 'd')] {
            assert_eq!(window.arrival(CmdSn(sn)), Arrival::Early);
            window.keep(CmdSn(sn), name);
        }
        assert_eq!(window.arrival(CmdSn(1)), Arrival::Ignored, "a duplicate");
        assert_eq!(window.arrival(CmdSn(0xffff_fffe)), Arrival::Now);
        assert_eq!(window.advance(), Some('b'));
        assert_eq!(window.advance(), None, "0 is missing");
        assert_eq!(window.exp(), CmdSn(0));
        assert_eq!(window.advance(), Some('d'));
        assert_eq!(window.advance(), None);
        assert_eq!(window.exp(), CmdSn(2));
    }

    #[test]
    fn outside_of_the_window_is_ignored() {
        let window = CommandWindow::<()>::new(CmdSn(10), 4);
        assert_eq!(window.arrival(CmdSn(9)), Arrival::Ignored);
        assert_eq!(window.arrival(CmdSn(13)), Arrival::Early);
        assert_eq!(window.arrival(CmdSn(14)), Arrival::Ignored);
        assert_eq!(window.arrival(CmdSn(10 + 0x8000_0000)), Arrival::Ignored);
    }

    #[test]
    fn unfinished_tasks_close_the_window_and_max_never_goes_back() {
        let mut window = CommandWindow::<()>::new(CmdSn(1), 2);
        for _ in 0..2 {
            window.task_started();
            window.advance();
        }
        assert!(window.is_closed());
        assert_eq!((window.exp(), window.max()), (CmdSn(3), CmdSn(2)));
        window.task_finished();
        assert_eq!(window.max(), CmdSn(3));
        window.resize(1);
        assert_eq!(window.max(), CmdSn(3));
        window.freeze(true);
        window.task_finished();
        assert_eq!(window.max(), CmdSn(3));
        window.freeze(false);
        assert_eq!(window.max(), CmdSn(3), "size 1: only the next command");
    }

    proptest! {
        #[test]
        fn commands_come_out_once_and_in_order(
            start in any::<u32>(),
            size in 1u32..20,
            sends in proptest::collection::vec(0u32..30, 0..200),
        ) {
            let mut window = CommandWindow::new(CmdSn(start), size);
            let mut delivered = Vec::new();
            for offset in sends {
                let sn = CmdSn(start.wrapping_add(offset));
                match window.arrival(sn) {
                    Arrival::Ignored => {}
                    Arrival::Early => window.keep(sn, offset),
                    Arrival::Now => {
                        delivered.push(offset);
                        while let Some(next) = window.advance() {
                            delivered.push(next);
                        }
                    }
                }
                prop_assert!(window.early.len() <= size as usize);
            }
            let expected: Vec<u32> = (0..delivered.len() as u32).collect();
            prop_assert_eq!(delivered, expected);
        }
    }
}
