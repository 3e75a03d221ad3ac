//! The simulated fabric under a client that others wrote: dfs_sdk, the vendor's own, unmodified from PyPI.
//!
//! Its ports are fixed (7717 and 7718), so each run has a network namespace of its own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::net::Netns;
use berth_tests::process::{Process, wait_for};
use berth_tests::{programs, tool};
use rustix::process::Signal;
use tempfile::TempDir;

/// For the fabric to get ready or to stop.
const READY: Duration = Duration::from_secs(60);
/// For the whole life: some hundred requests, each with a synced write.
const LIFE: Duration = Duration::from_secs(300);
const INITIATOR: &str = "iqn.1993-08.org.debian:01:a1b2c3d4e5f6";

/// `berthd sim` in a network namespace.
struct Sim {
    process: Process,
    netns: Netns,
    dir: TempDir,
}

impl Sim {
    fn start(sw_version: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("sim-")?;
        let netns = Netns::create("sim")?;
        let berthd = programs::ours("berthd")?;
        let state = dir.path().join("state");
        let mut words = netns.prefix()?;
        let program = PathBuf::from(words.remove(0));
        let options = [
            "sim",
            "--portal",
            "127.0.0.2:3260",
            "--portal",
            "127.0.0.3:3260",
            "--request-log",
        ];
        words.push(berthd.to_string_lossy().into_owned());
        words.extend(options.map(str::to_owned));
        words.extend(["--sw-version".to_owned(), sw_version.to_owned()]);
        words.extend([
            "--state-dir".to_owned(),
            state.to_string_lossy().into_owned(),
        ]);
        let log = dir.path().join("log");
        let process = Process::start("berthd sim", &program, words, &[], &log)?;
        let sim = Self {
            process,
            netns,
            dir,
        };
        let log = || sim.process.log();
        wait_for("the simulated fabric gets ready", READY, || {
            Ok(log().lines().any(|line| line == "ready").then_some(()))
        })
        .with_context(log)?;
        Ok(sim)
    }

    /// Runs the whole life; gives what the script printed.
    fn life(&self, api: &str, scheme: &str, sw_version: &str) -> Result<()> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("interop/dfs_sdk_life.py");
        let schema = self.dir.path().join(format!("schema-{api}"));
        let python = dfs_sdk_python()?;
        let (python, script, schema) = (
            python.to_string_lossy(),
            script.to_string_lossy(),
            schema.to_string_lossy(),
        );
        let words = [
            "netns",
            "exec",
            self.netns.name(),
            &*python,
            &*script,
            "127.0.0.1",
            api,
            scheme,
            sw_version,
            INITIATOR,
            &*schema,
        ];
        let output = tool::run("ip", &words, LIFE).with_context(|| {
            format!(
                "{api} {scheme} {sw_version}; fabric: {}",
                self.process.log()
            )
        })?;
        ensure!(output.text.trim_end().ends_with("done"), "{}", output.text);
        Ok(())
    }

    /// Lines of the request log with a server error.
    fn internal_errors(&self) -> Result<Vec<String>> {
        let log = std::fs::read_to_string(self.dir.path().join("state/requests.jsonl"))?;
        let wrong = |line: &&str| line.contains("\"status\":5");
        Ok(log.lines().filter(wrong).map(str::to_owned).collect())
    }
}

/// The Python that has dfs_sdk; `tests/setup` makes it.
fn dfs_sdk_python() -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let python = cache.join("berth-tests/dfs_sdk/bin/python");
    ensure!(python.exists(), "dfs_sdk is not installed: run tests/setup");
    Ok(python)
}

/// A whole life over HTTP and HTTPS, with both versions of the API, before and after the product's change of behaviour.
#[test]
fn dfs_sdk_leads_a_whole_life() -> Result<()> {
    for sw_version in ["3.2.0.0", "3.3.0.0"] {
        let mut sim = Sim::start(sw_version)?;
        for (api, scheme) in [("v2.2", "http"), ("v2.2", "https"), ("v2.1", "http")] {
            sim.life(api, scheme, sw_version)?;
        }
        ensure!(
            sim.internal_errors()?.is_empty(),
            "{:?}",
            sim.internal_errors()?
        );
        sim.process.stop(Signal::TERM, READY)?;
    }
    Ok(())
}
