//! Network namespaces that go when their value goes.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{programs, tool};

/// Names are `berth-PID-NUMBER-KIND`, so that leftovers of a killed test program are known by its process id.
const PREFIX: &str = "berth-";
/// `ip`, `tc` and `nft` take milliseconds; a busy machine may stretch that.
const DEADLINE: Duration = Duration::from_secs(20);

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one; `kind` is a word for people who list them. Needs root.
    ///
    /// # Errors
    /// When the kernel or the rights do not allow it.
    pub fn create(kind: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        remove_stale();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{kind}", std::process::id());
        ip(&format!("netns add {name}")).context("network namespaces need root")?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The words before a command that make it run in here.
    ///
    /// # Errors
    /// When `ip` is not installed.
    pub fn prefix(&self) -> Result<Vec<String>> {
        let ip = programs::system("ip")?.to_string_lossy().into_owned();
        Ok([&ip, "netns", "exec", &self.name]
            .map(str::to_owned)
            .to_vec())
    }

    /// `ip ARGS` in here, `args` split at blanks.
    ///
    /// # Errors
    /// With what it printed.
    pub fn ip(&self, args: &str) -> Result<()> {
        ip(&format!("-n {} {args}", self.name)).map(drop)
    }

    /// Runs a program of the system in here, to its end.
    ///
    /// # Errors
    /// With what it printed, unless its exit code is 0.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<tool::Output> {
        let inside = ["netns", "exec", self.name.as_str(), program];
        tool::run("ip", &[&inside, args].concat(), DEADLINE)
    }

    /// Calls `work` on a thread that is in here; the sockets it opens stay in here wherever they are used.
    ///
    /// # Errors
    /// When the thread cannot enter.
    ///
    /// # Panics
    /// When `work` does.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|()| work()));
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The same for work that goes on: `work` runs on a thread of its own that is in here.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let name = self.name.clone();
        std::thread::spawn(move || enter(&name).map(|()| work()))
    }

    fn enter(&self) -> Result<()> {
        enter(&self.name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// Moves the calling thread, for good.
fn enter(name: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(name);
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("network namespace {name}"))
}

fn ip(args: &str) -> Result<tool::Output> {
    let args: Vec<_> = args.split_whitespace().collect();
    tool::run("ip", &args, DEADLINE)
}

/// Namespaces outlive a test program that was killed.
fn remove_stale() {
    let Ok(list) = ip("netns list") else { return };
    let names = list.text.lines().filter_map(|line| line.split(' ').next());
    for name in names {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .filter(|owner| owner.bytes().all(|byte| byte.is_ascii_digit()));
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Fails, in words, where a tool of this module is missing.
///
/// # Errors
/// Names the program and what installs it.
pub(super) fn need(programs: &[&str]) -> Result<()> {
    for program in programs {
        if programs::system(program).is_err() {
            bail!(
                "{program} is not installed: run tests/setup (packages iproute2, nftables, iptables)"
            );
        }
    }
    Ok(())
}
