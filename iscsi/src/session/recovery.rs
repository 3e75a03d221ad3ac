//! What is left of a session that ended: the commands without an outcome.

use super::Session;
use super::api::Command;
use super::table::Entry;
use crate::types::CmdSn;

/// A command without an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The command, with its data.
    pub command: Command,
    /// Whether it may have been executed, wholly or in part: it was put on the wire and nothing says
    /// that it was refused. Then it must not be sent again before the old session is gone on the target.
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
                unfinished.push(Unfinished {
                    sent: task.sent.is_some() && task.refused.is_none(),
                    acknowledged: task.sent.is_some_and(|sent| {
                        !task.command.immediate && self.window.is_acknowledged(sent.cmd_sn)
                    }),
                    cmd_sn: task.sent.map(|sent| sent.cmd_sn),
                    command: task.command,
                });
            }
        }
        self.data_queue.clear();
        self.unsolicited = None;
        self.running = 0;
        self.task_bytes = 0;
        unfinished
    }

    /// [`Session::take_unfinished`] for the last use of a session.
    #[must_use]
    pub fn into_unfinished(mut self) -> Vec<Unfinished> {
        self.take_unfinished()
    }
}
