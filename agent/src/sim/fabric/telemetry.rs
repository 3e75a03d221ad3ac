//! What was measured: samples of the last hour, and events.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::meter::{Meters, Traffic};
use super::world::new_uuid;

/// Samples that are kept: an hour of them.
const SAMPLES_MAX: usize = 360;
/// Volumes in all samples together. An hour of some hundred busy volumes; the oldest go first.
const TRAFFIC_MAX: usize = 50_000;
/// Events that are kept; older ones are forgotten.
const EVENTS_MAX: usize = 10_000;

/// What was done in a span of time.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// When it ended, in milliseconds since 1970.
    pub(super) unix_ms: u64,
    pub(super) span: Duration,
    /// By uuid of the volume; volumes that did nothing are not in it.
    pub(super) volumes: HashMap<String, Traffic>,
    /// Processor time that the simulator took.
    pub(super) cpu: Duration,
}

impl Sample {
    /// Appends a later one.
    pub(super) fn extend(&mut self, later: &Self) {
        self.unix_ms = later.unix_ms;
        self.span += later.span;
        self.cpu += later.cpu;
        for (volume, traffic) in &later.volumes {
            self.volumes.entry(volume.clone()).or_default().add(traffic);
        }
    }
}

/// Who an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventKind {
    /// What users do over REST.
    User,
    /// What the fabric does by itself.
    System,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) kind: EventKind,
    pub(super) uuid: String,
    pub(super) unix_ms: u64,
    pub(super) code: String,
    pub(super) message: String,
    pub(super) tenant: String,
    pub(super) object_path: String,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Telemetry {
    meters: Meters,
    samples: VecDeque<Sample>,
    events: VecDeque<Event>,
    last: (Instant, Duration),
}

impl Telemetry {
    /// Nothing has happened but the start.
    pub(super) fn new(meters: Meters) -> Self {
        let mut telemetry = Self {
            meters,
            samples: VecDeque::new(),
            events: VecDeque::new(),
            last: (Instant::now(), processor_time()),
        };
        let message = "The fabric has started".to_owned();
        telemetry.note(
            EventKind::System,
            "SYSTEM_START",
            message,
            "/root",
            "/system",
        );
        telemetry
    }

    fn current(&self, volumes: HashMap<String, Traffic>) -> Sample {
        let (at, cpu) = self.last;
        Sample {
            unix_ms: unix_ms(),
            span: at.elapsed(),
            volumes,
            cpu: processor_time().saturating_sub(cpu),
        }
    }

    /// Ends a sample and begins the next one.
    pub(super) fn sample(&mut self) {
        let sample = self.current(self.meters.take());
        self.last = (Instant::now(), processor_time());
        self.samples.push_back(sample);
        let mut kept: usize = self.samples.iter().map(|sample| sample.volumes.len()).sum();
        while self.samples.len() > SAMPLES_MAX || kept > TRAFFIC_MAX {
            let Some(oldest) = self.samples.pop_front() else {
                break;
            };
            kept -= oldest.volumes.len();
        }
    }

    /// Forgets the counts of volumes that are gone.
    pub(super) fn retain(&self, stays: impl Fn(&str) -> bool) {
        self.meters.retain(stays);
    }

    /// The finished samples, oldest first.
    pub(super) fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }

    /// The last sample with what came after it: a span of at least one interval, once there was one.
    pub(super) fn latest(&self) -> Sample {
        let mut latest = self.samples.back().cloned().unwrap_or_default();
        latest.extend(&self.current(self.meters.look()));
        latest
    }

    /// Notes an event.
    pub(super) fn note(
        &mut self,
        kind: EventKind,
        code: impl Into<String>,
        message: String,
        tenant: &str,
        object_path: &str,
    ) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            kind,
            uuid: new_uuid(),
            unix_ms: unix_ms(),
            code: code.into(),
            message,
            tenant: tenant.to_owned(),
            object_path: object_path.to_owned(),
        });
    }

    /// The events, oldest first.
    pub(super) fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_and_events_are_bounded() {
        let mut telemetry = Telemetry::new(Meters::default());
        for _ in 0..SAMPLES_MAX + 5 {
            telemetry.sample();
        }
        assert_eq!(telemetry.samples().count(), SAMPLES_MAX);
        for number in 0..EVENTS_MAX + 5 {
            let code = number.to_string();
            telemetry.note(EventKind::User, code, String::new(), "/root", "/x");
        }
        assert_eq!(telemetry.events().count(), EVENTS_MAX);
        assert_eq!(telemetry.events().next().unwrap().code, "5");
        assert!(telemetry.latest().span >= telemetry.samples().last().unwrap().span);
    }
}
