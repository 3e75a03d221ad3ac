//! What the code under test logs: counted as coverage, and part of the trace when it is kept.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use berth_iscsi::target::faults::ACTS;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use super::plan::acted;
use super::trace;

thread_local! {
    /// The words, and how often.
    static EVENTS: RefCell<BTreeMap<String, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Takes the counters of this thread: what was logged from warnings to information, and how often.
#[must_use]
pub fn take_counts() -> BTreeMap<String, u64> {
    EVENTS.take()
}

/// A subscriber for the threads of the simulation.
#[derive(Debug)]
pub struct Capture;

impl Subscriber for Capture {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() && metadata.target().starts_with("berth") {
            Interest::sometimes()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO || trace::is_kept() || is_about_faults(metadata)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        if is_about_faults(metadata) {
            let mut acts = Acts::default();
            event.record(&mut acts);
            if acts.0 {
                trace::count(acted(acts.1, &acts.2));
            }
        }
        if *metadata.level() <= Level::INFO {
            let mut message = Message(String::from("log: "));
            event.record(&mut message);
            EVENTS.with_borrow_mut(|events| *events.entry(message.0).or_default() += 1);
        }
        if trace::is_kept() {
            let mut text = Text(String::new());
            event.record(&mut text);
            let module = metadata.target().rsplit("::").next().unwrap_or("");
            trace::line(format_args!("  {} {module}:{}", metadata.level(), text.0));
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The target tells of its faults.
fn is_about_faults(metadata: &Metadata<'_>) -> bool {
    metadata.target() == "berth_iscsi::target::faults"
}

/// A fault that acts: whether it is one, the opcode of its PDU, the switch.
#[derive(Default)]
struct Acts(bool, u64, String);

impl Visit for Acts {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "opcode" {
            self.1 = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.0 = format!("{value:?}") == ACTS,
            "fault" => self.2 = format!("{value:?}"),
            _ => {}
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Only the words: a message with values in it would be counted under many names.
            let text = format!("{value:?}");
            let text = text.trim_start_matches(|c: char| c.is_ascii_digit());
            let words = text.split(|c: char| c.is_ascii_digit()).next();
            self.0.push_str(words.unwrap_or("").trim());
        }
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.0, " {value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}
