//! What is counted and measured, and what must hold at the end.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

/// Counts of the whole run.
#[derive(Debug)]
pub(crate) struct Tally {
    /// What the targets did, by kind.
    pub(crate) attacks: BTreeMap<&'static str, u64>,
    /// How connects and sessions ended.
    pub(crate) ends: BTreeMap<String, u64>,
    /// How commands ended.
    pub(crate) commands: BTreeMap<&'static str, u64>,
    pub(crate) connections: u64,
    pub(crate) sessions: u64,
    pub(crate) submitted: u64,
    pub(crate) ended: u64,
    /// Longest time that something took beyond its deadline.
    pub(crate) late_max: Duration,
    pub(crate) connect_max: Duration,
    pub(crate) session_max: Duration,
    pub(crate) resident_start: u64,
    pub(crate) resident_warm: u64,
    pub(crate) resident_max: u64,
    pub(crate) resident_end: u64,
}

impl Tally {
    pub(crate) fn new(resident: u64) -> Self {
        Self {
            attacks: BTreeMap::new(),
            ends: BTreeMap::new(),
            commands: BTreeMap::new(),
            connections: 0,
            sessions: 0,
            submitted: 0,
            ended: 0,
            late_max: Duration::ZERO,
            connect_max: Duration::ZERO,
            session_max: Duration::ZERO,
            resident_start: resident,
            resident_warm: resident,
            resident_max: resident,
            resident_end: resident,
        }
    }

    pub(crate) fn note_resident(&mut self, bytes: u64) {
        self.resident_max = self.resident_max.max(bytes);
    }

    pub(crate) fn note_late(&mut self, late: Duration) {
        self.late_max = self.late_max.max(late);
    }

    pub(crate) fn print(&self, took: Duration) {
        let per_second = self.connections as f64 / took.as_secs_f64();
        say(&format!(
            "hostile: {} connections in {:.1} s ({per_second:.0}/s), {} sessions, {} commands",
            self.connections,
            took.as_secs_f64(),
            self.sessions,
            self.submitted,
        ));
        say(&format!("hostile: attacks {:?}", self.attacks));
        say(&format!("hostile: ends {:?}", self.ends));
        say(&format!("hostile: commands {:?}", self.commands));
        say(&format!(
            "hostile: longest connect {:?}, longest session {:?}, latest by {:?}",
            self.connect_max, self.session_max, self.late_max
        ));
        let mib = |bytes: u64| bytes >> 20;
        say(&format!(
            "hostile: resident {} MiB at the start, {} after a tenth, {} at most, {} at the end",
            mib(self.resident_start),
            mib(self.resident_warm),
            mib(self.resident_max),
            mib(self.resident_end),
        ));
    }

    /// What the run is for.
    pub(crate) fn check(&self, count: u64) {
        assert_eq!(self.connections, count);
        assert_eq!(self.submitted, self.ended, "each command ends once");
        if count >= 1000 {
            // It must have been an attack, and not have stopped everything at the door.
            for (kind, times) in &self.attacks {
                assert!(*times >= count / 1000, "{kind} only {times} times");
            }
            assert!(self.attacks.len() >= 25, "{:?}", self.attacks);
            assert!(self.sessions > count / 5 && self.sessions < count);
            assert!(
                self.commands
                    .get("completed")
                    .is_some_and(|n| *n > count / 5)
            );
        }
    }
}

/// Prints also when the test passes: the harness holds back what `println!` says.
pub(crate) fn say(line: &str) {
    // Nobody reads it: no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Resident memory of this process in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("this is Linux");
    let pages = text.split(' ').nth(1).expect("the second field");
    let pages: u64 = pages.parse().expect("a number");
    pages * rustix::param::page_size() as u64
}
