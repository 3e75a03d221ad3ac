//! The command window of a session (RFC 7143 4.2.2.1).

use crate::types::{CmdSn, TargetSn};

/// The target acknowledged a command that was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AckedUnsent;

/// CmdSN of the next command, and what the target has acknowledged and allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    next: CmdSn,
    expected: CmdSn,
    max: CmdSn,
}

impl Window {
    /// The window as login left it: `next` is the CmdSN of the first command, `max` the last
    /// MaxCmdSN of the target.
    ///
    /// Some targets count the login itself in ExpCmdSN, so it is not taken from there.
    pub(super) fn new(next: CmdSn, max: CmdSn) -> Self {
        let closed = CmdSn(next.0.wrapping_sub(1));
        let max = if max.is_before(closed) { closed } else { max };
        Self {
            next,
            expected: next,
            max,
        }
    }

    /// CmdSN that the next command will take, and that an immediate request carries.
    pub(super) fn current(&self) -> CmdSn {
        self.next
    }

    /// Whether a non-immediate command may be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.max.is_before(self.next)
    }

    /// How many non-immediate commands may be sent now.
    pub(super) fn room(&self) -> u32 {
        if self.is_open() {
            self.max.0.wrapping_sub(self.next.0).saturating_add(1)
        } else {
            0
        }
    }

    /// Takes the next CmdSN; the window must be open.
    pub(super) fn take(&mut self) -> CmdSn {
        debug_assert!(self.is_open(), "a command was sent outside the window");
        let taken = self.next;
        self.next = taken.next();
        taken
    }

    /// Takes in ExpCmdSN and MaxCmdSN of a target PDU. Old numbers change nothing (RFC 7143 4.2.2.1:
    /// PDUs of several connections may overtake each other), and a MaxCmdSN below ExpCmdSN - 1 makes
    /// both invalid.
    pub(super) fn update(&mut self, sn: &TargetSn) -> Result<(), AckedUnsent> {
        if sn.max_cmd_sn.next().is_before(sn.exp_cmd_sn) {
            return Ok(());
        }
        if self.next.is_before(sn.exp_cmd_sn) {
            // The target would silently ignore what we send next: better to know than to hang.
            return Err(AckedUnsent);
        }
        if self.max.is_before(sn.max_cmd_sn) {
            self.max = sn.max_cmd_sn;
        }
        if self.expected.is_before(sn.exp_cmd_sn) {
            self.expected = sn.exp_cmd_sn;
        }
        Ok(())
    }

    /// Whether the command with this CmdSN is the very one that the target waits for.
    pub(super) fn waits_for(&self, cmd_sn: CmdSn) -> bool {
        cmd_sn == self.expected
    }

    /// Whether the target told that it received the command with this CmdSN.
    pub(super) fn is_acknowledged(&self, cmd_sn: CmdSn) -> bool {
        cmd_sn.is_before(self.expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StatSn;

    fn sn(exp: u32, max: u32) -> TargetSn {
        TargetSn {
            stat_sn: StatSn(0),
            exp_cmd_sn: CmdSn(exp),
            max_cmd_sn: CmdSn(max),
        }
    }

    #[test]
    fn window_opens_and_closes_rfc7143_4_2_2_1() {
        let mut window = Window::new(CmdSn(5), CmdSn(4));
        assert!(!window.is_open());
        assert_eq!(window.room(), 0);
        window.update(&sn(5, 6)).unwrap();
        assert_eq!(window.room(), 2);
        assert_eq!(window.take(), CmdSn(5));
        assert_eq!(window.take(), CmdSn(6));
        assert!(!window.is_open());
        window.update(&sn(7, 6)).unwrap();
        assert!(!window.is_open());
        assert!(window.is_acknowledged(CmdSn(6)) && !window.is_acknowledged(CmdSn(7)));
    }

    #[test]
    fn window_wraps_at_2_to_the_32() {
        let mut window = Window::new(CmdSn(0xffff_ffff), CmdSn(0xffff_ffff));
        window.update(&sn(0xffff_ffff, 1)).unwrap();
        assert_eq!(window.room(), 3);
        let taken: Vec<_> = (0..3).map(|_| window.take().0).collect();
        assert_eq!(taken, [0xffff_ffff, 0, 1]);
        assert!(!window.is_open());
    }

    #[test]
    fn old_numbers_do_not_shrink_the_window() {
        let mut window = Window::new(CmdSn(10), CmdSn(20));
        window.update(&sn(10, 15)).unwrap();
        assert_eq!(window.room(), 11);
    }

    #[test]
    fn invalid_pair_is_ignored_rfc7143_4_2_2_1() {
        let mut window = Window::new(CmdSn(10), CmdSn(20));
        window.update(&sn(40, 38)).unwrap();
        assert_eq!(window.room(), 11);
        assert!(!window.is_acknowledged(CmdSn(10)));
    }

    #[test]
    fn acknowledging_the_future_is_an_error() {
        let mut window = Window::new(CmdSn(10), CmdSn(20));
        assert_eq!(window.update(&sn(11, 20)), Err(AckedUnsent));
    }

    #[test]
    fn nonsense_from_login_leaves_the_window_closed() {
        assert!(!Window::new(CmdSn(10), CmdSn(2)).is_open());
    }
}
