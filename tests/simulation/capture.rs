//! What the code under test logs: counted as coverage, and part of the trace when it is kept.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use super::trace;

/// By file and line: the words, and how often.
type Events = BTreeMap<(&'static str, u32), (String, u64)>;

thread_local! {
    static EVENTS: RefCell<Events> = const { RefCell::new(BTreeMap::new()) };
}

/// Takes the counters of this thread: what was logged from warnings to information, and how often.
#[must_use]
pub fn take_counts() -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for (message, n) in EVENTS.take().into_values() {
        *counts.entry(message).or_default() += n;
    }
    counts
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
        *metadata.level() <= Level::INFO || trace::is_kept()
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        if *metadata.level() <= Level::INFO {
            let place = (metadata.file().unwrap_or(""), metadata.line().unwrap_or(0));
            EVENTS.with_borrow_mut(|events| {
                let entry = events.entry(place).or_insert_with(|| {
                    let mut message = Message(String::new());
                    event.record(&mut message);
                    (format!("log: {}", message.0), 0)
                });
                entry.1 += 1;
            });
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

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
            // Only the words: a message with values in it would be counted under many names.
            let words = self.0.split(|c: char| c.is_ascii_digit()).next();
            self.0 = words.unwrap_or("").trim().to_owned();
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
