//! Rules about the tree itself that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

/// A file longer than this does more than one thing.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent")
        .to_owned()
}

/// All Rust files below `dir`, with their text.
fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut todo = vec![root().join(dir)];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("readable");
            todo.extend(entries.map(|entry| entry.expect("readable").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("UTF-8");
            let path = path
                .strip_prefix(root())
                .expect("below the root")
                .to_owned();
            found.push((path, text));
        }
    }
    assert!(!found.is_empty(), "{dir} has no source");
    found
}

/// Lines of code that contain `word`, comments left out.
fn naming(files: &[(PathBuf, String)], word: &str) -> Vec<String> {
    let code = |line: &&str| !line.trim_start().starts_with("//");
    files
        .iter()
        .flat_map(|(path, text)| {
            let lines = text.lines().filter(code).filter(|line| line.contains(word));
            lines.map(|line| format!("{}: {}", path.display(), line.trim()))
        })
        .collect()
}

#[test]
fn nbd_does_not_know_iscsi_and_the_other_way_round() {
    assert_eq!(
        naming(&sources("agent/src/nbd"), "iscsi"),
        Vec::<String>::new()
    );
    assert_eq!(naming(&sources("iscsi/src"), "nbd"), Vec::<String>::new());
}

#[test]
fn only_the_lun_layer_knows_block_requests_and_scsi_commands() {
    let layers: Vec<_> = sources("agent/src/block")
        .into_iter()
        .filter(|(path, _)| !path.starts_with("agent/src/block/lun"))
        .collect();
    assert_eq!(naming(&layers, "berth_iscsi"), Vec::<String>::new());
}

/// Client and simulator that share a type would agree on a mistake in it.
#[test]
fn the_daemon_does_not_know_the_simulator_nor_that_one_the_fabric_client() {
    let daemon: Vec<_> = sources("agent/src")
        .into_iter()
        .filter(|(path, _)| !path.starts_with("agent/src/sim"))
        .filter(|(path, _)| !path.to_string_lossy().contains("test"))
        // The program that has both.
        .filter(|(path, _)| !path.ends_with("src/main.rs"))
        .collect();
    assert_eq!(naming(&daemon, "sim::"), Vec::<String>::new());
    for word in ["crate::fabric", "crate::config::Fabric"] {
        let found = naming(&sources("agent/src/sim/fabric"), word);
        assert_eq!(found, Vec::<String>::new(), "{word}");
    }
}

#[test]
fn the_contract_knows_neither_protocol() {
    for word in ["berth_iscsi", "berth_agent", "berth_iobuf"] {
        assert_eq!(naming(&sources("api/src"), word), Vec::<String>::new());
    }
}

#[test]
fn the_protocol_core_has_no_clock_and_no_socket() {
    let core: Vec<_> = sources("iscsi/src")
        .into_iter()
        .filter(|(path, _)| !path.starts_with("iscsi/src/net"))
        .filter(|(path, _)| !path.to_string_lossy().contains("test"))
        .collect();
    for word in [
        "tokio::",
        "std::net::Tcp",
        "async fn",
        "async move",
        "Instant::now",
    ] {
        assert_eq!(naming(&core, word), Vec::<String>::new(), "{word}");
    }
}

#[test]
fn no_file_does_everything() {
    let mut long = Vec::new();
    for dir in ["iobuf", "iscsi", "api", "agent", "plugin", "tests"] {
        for (path, text) in sources(dir) {
            if text.lines().count() > LINES_MAX && !path.starts_with("tests/fuzz/target") {
                long.push(format!("{} ({})", path.display(), text.lines().count()));
            }
        }
    }
    assert_eq!(long, Vec::<String>::new());
}
