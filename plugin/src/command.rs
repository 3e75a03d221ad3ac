//! Child processes with a deadline: never through a shell, output bounded, and none is left behind alive.

use std::ffi::{OsStr, OsString};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

/// Most that is kept of a stream of a child, in bytes; the rest is read and dropped.
const OUTPUT_LEN_MAX: u64 = 64 * 1024;
/// Most of it that gets into an error, in bytes.
const SAID_LEN_MAX: usize = 600;
/// How long a child that took too long has to end by itself after SIGTERM. Then it is killed.
const TERMINATE_GRACE: Duration = Duration::from_millis(500);
/// How long to wait for a killed child: one that waits for a dead device cannot be killed, and is left to the kernel.
const KILL_GRACE: Duration = Duration::from_millis(500);
/// Where administration programs are, should `PATH` not say so.
const ADMIN_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a child did not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("cannot run {program}: {source}; is the package installed that has it ({package})?")]
    Start {
        /// What was to be run.
        program: String,
        /// Debian's name of what has it.
        package: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// It did not end in time, and was killed.
    #[error("{program} did not end within {} s: the device may not answer{}", after.as_secs_f32(), Said(said))]
    TimedOut {
        /// What was run.
        program: String,
        /// How long it had.
        after: Duration,
        /// What it had said by then, shortened.
        said: String,
    },
    /// It ended with an exit status that means failure.
    #[error("{program} failed ({status}){}", Said(said))]
    Failed {
        /// What was run.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said, shortened.
        said: String,
    },
}

impl Error {
    /// Whether it took too long.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }
}

struct Said<'a>(&'a str);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.0)
        }
    }
}

/// What a child left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// The beginning of its standard output.
    pub stdout: String,
    /// The beginning of its standard error.
    pub stderr: String,
}

impl Output {
    /// Its exit code; nothing when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// A program to be run.
#[derive(Debug)]
pub struct Program {
    name: String,
    called: String,
    package: &'static str,
    arguments: Vec<OsString>,
}

impl Program {
    /// A program by its name, and the package that has it.
    #[must_use]
    pub fn new(name: &str, package: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            called: name.to_owned(),
            package,
            arguments: Vec::new(),
        }
    }

    /// What errors call it, if not by its name.
    #[must_use]
    pub fn called(mut self, called: impl Into<String>) -> Self {
        self.called = called.into();
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        let arguments = arguments
            .into_iter()
            .map(|argument| argument.as_ref().to_owned());
        self.arguments.extend(arguments);
        self
    }

    /// Its name and arguments, to be run by another program.
    pub(crate) fn into_words(self) -> impl Iterator<Item = OsString> {
        std::iter::once(OsString::from(self.name)).chain(self.arguments)
    }

    /// Runs it to its end, with whatever exit status.
    ///
    /// # Errors
    /// [`Error::Start`] and [`Error::TimedOut`].
    pub async fn output(self, limit: Duration) -> Result<Output, Error> {
        let mut command = Command::new(&self.name);
        command.args(&self.arguments);
        run(command, &self.called, self.package, limit).await
    }

    /// Runs it, and takes every exit status but 0 for a failure.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn succeed(self, limit: Duration) -> Result<Output, Error> {
        let called = self.called.clone();
        let output = self.output(limit).await?;
        if output.status.success() {
            Ok(output)
        } else {
            Err(failed(&called, &output))
        }
    }
}

/// The error of a child that ended with a status that its caller takes for a failure.
pub(crate) fn failed(program: &str, output: &Output) -> Error {
    let said = if output.stderr.trim().is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    Error::Failed {
        program: program.to_owned(),
        status: output.status,
        said: one_line(said),
    }
}

/// What a program said as one line that is not too long: its end, where the reason mostly stands.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    if line.len() <= SAID_LEN_MAX {
        return line;
    }
    let mut from = line.len() - SAID_LEN_MAX;
    while !line.is_char_boundary(from) {
        from += 1;
    }
    format!("...{}", &line[from..])
}

/// The search path for children.
pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(ADMIN_PATH);
    path
}

async fn run(
    mut command: Command,
    name: &str,
    package: &'static str,
    limit: Duration,
) -> Result<Output, Error> {
    let path = search_path();
    let deadline = Instant::now() + limit;
    let mut child = command
        // Messages are read by people of all tongues and by programs; numbers in them by us.
        .env("LC_ALL", "C")
        .env("PATH", path)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Start {
            program: name.to_owned(),
            package,
            source,
        })?;
    let group = Group::of(&child);
    let stdout = child.stdout.take().expect("it was piped above");
    let stderr = child.stderr.take().expect("it was piped above");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = timeout_at(deadline, async {
        tokio::join!(child.wait(), keep(stdout, &mut out), keep(stderr, &mut err)).0
    })
    .await;
    match ended {
        Ok(status) => {
            group.forget();
            Ok(Output {
                status: status.map_err(|source| Error::Start {
                    program: name.to_owned(),
                    package,
                    source,
                })?,
                stdout: String::from_utf8_lossy(&out).into_owned(),
                stderr: String::from_utf8_lossy(&err).into_owned(),
            })
        }
        Err(_) => {
            group.end(&mut child).await;
            Err(Error::TimedOut {
                program: name.to_owned(),
                after: limit,
                said: one_line(&String::from_utf8_lossy(&err)),
            })
        }
    }
}

/// The process group of a child, killed with all that is in it when this is dropped before the child has ended.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }

    fn forget(mut self) {
        self.0 = None;
    }

    async fn end(mut self, child: &mut Child) {
        if let Some(group) = self.0.take() {
            let _ = kill_process_group(group, Signal::TERM);
            let ended = timeout(TERMINATE_GRACE, child.wait()).await.is_ok();
            // Others of the group may be left even when the child has ended; while one is, the number is not used again.
            let _ = kill_process_group(group, Signal::KILL);
            if !ended {
                let _ = timeout(KILL_GRACE, child.wait()).await;
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn keep(mut stream: impl AsyncRead + Unpin, kept: &mut Vec<u8>) {
    let mut limited = (&mut stream).take(OUTPUT_LEN_MAX);
    // A child that fails to say something did what it did; its exit status counts.
    let _ = limited.read_to_end(kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program::new("sh", "dash").arg("-c").arg(script)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_a_child_leaves() {
        let output = shell("echo out; echo err >&2; exit 3")
            .output(LONG)
            .await
            .unwrap();
        assert_eq!(
            (
                output.code(),
                output.stdout.as_str(),
                output.stderr.as_str()
            ),
            (Some(3), "out\n", "err\n")
        );
        let error = shell("echo a  b >&2; exit 3")
            .succeed(LONG)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 3): a b");
        let error = Program::new("no-such-program-here", "none-such")
            .output(LONG)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("none-such"), "{error}");
    }

    #[tokio::test]
    async fn output_without_end_is_cut_and_does_not_stop_the_child() {
        let script = "head -c 1000000 /dev/zero | tr '\\0' x; head -c 200000 /dev/zero | tr '\\0' y >&2; exit 1";
        let output = shell(script).output(LONG).await.unwrap();
        assert_eq!(output.stdout.len() as u64, OUTPUT_LEN_MAX);
        assert_eq!(output.code(), Some(1));
        let error = failed("sh", &output).to_string();
        assert!(error.len() < SAID_LEN_MAX + 100 && error.ends_with("yyy"));
    }

    /// The shell ignores SIGTERM, and so does what it started: both are gone when the call returns.
    #[tokio::test]
    async fn a_child_that_takes_too_long_is_killed_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let script = format!(
            "trap '' TERM; sh -c 'trap \"\" TERM; while :; do sleep 1000; done' & echo $! $$ > {0}.new; mv {0}.new {0}; wait",
            pids.display()
        );
        let started = Instant::now();
        let call = shell(&script).output(Duration::from_secs(2));
        let error = call.await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert!(started.elapsed() < LONG);
        let pids = std::fs::read_to_string(&pids).unwrap();
        let deadline = Instant::now() + LONG;
        for pid in pids.split_whitespace() {
            // A killed process that nobody has waited for yet is a zombie.
            let state = || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.rsplit(") ").next().unwrap_or_default().chars().next()
            };
            while !matches!(state(), None | Some('Z' | 'X')) {
                assert!(Instant::now() < deadline, "{pid} lives");
                tokio::task::yield_now().await;
            }
        }
    }
}
