//! Plans that go for one kind of trouble: late commands of old sessions, and a second node.

use std::time::Duration;

use super::{ACTIVE, CELL_BYTES, Fault, Kind, Plan, PlannedFault, Rng, STALE_AFTER};

impl Plan {
    /// Small writes to few blocks, all the time, while one path after the other loses touch for longer than
    /// it takes to notice: commands of the old sessions arrive long after others have replaced what they write.
    pub(super) fn make_storm(&mut self, rng: &mut Rng) {
        self.offer.immediate_data = true;
        self.offer.max_burst_bytes = 262_144;
        self.offer.first_burst_bytes = 65_536;
        self.array.settings.window = 128;
        self.array.settings.offer.max_recv_data_segment_bytes = 262_144;
        self.queue_depth_max = 32;
        self.ping = rng.ms(700..1_500);
        self.slow = rng.percent(20).then(|| rng.ms(20..400));
        self.recovery_timeout = rng.percent(45).then(|| rng.ms(0..2_500));
        self.stale_session_timeout = rng.percent(60).then_some(STALE_AFTER);
        let per_block = u64::from(self.array.block_bytes) / CELL_BYTES;
        let blocks = self.cells() / per_block;
        let hot_blocks = rng.pick(1..5).min(blocks);
        let hot = rng.pick(0..blocks - hot_blocks + 1);
        let whole = ACTIVE.as_millis() as u64;
        for request in &mut self.requests {
            request.at = rng.ms(0..whole);
            if matches!(request.kind, Kind::Read | Kind::Write) {
                let first = rng.pick(0..hot_blocks);
                request.cell = (hot + first) * per_block;
                request.cells = rng.pick(1..hot_blocks - first + 1) * per_block;
            }
        }
        self.requests.sort_by_key(|request| request.at);
        for (number, request) in self.requests.iter_mut().enumerate() {
            request.number = number;
        }
        self.faults.truncate(rng.pick(0..4) as usize);
        let notice = self.ping.as_millis() as u64 * 2;
        let mut at_ms = rng.pick(500..6_000);
        while at_ms < whole - 2_000 {
            let at = Duration::from_millis(at_ms);
            let portal = rng.pick(0..2) as usize;
            let long = notice + rng.pick(500..9_000);
            let mut add = |at, fault| {
                self.faults.push(PlannedFault {
                    number: 0,
                    at,
                    fault,
                });
            };
            let partition = |portal, ms| Fault::Partition {
                portal: Some(portal),
                ms,
            };
            add(at, partition(portal, long));
            let soon = at + rng.ms(50..notice);
            match rng.pick(0..4) {
                0 => {}
                // Both are gone, and the other one is back sooner.
                1 | 2 => add(at, partition(1 - portal, notice + rng.pick(0..1_500))),
                // The daemon dies meanwhile.
                _ => add(
                    soon,
                    Fault::Crash {
                        node: 0,
                        ms: rng.skewed(600),
                        late_ms: 0,
                    },
                ),
            }
            at_ms += long + rng.pick(1_000..8_000);
        }
        self.number_faults();
    }

    pub(super) fn add_takeover(&mut self, rng: &mut Rng) {
        let at = rng.ms(2_000..30_000);
        self.nodes = 2;
        self.takeover = Some(at);
        for request in &mut self.requests {
            if request.at >= at && rng.percent(70) {
                request.node = 1;
            }
        }
        for planned in &mut self.faults {
            match &mut planned.fault {
                // Registrations of this array do not outlive its power, and without them there is no fence.
                Fault::PowerCycle { ms, .. } => planned.fault = Fault::Restart { ms: *ms },
                Fault::Crash { node, .. } => *node = rng.pick(0..2) as usize,
                _ => {}
            }
        }
    }
}
