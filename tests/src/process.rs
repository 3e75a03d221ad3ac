//! A started program: its log, its use of resources, and its end.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal};

/// How often a condition of another process is looked at. There is no event to wait for.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` gives a value; an error from it ends the wait.
///
/// # Errors
/// Names `what` when `within` is over, or what the condition said.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {within:?}");
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a condition of a foreign process can only be polled; the deadline bounds it"
        )]
        std::thread::sleep(POLL);
    }
}

/// A program that runs until it is stopped, and at most as long as this value and this process live.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Open file descriptors.
    pub fds: usize,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: usize,
    /// User and system time of all threads so far.
    pub cpu: Duration,
}

impl Process {
    /// Starts `program` with `args`; standard output and error go to `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start<S: AsRef<std::ffi::OsStr>>(
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = S>,
        envs: &[(&str, &Path)],
        log: &Path,
    ) -> Result<Self> {
        // The kernel kills the program when its parent ends, so that even `kill -9` of a test leaves nothing behind.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program);
        command.args(args).envs(envs.iter().copied());
        let file = File::create(log).with_context(|| format!("log {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        let child = spawn(command).with_context(|| format!("{name}: {}", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            ended: None,
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything the program has printed.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map_or_else(
            |error| format!("no log: {error}"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The exit status, if the program has ended.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits for a sign of readiness; fails early, with the log, if the program ends before.
    ///
    /// # Errors
    /// When the program ends, or `condition` fails, or the time is over.
    pub fn wait_ready<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let name = self.name.clone();
        let result = wait_for(&format!("{name}: {what}"), within, || {
            if let Some(status) = self.status()? {
                bail!("{name} has ended: {}", describe(status));
            }
            condition()
        });
        result.map_err(|error| anyhow!("{error:#}\n--- log of {name}\n{}", self.log_tail()))
    }

    /// Waits until the program has printed a line.
    ///
    /// # Errors
    /// When it ends before, or does not within the time; with its log.
    pub fn wait_line(&mut self, line: &str, within: Duration) -> Result<()> {
        let path = self.log.clone();
        self.wait_ready(line, within, || {
            let log = std::fs::read(&path)?;
            let there = log
                .split(|&byte| byte == b'\n')
                .any(|found| found == line.as_bytes());
            Ok(there.then_some(()))
        })
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// When the program is still there when `within` is over.
    pub fn stop(&mut self, signal: Signal, within: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait_end(within)
    }

    /// Kills the program and whatever it has started, and waits for its end.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill_all(&mut self) -> Result<()> {
        if self.status()?.is_some() {
            bail!("{} has ended already", self.name);
        }
        // The group: a guest kernel is many processes.
        rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL)
            .with_context(|| self.name.clone())?;
        self.ended = Some(self.child.wait()?);
        Ok(())
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// When there is no such process any more.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.status()?.is_some() {
            bail!("{} has ended already", self.name);
        }
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("{signal:?} to {}", self.name))
    }

    /// Waits for the program to end by itself.
    ///
    /// # Errors
    /// When the program is still there when `within` is over.
    pub fn wait_end(&mut self, within: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_for(&format!("end of {name}"), within, || self.status())
            .map_err(|error| anyhow!("{error:#}\n--- log of {name}\n{}", self.log_tail()))
    }

    /// What the program uses at this moment.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.pid()).with_context(|| format!("usage of {}", self.name))
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.kill_all();
        }
    }
}

/// Resources of any process.
///
/// # Errors
/// When it has ended or `/proc` cannot be read.
pub fn usage(pid: u32) -> Result<Usage> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let fds = std::fs::read_dir(proc.join("fd"))?.count();
    let status = std::fs::read_to_string(proc.join("status"))?;
    let field = |name: &str| -> Result<u64> {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("{name} in /proc/{pid}/status"))
    };
    let stat = std::fs::read_to_string(proc.join("stat"))?;
    // The second field is the name in brackets and may contain blanks.
    let after_name = stat.rsplit_once(')').context("name in stat")?.1;
    let times: Vec<u64> = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let ticks = rustix::param::clock_ticks_per_second();
    let micros = times.iter().sum::<u64>() * 1_000_000 / ticks;
    Ok(Usage {
        fds,
        rss_bytes: field("VmRSS")? * 1024,
        threads: field("Threads")? as usize,
        cpu: Duration::from_micros(micros),
    })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

type SpawnRequest = (Command, SyncSender<std::io::Result<Child>>);

/// Spawns from one thread that lives as long as the process: the kernel takes the end of the *thread* that spawned
/// for the death of the parent, and the threads of tests come and go.
fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<SyncSender<SpawnRequest>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests): (_, Receiver<SpawnRequest>) = sync_channel(16);
        std::thread::spawn(move || {
            for (mut command, answer) in requests {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = sync_channel(1);
    spawner.send((command, answer)).context("spawner is gone")?;
    Ok(child.recv().context("spawner is gone")??)
}
