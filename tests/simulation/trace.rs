//! What happened, in order: a hash always, the text when somebody wants to read it, and counters.
//!
//! A run has its thread for itself, so all of this is thread-local and costs next to nothing.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tokio::time::Instant;

thread_local! {
    static HASH: Cell<u64> = const { Cell::new(0) };
    static SEQUENCE: Cell<u64> = const { Cell::new(0) };
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    static COUNTS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Begins a run inside of its runtime. `keep`: keep the text, too.
pub fn begin(keep: bool) {
    HASH.set(0xcbf2_9ce4_8422_2325);
    SEQUENCE.set(0);
    START.set(Some(Instant::now()));
    LINES.set(keep.then(Vec::new));
    COUNTS.with_borrow_mut(BTreeMap::clear);
}

/// The hash of everything noted, the text if it was kept, and the counters.
#[must_use]
pub fn end() -> (u64, Vec<String>, BTreeMap<&'static str, u64>) {
    START.set(None);
    (HASH.get(), LINES.take().unwrap_or_default(), COUNTS.take())
}

/// Virtual milliseconds since the run began.
#[must_use]
pub fn now_ms() -> u64 {
    START.get().map_or(0, |start| {
        u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
    })
}

/// The next number of the one order in which everything happens.
pub fn tick() -> u64 {
    let next = SEQUENCE.get() + 1;
    SEQUENCE.set(next);
    next
}

/// The latest number given out by [`tick`].
#[must_use]
pub fn last_tick() -> u64 {
    SEQUENCE.get()
}

/// Whether the text is kept.
#[must_use]
pub fn is_kept() -> bool {
    LINES.with_borrow(Option::is_some)
}

/// Counts one of these.
pub fn count(what: &'static str) {
    count_many(what, 1);
}

/// Counts so many of these.
pub fn count_many(what: &'static str, n: u64) {
    COUNTS.with_borrow_mut(|counts| *counts.entry(what).or_default() += n);
}

/// Notes an event: its name and numbers go into the hash.
pub fn note(what: &'static str, numbers: &[u64]) {
    let mut hash = HASH.get();
    let mut mix = |byte: u64| hash = (hash ^ byte).wrapping_mul(0x0000_0100_0000_01b3);
    mix(now_ms());
    what.bytes().for_each(|byte| mix(byte.into()));
    numbers.iter().for_each(|n| mix(*n));
    HASH.set(hash);
}

/// Keeps a line of text, which is not hashed.
pub fn line(text: std::fmt::Arguments<'_>) {
    LINES.with_borrow_mut(|lines| {
        if let Some(lines) = lines {
            let at = now_ms();
            lines.push(format!("{:>7}.{:03}  {text}", at / 1000, at % 1000));
        }
    });
}

/// Notes an event and keeps a line about it: `event!("cut", "connection {} late {}", a, b)`, numbers only.
#[macro_export]
macro_rules! event {
    ($what:literal, $form:literal $(, $number:expr)* $(,)?) => {{
        $crate::simulation::trace::note($what, &[$($number as u64),*]);
        if $crate::simulation::trace::is_kept() {
            $crate::simulation::trace::line(format_args!(
                concat!("{} ", $form), $what $(, $number)*
            ));
        }
    }};
}
