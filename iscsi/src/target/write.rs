//! The data of one write command: immediate, unsolicited, solicited (RFC 7143 4.2.5.2, 11.7, 11.8).
//!
//! ```text
//! command + immediate data -> [unsolicited Data-Out .. F] -> R2T -> Data-Out .. F -> ... -> complete
//! ```
//!
//! Data comes in order (DataPDUInOrder and DataSequenceInOrder are always Yes here), so what was
//! received is one growing payload. An error does not end the machine at once: the response must wait
//! until the initiator has ended every sequence it was allowed (RFC 7143 7.8, 11.4.7.2).

use std::collections::VecDeque;

use berth_iobuf::Payload;

use crate::types::Ttt;

/// Why a write ends with CHECK CONDITION before it reached the logical unit (RFC 7143 11.4.7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataError {
    /// ABORTED COMMAND, 0C/0C: unsolicited or immediate data that was not allowed.
    Unexpected,
    /// ABORTED COMMAND, 0C/0D: too much or too little data.
    Amount,
    /// ABORTED COMMAND, 47/05: a Data-Out had a wrong data digest, or is missing (RFC 7143 7.9 has gaps
    /// in DataSN treated as digest errors).
    Digest,
}

impl DataError {
    /// Sense key, ASC, ASCQ.
    pub(crate) fn sense(self) -> (u8, u8, u8) {
        match self {
            Self::Unexpected => (0x0b, 0x0c, 0x0c),
            Self::Amount => (0x0b, 0x0c, 0x0d),
            Self::Digest => (0x0b, 0x47, 0x05),
        }
    }
}

/// A Data-Out for which nothing was asked; at recovery level 0 the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Data-Out with TTT {ttt:#x}, which is no outstanding R2T of its task")]
pub struct DataOutViolation {
    /// TTT received.
    pub ttt: u32,
}

/// Negotiated values that rule the data of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteRules {
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
    pub(crate) first_burst_bytes: u32,
    pub(crate) max_burst_bytes: u32,
    pub(crate) max_outstanding_r2t: u32,
}

/// One Data-Out, as far as the order of data goes.
#[derive(Debug)]
pub(crate) struct DataOutHeader {
    pub(crate) final_: bool,
    pub(crate) ttt: Ttt,
    pub(crate) data_sn: u32,
    pub(crate) offset: u32,
}

/// An R2T to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Solicit {
    pub(crate) r2t_sn: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

#[derive(Debug)]
struct Outstanding {
    ttt: Ttt,
    end: u32,
}

/// Collects the data of one write command.
#[derive(Debug)]
pub(crate) struct WriteData {
    data: Payload,
    /// Bytes received in order, including those that were dropped after an error.
    received: u32,
    /// Bytes to collect: what the command wants, at most EDTL.
    wanted: u32,
    /// The initiator announced unsolicited Data-Out and has not ended it.
    unsolicited: bool,
    /// End of the unsolicited data; exactly this much must come when any Data-Out of it comes.
    unsolicited_end: u32,
    next_data_sn: u32,
    outstanding: VecDeque<Outstanding>,
    /// Offset that the next R2T asks for.
    solicited: u32,
    r2t_sn: u32,
    error: Option<DataError>,
}

impl WriteData {
    /// Starts with the command PDU: `immediate` is its data, `final_` its F bit.
    pub(crate) fn new(
        rules: &WriteRules,
        edtl: u32,
        wanted: u32,
        final_: bool,
        immediate: Payload,
    ) -> Self {
        let burst = rules.first_burst_bytes.min(edtl);
        let len = u32::try_from(immediate.len()).unwrap_or(u32::MAX);
        let mut error = None;
        if len > 0 && !rules.immediate_data {
            error = Some(DataError::Unexpected);
        } else if len > burst {
            error = Some(DataError::Amount);
        }
        if !final_ && rules.initial_r2t {
            error = error.or(Some(DataError::Unexpected));
        }
        Self {
            data: if error.is_some() {
                Payload::new()
            } else {
                immediate
            },
            received: len,
            wanted: wanted.min(edtl),
            unsolicited: !final_,
            unsolicited_end: burst,
            next_data_sn: 0,
            outstanding: VecDeque::new(),
            solicited: len,
            r2t_sn: 0,
            error,
        }
    }

    /// Takes one Data-Out. `digest_ok` is false when its data was dropped for a wrong digest; then
    /// `len` counts, `data` does not.
    ///
    /// # Errors
    /// The transfer tag is none of ours: the connection must end.
    pub(crate) fn on_data_out(
        &mut self,
        header: &DataOutHeader,
        data: Payload,
        len: u32,
        digest_ok: bool,
    ) -> Result<(), DataOutViolation> {
        let end = if header.ttt.is_none() {
            if !self.unsolicited {
                // Nothing allowed this PDU and nothing says how much follows: no order to check.
                self.fail(DataError::Unexpected);
                return Ok(());
            }
            self.unsolicited_end
        } else {
            self.sequence_of(header.ttt)?
        };
        if !digest_ok || header.data_sn != self.next_data_sn || header.offset != self.received {
            self.fail(DataError::Digest);
        }
        let so_far = u64::from(header.offset) + u64::from(len);
        self.next_data_sn = header.data_sn.wrapping_add(1);
        self.received = u32::try_from(so_far).unwrap_or(u32::MAX);
        if so_far > u64::from(end) {
            self.fail(DataError::Amount);
            if !header.final_ && !header.ttt.is_none() {
                self.end_sequence(false, end);
                return Ok(());
            }
        }
        if self.error.is_none() {
            self.data.append(data);
        }
        if header.final_ {
            self.end_sequence(header.ttt.is_none(), end);
        } else if self.received >= end && !header.ttt.is_none() && self.error.is_none() {
            // The whole sequence is here but was not ended (RFC 7143 11.7.1): end it for the peer.
            self.fail(DataError::Amount);
            self.end_sequence(false, end);
        }
        Ok(())
    }

    /// End of the sequence that an R2T asked for. Sequences come in the order of their R2Ts, so those
    /// before it are lost.
    fn sequence_of(&mut self, ttt: Ttt) -> Result<u32, DataOutViolation> {
        let at = self
            .outstanding
            .iter()
            .position(|r2t| r2t.ttt == ttt)
            .ok_or(DataOutViolation { ttt: ttt.0 })?;
        for _ in 0..at {
            self.outstanding.pop_front();
            self.fail(DataError::Digest);
            self.next_data_sn = 0;
        }
        Ok(self.outstanding[0].end)
    }

    fn end_sequence(&mut self, unsolicited: bool, end: u32) {
        if self.received != end {
            self.fail(DataError::Amount);
        }
        if unsolicited {
            self.unsolicited = false;
            self.solicited = self.received;
        } else {
            self.outstanding.pop_front();
        }
        // After an error the next sequence still starts where its R2T said.
        self.received = end;
        self.next_data_sn = 0;
    }

    fn fail(&mut self, error: DataError) {
        self.error.get_or_insert(error);
        self.data = Payload::new();
    }

    /// The range of the next R2T, when one may be sent now; `ttt` names it.
    pub(crate) fn solicit(&mut self, rules: &WriteRules, ttt: Ttt) -> Option<Solicit> {
        if self.unsolicited
            || self.error.is_some()
            || self.solicited >= self.wanted
            || self.outstanding.len() >= rules.max_outstanding_r2t as usize
        {
            return None;
        }
        let len = (self.wanted - self.solicited).min(rules.max_burst_bytes);
        let solicit = Solicit {
            r2t_sn: self.r2t_sn,
            offset: self.solicited,
            len,
        };
        self.r2t_sn = self.r2t_sn.wrapping_add(1);
        self.solicited += len;
        self.outstanding.push_back(Outstanding {
            ttt,
            end: self.solicited,
        });
        Some(solicit)
    }

    /// Whether nothing more will come: all data is here, or an error stands and every sequence ended.
    pub(crate) fn is_complete(&self) -> bool {
        !self.unsolicited
            && self.outstanding.is_empty()
            && (self.error.is_some() || self.received >= self.wanted)
    }

    /// Whether the initiator still owes data of a sequence it was allowed.
    pub(crate) fn is_owed(&self) -> bool {
        self.unsolicited || !self.outstanding.is_empty()
    }

    /// The newest `count` R2Ts were not sent after all.
    pub(crate) fn withdraw(&mut self, count: usize) {
        let left = self.outstanding.len().saturating_sub(count);
        self.outstanding.truncate(left);
    }

    /// Bytes still to be solicited.
    pub(crate) fn unsolicited_rest(&self) -> u32 {
        self.wanted.saturating_sub(self.solicited)
    }

    /// The collected data without what the command did not want, or what went wrong.
    pub(crate) fn take(&mut self) -> Result<Payload, DataError> {
        debug_assert!(self.is_complete());
        match self.error {
            Some(error) => Err(error),
            None => {
                let data = std::mem::take(&mut self.data);
                let wanted = self.wanted as usize;
                Ok(if data.len() > wanted {
                    data.slice(0, wanted)
                } else {
                    data
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: WriteRules = WriteRules {
        initial_r2t: false,
        immediate_data: true,
        first_burst_bytes: 64,
        max_burst_bytes: 100,
        max_outstanding_r2t: 2,
    };

    fn bytes(from: u32, len: u32) -> Payload {
        Payload::from((from..from + len).map(|i| i as u8).collect::<Vec<_>>())
    }

    fn send(
        write: &mut WriteData,
        ttt: Ttt,
        sn: u32,
        offset: u32,
        len: u32,
        final_: bool,
    ) -> Result<(), DataOutViolation> {
        let header = DataOutHeader {
            final_,
            ttt,
            data_sn: sn,
            offset,
        };
        write.on_data_out(&header, bytes(offset, len), len, true)
    }

    #[test]
    fn immediate_data_only_is_complete_at_once() {
        let mut write = WriteData::new(&RULES, 16, 16, true, bytes(0, 16));
        assert!(write.is_complete());
        assert_eq!(write.take(), Ok(bytes(0, 16)));
    }

    #[test]
    fn immediate_then_unsolicited_then_two_r2ts() {
        let mut write = WriteData::new(&RULES, 300, 300, false, bytes(0, 10));
        assert_eq!(
            write.solicit(&RULES, Ttt(1)),
            None,
            "the unsolicited burst comes first"
        );
        send(&mut write, Ttt::NONE, 0, 10, 30, false).unwrap();
        send(&mut write, Ttt::NONE, 1, 40, 24, true).unwrap();
        assert_eq!(
            write.solicit(&RULES, Ttt(1)),
            Some(Solicit {
                r2t_sn: 0,
                offset: 64,
                len: 100
            })
        );
        assert_eq!(
            write.solicit(&RULES, Ttt(2)),
            Some(Solicit {
                r2t_sn: 1,
                offset: 164,
                len: 100
            })
        );
        assert_eq!(
            write.solicit(&RULES, Ttt(3)),
            None,
            "MaxOutstandingR2T is 2"
        );
        send(&mut write, Ttt(1), 0, 64, 100, true).unwrap();
        assert_eq!(
            write.solicit(&RULES, Ttt(3)),
            Some(Solicit {
                r2t_sn: 2,
                offset: 264,
                len: 36
            })
        );
        send(&mut write, Ttt(2), 0, 164, 100, true).unwrap();
        assert!(!write.is_complete());
        send(&mut write, Ttt(3), 0, 264, 36, true).unwrap();
        assert_eq!(write.take(), Ok(bytes(0, 300)));
    }

    #[test]
    fn an_error_waits_for_the_end_of_the_sequence() {
        // RFC 7143 11.4.7.2: F=0 although InitialR2T=Yes.
        let rules = WriteRules {
            initial_r2t: true,
            ..RULES
        };
        let mut write = WriteData::new(&rules, 64, 64, false, Payload::new());
        assert!(!write.is_complete());
        send(&mut write, Ttt::NONE, 0, 0, 32, false).unwrap();
        assert!(!write.is_complete());
        send(&mut write, Ttt::NONE, 1, 32, 32, true).unwrap();
        assert!(write.is_complete());
        assert_eq!(write.take(), Err(DataError::Unexpected));
    }

    #[test]
    fn wrong_amounts() {
        // Too little unsolicited data: all of FirstBurstLength must come (RFC 7143 11.3.5).
        let mut write = WriteData::new(&RULES, 300, 300, false, Payload::new());
        send(&mut write, Ttt::NONE, 0, 0, 63, true).unwrap();
        assert_eq!(write.take(), Err(DataError::Amount));
        // Immediate data beyond FirstBurstLength.
        let mut write = WriteData::new(&RULES, 300, 300, true, bytes(0, 65));
        assert_eq!(write.take(), Err(DataError::Amount));
        // Immediate data although it was negotiated away.
        let rules = WriteRules {
            immediate_data: false,
            ..RULES
        };
        let mut write = WriteData::new(&rules, 300, 300, true, bytes(0, 1));
        assert_eq!(write.take(), Err(DataError::Unexpected));
        // A sequence that ends early, and one that is longer than its R2T.
        for (len, final_) in [(50, true), (101, true), (100, false)] {
            let mut write = WriteData::new(&RULES, 100, 100, true, Payload::new());
            write.solicit(&RULES, Ttt(1)).unwrap();
            send(&mut write, Ttt(1), 0, 0, len, final_).unwrap();
            assert_eq!(write.take(), Err(DataError::Amount), "{len} {final_}");
        }
    }

    /// RFC 7143 7.9: what is missing is treated as if its digest had been wrong.
    #[test]
    fn data_out_of_order_ends_the_task() {
        for steps in [
            &[(0, 0, 50, false), (0, 50, 50, true)][..],
            &[(27, 0, 100, true)],
            &[(0, 50, 50, true)],
            &[(1, 50, 50, false), (0, 0, 50, true)],
            &[(u32::MAX, 0, 100, true)],
        ] {
            let mut write = WriteData::new(&RULES, 100, 100, true, Payload::new());
            write.solicit(&RULES, Ttt(1)).unwrap();
            for &(sn, offset, len, final_) in steps {
                send(&mut write, Ttt(1), sn, offset, len, final_).unwrap();
            }
            assert!(write.is_complete(), "{steps:?}");
            assert_eq!(write.take(), Err(DataError::Digest), "{steps:?}");
        }
    }

    #[test]
    fn transfer_tags_are_checked() {
        let mut write = WriteData::new(&RULES, 300, 300, true, Payload::new());
        write.solicit(&RULES, Ttt(1)).unwrap();
        write.solicit(&RULES, Ttt(2)).unwrap();
        assert_eq!(
            send(&mut write, Ttt(9), 0, 0, 10, false),
            Err(DataOutViolation { ttt: 9 })
        );
        // The second sequence without the first: the first is lost.
        send(&mut write, Ttt(2), 0, 100, 100, true).unwrap();
        assert!(write.is_complete());
        assert_eq!(write.take(), Err(DataError::Digest));
    }

    #[test]
    fn a_bad_digest_ends_the_task_after_its_sequence() {
        // RFC 7143 7.8: wait for F of every outstanding R2T, then CHECK CONDITION.
        let mut write = WriteData::new(&RULES, 200, 200, true, Payload::new());
        write.solicit(&RULES, Ttt(1)).unwrap();
        write.solicit(&RULES, Ttt(2)).unwrap();
        let header = DataOutHeader {
            final_: true,
            ttt: Ttt(1),
            data_sn: 0,
            offset: 0,
        };
        write
            .on_data_out(&header, Payload::new(), 100, false)
            .unwrap();
        assert!(!write.is_complete());
        send(&mut write, Ttt(2), 0, 100, 100, true).unwrap();
        assert!(write.is_complete());
        assert_eq!(write.take(), Err(DataError::Digest));
    }

    #[test]
    fn data_beyond_what_the_command_wants_is_not_asked_for() {
        let mut write = WriteData::new(&RULES, 300, 80, true, bytes(0, 60));
        assert_eq!(
            write.solicit(&RULES, Ttt(1)),
            Some(Solicit {
                r2t_sn: 0,
                offset: 60,
                len: 20
            })
        );
        send(&mut write, Ttt(1), 0, 60, 20, true).unwrap();
        assert_eq!(write.take(), Ok(bytes(0, 80)));
        let mut write = WriteData::new(&RULES, 60, 20, true, bytes(0, 60));
        assert_eq!(write.take(), Ok(bytes(0, 20)));
    }

    proptest! {
        /// The feature matrix against a model initiator: whatever was negotiated, the data arrives
        /// whole and no R2T breaks a limit (RFC 7143 13.10 to 13.17).
        #[test]
        fn every_combination_moves_all_bytes(
            initial_r2t in any::<bool>(),
            immediate_data in any::<bool>(),
            first_burst in 1u32..200,
            extra_burst in 0u32..200,
            max_r2t in 1u32..5,
            len in 1u32..1000,
            segment in 1u32..150,
        ) {
            let rules = WriteRules {
                initial_r2t,
                immediate_data,
                first_burst_bytes: first_burst,
                max_burst_bytes: first_burst + extra_burst,
                max_outstanding_r2t: max_r2t,
            };
            let immediate = if immediate_data { len.min(segment).min(first_burst) } else { 0 };
            let burst_end = if initial_r2t { immediate } else { len.min(first_burst) };
            let mut write = WriteData::new(&rules, len, len, burst_end == immediate, bytes(0, immediate));
            let (mut at, mut sn) = (immediate, 0);
            while at < burst_end {
                let n = segment.min(burst_end - at);
                send(&mut write, Ttt::NONE, sn, at, n, at + n == burst_end).unwrap();
                at += n;
                sn += 1;
            }
            let mut ttt = 0;
            let mut queue = VecDeque::new();
            loop {
                while let Some(solicit) = write.solicit(&rules, Ttt(ttt)) {
                    prop_assert!(solicit.len > 0 && solicit.len <= rules.max_burst_bytes);
                    prop_assert_eq!(solicit.r2t_sn, ttt);
                    queue.push_back((Ttt(ttt), solicit));
                    ttt += 1;
                }
                prop_assert!(queue.len() <= max_r2t as usize);
                let Some((ttt, solicit)) = queue.pop_front() else { break };
                prop_assert_eq!(solicit.offset, at);
                let mut sent = 0;
                let mut sn = 0;
                while sent < solicit.len {
                    let n = segment.min(solicit.len - sent);
                    send(&mut write, ttt, sn, at, n, sent + n == solicit.len).unwrap();
                    at += n;
                    sent += n;
                    sn += 1;
                }
            }
            prop_assert!(write.is_complete());
            prop_assert_eq!(write.take(), Ok(bytes(0, len)));
        }

        #[test]
        fn a_hostile_initiator_gets_no_more_than_it_may(
            steps in proptest::collection::vec((any::<bool>(), 0u32..4, 0u32..4, 0u32..400, 0u32..300), 0..40),
        ) {
            let mut write = WriteData::new(&RULES, 300, 300, false, Payload::new());
            for (final_, ttt, sn, offset, len) in steps {
                let ttt = if ttt == 0 { Ttt::NONE } else { Ttt(ttt) };
                let _ = send(&mut write, ttt, sn, offset, len, final_);
                let _ = write.solicit(&RULES, Ttt(1));
                prop_assert!(write.data.len() <= 300);
                if write.is_complete() {
                    let _ = write.take();
                    break;
                }
            }
        }
    }
}
