//! The session in docs/fabric.md: its commands are carried out, and what they print has the shape of what is printed there.
//!
//! `BERTH_SESSION_WRITE=1` puts what was printed into the document instead of comparing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::fabric::Sim;
use berth_tests::process::Process;
use berth_tests::{Berthd, programs};

/// Heading of the section; its first block of `console` is the session.
const HEADING: &str = "## A session";
const BEGIN: &str = "```console\n";
const END: &str = "```\n";
/// Where the daemon of the document has its sockets.
const RUN: &str = "/run/berth";
/// One command.
const COMMAND: Duration = Duration::from_secs(120);

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fabric.md")
}

/// The session and where it stands in the document.
fn session(text: &str) -> Result<std::ops::Range<usize>> {
    let heading = text.find(HEADING).context("the section is gone")?;
    let begin = text[heading..].find(BEGIN).context("the session is gone")?;
    let begin = heading + begin + BEGIN.len();
    let end = text[begin..].find(END).context("the block has no end")?;
    Ok(begin..begin + end)
}

/// Commands, each with what it prints.
fn commands(session: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in session.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            commands.push((command.to_owned(), String::new()));
        } else if let Some((command, printed)) = commands.last_mut() {
            // A command goes on in the next line behind a backslash.
            let target = if command.ends_with('\\') {
                command
            } else {
                printed
            };
            if !target.is_empty() {
                target.push('\n');
            }
            target.push_str(line);
        }
    }
    commands
}

fn is_uuid(word: &str) -> bool {
    let hex = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit());
    let lengths: Vec<usize> = word.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && word.split('-').all(hex)
}

/// What does not depend on the run: words, with numbers and identifiers left out, and no widths of columns.
fn shape(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| {
        let words = line.split_whitespace().map(|word| {
            // A part of it may have letters only.
            if is_uuid(word) {
                return "#".to_owned();
            }
            let mut shape = String::new();
            let mut rest = word;
            while let Some(first) = rest.chars().next() {
                let hex = rest
                    .find(|c: char| !c.is_ascii_hexdigit())
                    .unwrap_or(rest.len());
                let digits = rest
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(rest.len());
                // Long runs of hexadecimal digits are identifiers, others only when they are numbers.
                let skip = if hex >= 4 && rest[..hex].contains(|c: char| c.is_ascii_digit()) {
                    hex
                } else {
                    digits
                };
                if skip > 0 {
                    shape.push('#');
                    rest = &rest[skip..];
                } else {
                    shape.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
            shape
        });
        words.collect::<Vec<_>>().join(" ")
    });
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_session_of_the_document_goes_as_it_says() -> Result<()> {
    let text = std::fs::read_to_string(document())?;
    let place = session(&text)?;
    let write = std::env::var_os("BERTH_SESSION_WRITE").is_some();
    let sim = Sim::start(&[])?;
    let daemon = Berthd::start_with(&sim.config(), None)?;
    let run = daemon.api_socket();
    let run = run
        .parent()
        .context("no folder")?
        .to_string_lossy()
        .into_owned();
    let folder = programs::ours("berthctl")?;
    let folder = folder
        .parent()
        .context("no folder")?
        .to_string_lossy()
        .into_owned();
    let home = tempfile::tempdir()?;
    let mut real = String::new();
    for (command, wanted) in commands(&text[place.clone()]) {
        let script = format!(
            "cd '{}' && PATH='{folder}':$PATH && export BERTH_SOCKET='{run}/api.sock' && {}",
            home.path().display(),
            command.replace(RUN, &run),
        );
        let log = tempfile::NamedTempFile::new()?;
        let mut process = Process::start(
            "session",
            &programs::system("sh")?,
            ["-c", &script],
            &[],
            log.path(),
        )?;
        let status = process.wait_end(COMMAND)?;
        let printed = process.log().replace(&run, RUN);
        ensure!(
            status.success(),
            "$ {command}\n{status}\n{printed}\n{}",
            daemon.log()
        );
        if !write {
            ensure!(
                shape(&printed) == shape(&wanted),
                "$ {command}\nprints\n{printed}\nand not, as docs/fabric.md says,\n{wanted}\n\
                 BERTH_SESSION_WRITE=1 writes it there"
            );
        }
        let printed = printed
            .lines()
            .map(str::trim_end)
            .collect::<Vec<_>>()
            .join("\n");
        real.push_str(&format!("$ {command}\n{}\n", printed.trim_end()).replace("\n\n", "\n"));
    }
    ensure!(!real.is_empty(), "there are no commands");
    if write {
        let mut text = text;
        text.replace_range(place, &real);
        std::fs::write(document(), text)?;
    }
    daemon.stop()?;
    sim.stop()
}

#[test]
fn shapes_leave_out_what_changes() {
    assert_eq!(
        shape("pv-0   100 GiB  5d0c4a7e-2f61  127.0.0.1:3260\n\n"),
        ["pv-# # GiB #-# #.#.#.#:#"]
    );
    assert_eq!(shape("deed 12ab x"), ["deed # x"]);
    assert_eq!(shape("id 37e80a0c-beef-cafe-ad5b-8cc9fbd5cbe4"), ["id #"]);
    let found = commands("$ a \\\n  b\nout 1\nout 2\n$ c\n");
    assert_eq!(
        found,
        [
            ("a \\\n  b".to_owned(), "out 1\nout 2".to_owned()),
            ("c".to_owned(), String::new())
        ]
    );
}
