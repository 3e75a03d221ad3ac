//! What is left of a session that ended: the commands without an outcome.
//!
//! This is error recovery level 0 (RFC 7143 7.1.1): the session ends, and its user logs in again with the
//! same ISID and TSIH 0, after which nothing of the old session is alive on the target (6.3.5). Then it
//! sends again what [`Unfinished::sent`] says was sent, in this order, and may send the rest at any time.
//!
//! Higher levels would begin here: level 1 in `receive`, where a gap in StatSN or DataSN fails the session
//! and would ask by SNACK instead; level 2 in [`Session::take_unfinished`], whose tasks know their
//! connection ([`super::task::Sent`]) and could be reassigned instead of handed back.

use super::Session;
use super::api::Command;
use super::table::Entry;
use super::task::Sent;
use crate::types::CmdSn;

/// A command without an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The command, with its data.
    pub command: Command,
    /// Whether it may have been executed, wholly or in part: all of its command PDU was given to the socket,
    /// and nothing says that it was refused. Then it must not be sent again before the old session is gone
    /// on the target. An abort without an answer changes nothing about that.
    pub sent: bool,
    /// Whether the target told that it received it.
    pub acknowledged: bool,
    /// Its CmdSN, if it was sent. Immediate commands share theirs with the next one.
    pub cmd_sn: Option<CmdSn>,
}

impl Session {
    /// Takes the commands without an outcome, in the order in which they were sent (CmdSN order), then
    /// those that were not sent, in the order of submission. Ends the session if it has not ended.
    ///
    /// Each gets no [`super::Event::TaskDone`] any more; events that are queued remain valid.
    #[must_use]
    pub fn take_unfinished(&mut self) -> Vec<Unfinished> {
        self.handle_lost(std::io::ErrorKind::ConnectionAborted);
        let waiting: Vec<_> = self.urgent.drain(..).chain(self.queue.drain(..)).collect();
        let mut sent: Vec<_> = self
            .table
            .iter()
            .filter_map(|(itt, entry)| match entry {
                Entry::Scsi(task) => task.sent.map(|sent| (sent.order, itt)),
                _ => None,
            })
            .collect();
        sent.sort_unstable_by_key(|(order, _)| *order);
        let tags = sent.into_iter().map(|(_, itt)| itt).chain(waiting);
        let mut unfinished = Vec::new();
        for itt in tags {
            if let Some(Entry::Scsi(task)) = self.table.remove(itt) {
                let acknowledged = task.sent.is_some_and(|sent| {
                    !task.command.immediate && self.window.is_acknowledged(sent.cmd_sn)
                });
                let left = task.sent.is_some_and(|sent| self.has_left(sent));
                unfinished.push(Unfinished {
                    sent: (left || acknowledged) && task.refused.is_none(),
                    acknowledged,
                    cmd_sn: task.sent.map(|sent| sent.cmd_sn),
                    command: task.command,
                });
            }
        }
        self.data_queue.clear();
        self.unsolicited = None;
        self.running = 0;
        self.put_back = 0;
        self.task_bytes = 0;
        unfinished
    }

    /// Tells that the last `bytes` of what [`Session::poll_transmit`] built were never given to the socket, and
    /// never will be; ends the session if it has not ended. To be called before
    /// [`Session::take_unfinished`]: a command PDU that did not leave as a whole cannot be executed. Without
    /// this call everything that was built counts as sent.
    pub fn discard_unwritten(&mut self, bytes: usize) {
        self.handle_lost(std::io::ErrorKind::ConnectionAborted);
        self.unwritten_bytes += bytes as u64;
    }

    /// Whether all of a command PDU was given to the socket.
    fn has_left(&self, sent: Sent) -> bool {
        sent.end_byte <= self.emitted_bytes.saturating_sub(self.unwritten_bytes)
    }

    /// [`Session::take_unfinished`] for the last use of a session.
    #[must_use]
    pub fn into_unfinished(mut self) -> Vec<Unfinished> {
        self.take_unfinished()
    }
}
