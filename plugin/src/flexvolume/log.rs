//! The log: never on standard output or standard error, which kubelet reads as one JSON document.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::config::{Config, Log};

/// Where the system's log listens: journald and every syslog daemon.
const SYSLOG_SOCKET: &str = "/dev/log";
/// The facility for daemons (RFC 5424 6.2.1).
const FACILITY: u8 = 3;
/// Longest line, in bytes: what every syslog daemon takes.
const LINE_LEN_MAX: usize = 2048;

/// Begins to log as configured. What cannot be logged is not: no call fails for it.
pub(super) fn begin(config: &Config) {
    let sink = match &config.log {
        Log::Off => return,
        Log::Syslog => UnixDatagram::unbound().and_then(|socket| {
            // A log that does not read must not hold up a volume.
            socket.set_nonblocking(true)?;
            socket.connect(SYSLOG_SOCKET)?;
            Ok(Sink::Syslog(socket))
        }),
        Log::File(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map(Sink::File),
    };
    let Ok(sink) = sink else { return };
    let timed = matches!(sink, Sink::File(_));
    let builder = tracing_subscriber::fmt()
        .with_max_level(Level::from(config.log_level))
        .with_ansi(false)
        .with_target(false)
        .with_writer(Lines(Arc::new(sink)));
    // Another subscriber is there only in tests.
    let _ = if timed {
        builder.try_init()
    } else {
        builder.without_time().with_level(false).try_init()
    };
}

#[derive(Debug)]
enum Sink {
    Syslog(UnixDatagram),
    File(File),
}

/// Makes a writer for each event.
#[derive(Debug)]
struct Lines(Arc<Sink>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line::new(Arc::clone(&self.0), Level::INFO)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line::new(Arc::clone(&self.0), *metadata.level())
    }
}

/// One event, written when it is whole.
#[derive(Debug)]
struct Line {
    sink: Arc<Sink>,
    bytes: Vec<u8>,
}

impl Line {
    fn new(sink: Arc<Sink>, level: Level) -> Self {
        let bytes = match &*sink {
            // RFC 3164 without the time, which the receiver adds.
            Sink::Syslog(_) => {
                let priority = FACILITY * 8 + severity(level);
                format!("<{priority}>berth-flexvolume[{}]: ", std::process::id()).into_bytes()
            }
            Sink::File(_) => Vec::new(),
        };
        Self { sink, bytes }
    }
}

/// RFC 5424 6.2.1.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let space = LINE_LEN_MAX.saturating_sub(self.bytes.len());
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(space)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let line = self.bytes.trim_ascii_end();
        // Nowhere to complain to.
        let _ = match &*self.sink {
            Sink::Syslog(socket) => socket.send(line).map(drop),
            Sink::File(file) => {
                let mut file = file;
                // One write, so that lines of calls at the same time do not mix.
                file.write_all(&[line, b"\n"].concat())
            }
        };
    }
}
