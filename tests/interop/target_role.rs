//! Our target role under libiscsi's conformance suite, `iscsi-test-cu`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::peers::{Peer, Portal, Spec};
use berth_tests::tool;

const MIB: u64 = 1 << 20;
/// Some reservation and reset tests wait for seconds each.
const DEADLINE: Duration = Duration::from_secs(600);

/// Why a test of the suite may say that it was skipped. A reason that is not here fails.
const REASONS: &[(&str, &str)] = &[
    (
        "EXTENDEDCOPY is not implemented",
        "copies between LUNs are no business of this target",
    ),
    (
        "RECEIVECOPYRESULT is not implemented",
        "goes with EXTENDED COPY",
    ),
    (
        "RECEIVE_COPY_RESULTS is not implemented",
        "goes with EXTENDED COPY",
    ),
    (
        "Logical unit is not removable",
        "the LUN is a disk that stays",
    ),
    ("Media is not removable", "the LUN is a disk that stays"),
    (
        "Logical unit is not write-protected",
        "this LUN is writable",
    ),
    ("READDEFECTDATA", "there is no medium with defects"),
    (
        "--allow-sanitize flag is not set",
        "there is nothing to sanitise in a sparse file",
    ),
    (
        "WRITEATOMIC16 is not implemented",
        "no atomic write length is offered",
    ),
    ("Multipath unavailable", "the suite is given one path"),
    ("LBPPB < 2", "one logical block per physical block"),
    (
        "does not support 0-blocks",
        "WSNZ=1: to the end of the medium must be said in numbers",
    ),
    (
        "ColdReset is not working/implemented",
        "a cold reset cuts off every initiator; it is refused",
    ),
];

/// What the suite said about one test.
#[derive(Debug, Default)]
struct Verdict {
    passed: bool,
    notes: Vec<String>,
}

/// Takes the verbose output apart: `Suite: S`, `  Test: T ...` with notes in between, then `passed` or `FAILED`.
fn parse(text: &str) -> BTreeMap<String, Verdict> {
    let mut verdicts = BTreeMap::new();
    let (mut suite, mut test) = ("", None::<String>);
    for line in text.lines() {
        let mut rest = line.trim();
        if let Some(name) = rest.strip_prefix("Suite: ") {
            suite = name;
            continue;
        }
        if let Some(named) = rest.strip_prefix("Test: ") {
            let (name, note) = named.split_once("...").unwrap_or((named, ""));
            test = Some(format!("{suite}.{}", name.trim()));
            rest = note.trim();
        }
        let Some(name) = &test else { continue };
        let verdict: &mut Verdict = verdicts.entry(name.clone()).or_default();
        if rest.ends_with("passed") || rest.ends_with("FAILED") {
            verdict.passed = rest.ends_with("passed");
            if rest.ends_with("passed") {
                test = None;
            }
        } else if !rest.is_empty() && !rest.starts_with("Run Summary") {
            verdict.notes.push(rest.to_owned());
        }
    }
    verdicts
}

/// The line `tests TOTAL RAN PASSED FAILED` of the suite's own summary.
fn summary(text: &str) -> Result<[u32; 4]> {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with("tests "))
        .with_context(|| format!("no summary: {text}"))?;
    let numbers: Vec<u32> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    numbers
        .get(..4)
        .and_then(|n| n.try_into().ok())
        .with_context(|| line.to_owned())
}

fn run(family: &str, options: &[&str], tests_min: u32) -> Result<()> {
    let portal = Portal::start_with(Spec::open(256 * MIB), options)?;
    let url = format!(
        "iscsi://{}/{}/{}",
        portal.portal(),
        portal.target(),
        portal.lun()
    );
    let args = ["--dataloss", "--verbose", "--test", family, &url];
    // It ends with 1 when a test fails; the summary says which.
    let output = tool::try_run("iscsi-test-cu", &args, DEADLINE)?;
    let [total, ran, passed, failed] = summary(&output.text)?;
    let verdicts = parse(&output.text);
    let mut report = String::new();
    let mut unexplained = Vec::new();
    let mut skipped = 0;
    for (name, verdict) in &verdicts {
        let reason = verdict.notes.iter().find(|note| note.contains("[SKIPPED]"));
        let word = match (verdict.passed, reason) {
            (false, _) => format!("FAILED {:?}", verdict.notes),
            (true, None) => "passed".to_owned(),
            (true, Some(note)) => {
                skipped += 1;
                let why = REASONS.iter().find(|(word, _)| note.contains(word));
                if why.is_none() {
                    unexplained.push(format!("{name}: {note}"));
                }
                format!("skipped: {}", why.map_or(note.as_str(), |(_, why)| why))
            }
        };
        let _ = writeln!(report, "  {name:<45} {word}");
    }
    println!("iscsi-test-cu {family} {options:?} against our target role:\n{report}");
    println!(
        "  {total} tests: {} passed, {skipped} skipped for the reasons above, {failed} failed; {:?}\n",
        passed - skipped,
        output.took
    );
    ensure!(
        total >= tests_min && ran == total,
        "{ran} of {total} tests ran\n{}",
        output.text
    );
    ensure!(
        verdicts.len() == total as usize,
        "{} verdicts for {total} tests\n{}",
        verdicts.len(),
        output.text
    );
    ensure!(failed == 0 && passed == total, "{report}\n{}", output.text);
    ensure!(
        unexplained.is_empty(),
        "skipped without a stated reason: {unexplained:#?}"
    );
    ensure!(
        skipped * 3 < total,
        "{skipped} of {total} skipped: that proves little\n{report}"
    );
    Ok(())
}

#[test]
fn libiscsi_finds_no_failure_in_scsi() -> Result<()> {
    run("SCSI", &[], 200)
}

#[test]
fn libiscsi_finds_no_failure_in_scsi_with_a_write_cache_and_4096_byte_blocks() -> Result<()> {
    run("SCSI", &["--block-bytes", "4096", "--write-cache"], 200)
}

#[test]
fn libiscsi_finds_no_failure_in_iscsi() -> Result<()> {
    run("iSCSI", &[], 15)
}
