//! The executable as kubelet runs it: whatever it is called with, it answers one JSON object and nothing else.

#![allow(clippy::unwrap_used, reason = "this is all test code")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const JSON: &str = r#"{"kubernetes.io/fsType":"ext4","kubernetes.io/readwrite":"rw","volumeID":"vol-1","size":"1"}"#;
const SECRET: &str = "aHVudGVyMi1odW50ZXIy";

/// A node without berthd, and with a log of its own.
struct Node(TempDir);

impl Node {
    fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "socket = '{}'\nstate_dir = '{}'\nlog = '{}'\nlog_level = 'trace'\ndeadline_seconds = 5\n{more}\n",
            path("api.sock"),
            path("state"),
            path("log"),
        );
        fs::write(dir.path().join("config"), config).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-flexvolume"));
        command
            .env_clear()
            .env("BERTH_FLEXVOLUME_CONFIG", self.path().join("config"))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null());
        command
    }

    fn run<T: AsRef<OsStr>>(&self, words: &[T]) -> Output {
        self.command().args(words).output().unwrap()
    }

    /// The answer, checked for its form.
    fn answer<T: AsRef<OsStr>>(&self, words: &[T]) -> Value {
        let output = self.run(words);
        check(&output).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }
}

/// One JSON object and a newline, nothing on standard error, and the exit code that belongs to the status.
fn check(output: &Output) -> Result<Value, String> {
    let text = String::from_utf8(output.stdout.clone()).map_err(|error| error.to_string())?;
    let answer: Value =
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text:?}"))?;
    let code = match answer["status"].as_str() {
        Some("Success" | "Not supported") => 0,
        Some("Failure") => 1,
        other => return Err(format!("status {other:?}")),
    };
    let fine = output.stderr.is_empty()
        && output.status.code() == Some(code)
        && text.ends_with("}\n")
        && !text.trim_end().contains('\n')
        && (code == 0
            || answer["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty()));
    if fine {
        Ok(answer)
    } else {
        Err(format!("{output:?}"))
    }
}

#[test]
fn init_needs_nothing() {
    let node = Node::new("");
    let answer = node.answer(&["init"]);
    assert_eq!(
        answer,
        json!({ "status": "Success", "capabilities": { "attach": false, "selinuxRelabel": true, "supportsMetrics": true,
            "fsGroup": true, "requiresFSResize": true } })
    );
    assert!(!node.path().join("state").exists());
    let node = Node::new("attach = true");
    assert_eq!(node.answer(&["init"])["capabilities"]["attach"], true);
    // A kubelet of Kubernetes 1.3 does not start when this fails.
    for broken in ["nonsense", "attach = 5", "\0"] {
        let node = Node::new(broken);
        assert_eq!(node.answer(&["init"])["status"], "Success");
        let answer = node.answer(&["mount", "/pods/1", JSON]);
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains("config: line 6"), "{message}");
    }
    let missing = node
        .command()
        .env("BERTH_FLEXVOLUME_CONFIG", "/none")
        .arg("init")
        .output();
    assert_eq!(check(&missing.unwrap()).unwrap()["status"], "Success");
}

#[test]
fn what_is_unknown_is_not_supported() {
    let node = Node::new("");
    for words in [&["fly"][..], &["--help"], &["", ""], &["Mount", "/a", JSON]] {
        assert_eq!(node.answer(words), json!({ "status": "Not supported" }));
    }
    let none: [&str; 0] = [];
    assert_eq!(node.answer(&none)["status"], "Failure");
    let bytes = OsString::from_vec(vec![b'a', 0xff]);
    assert_eq!(node.answer(&[bytes])["status"], "Failure");
}

#[test]
fn without_berthd_the_message_says_so() {
    let node = Node::new("connect_retry_seconds = 0");
    for words in [
        &["attach", JSON][..],
        &["attach", JSON, "no-such-node"],
        &["mount", "/pods/1", JSON],
        &["detach", "/dev/nbd77"],
        &["expandvolume", JSON, "/pods/1", "5", "1"],
    ] {
        let answer = node.answer(words);
        let message = answer["message"].as_str().unwrap();
        assert!(
            message.contains("berthd is not reachable at"),
            "{words:?}: {message}"
        );
    }
    // Nothing is there to be undone.
    assert_eq!(
        node.answer(&["unmount", "/no/such/dir"])["status"],
        "Success"
    );
    assert_eq!(
        node.answer(&["unmountdevice", "/no/such/dir"])["status"],
        "Success"
    );
}

/// It accepts and never answers: the call ends within its time all the same, with what is left for undoing.
#[test]
fn a_berthd_that_hangs_does_not_hang_kubelet() {
    let node = Node::new("");
    let _listener = UnixListener::bind(node.path().join("api.sock")).unwrap();
    let began = Instant::now();
    let answer = node.answer(&["mount", "/pods/1", JSON]);
    let took = began.elapsed();
    assert_eq!(answer["status"], "Failure");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("time of this call"), "{message}");
}

/// What a program prints that is run on the way does not come out.
#[test]
fn children_are_not_heard() {
    let node = Node::new("");
    let bin = node.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let umount = bin.join("umount");
    fs::write(
        &umount,
        "#!/bin/sh\necho noise; echo more noise >&2; exit 1\n",
    )
    .unwrap();
    fs::set_permissions(&umount, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = node
        .command()
        .args(["unmount", "/proc"])
        .env("PATH", &bin)
        .output()
        .unwrap();
    let answer = check(&output).unwrap();
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("more noise"), "{message}");
}

#[test]
fn secrets_are_in_no_answer_and_no_log() {
    let node = Node::new("connect_retry_seconds = 0");
    for json in [
        json!({ "volumeID": "vol-1", "size": "1", "kubernetes.io/secret/password": SECRET }),
        json!({ "volumeID": "vol-1", "password": SECRET }),
        json!({ "volumeID": "vol-1", "kubernetes.io/secret/x": [SECRET] }),
        json!({ "kubernetes.io/secret/x": SECRET }),
        json!({ "volumeID": "vol-1", "size": { "x": SECRET } }),
    ] {
        for words in [
            &["attach"][..],
            &["mount", "/pods/1"],
            &["mount", "/pods/1", "/dev/nbd0"],
        ] {
            let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            words.push(json.to_string());
            assert!(!node.answer(&words).to_string().contains(SECRET));
        }
    }
    let broken = format!("{{\"kubernetes.io/secret/x\":\"{SECRET}\" oops");
    assert!(
        !node
            .answer(&["attach", &broken])
            .to_string()
            .contains(SECRET)
    );
    let log = node.log();
    assert!(log.contains("vol-1") && log.contains("flex-"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
}

#[test]
fn a_closed_pipe_is_no_reason_to_panic() {
    let node = Node::new("");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = node.command().arg("init").stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

#[test]
fn it_installs_itself_and_runs_from_there() {
    let node = Node::new("");
    let dir = node.path().join("volume/exec");
    let answer = node.answer(&["install", "--dir", dir.to_str().unwrap()]);
    assert_eq!(answer["status"], "Success", "{answer}");
    for name in ["datera~iscsi/iscsi", "berth~volume/volume"] {
        let output = Command::new(dir.join(name)).arg("init").output().unwrap();
        assert_eq!(check(&output).unwrap()["status"], "Success");
    }
    assert_eq!(
        node.answer(&["install", "--dir", "relative"])["status"],
        "Failure"
    );
    assert_eq!(
        node.answer(&["install", "--dir", "/proc/none"])["status"],
        "Failure"
    );
}

/// Words that kubelet uses, words that nobody uses, in any number and order. Paths lie in a place of their own.
fn words() -> impl Strategy<Value = Vec<OsString>> {
    let calls = [
        "init",
        "getvolumename",
        "attach",
        "isattached",
        "waitforattach",
        "mountdevice",
        "mount",
        "unmount",
        "unmountdevice",
        "detach",
        "expandvolume",
        "expandfs",
    ];
    let word = prop_oneof![
        3 => Just(OsString::from(JSON)),
        2 => Just(OsString::from("/no/such/dir")),
        1 => Just(OsString::from("/dev/nbd77")),
        1 => "[0-9]{1,25}".prop_map(OsString::from),
        1 => "\\PC{0,30}".prop_map(OsString::from),
        1 => proptest::collection::vec(1_u8.., 0..20).prop_map(OsString::from_vec),
        1 => "\\{\"volumeID\":\"[a-z]{0,5}\",\"\\PC{0,10}\":\"[0-9a-z]{0,5}\"\\}".prop_map(OsString::from),
    ];
    let rest = proptest::collection::vec(word, 0..6);
    (proptest::sample::select(calls.to_vec()), rest).prop_map(|(call, rest)| {
        let mut words = vec![OsString::from(call)];
        words.extend(rest);
        words
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_call_is_answered(words in words()) {
        let node = Node::new("connect_retry_seconds = 0");
        let output = node.run(&words);
        prop_assert!(check(&output).is_ok(), "{words:?}: {:?}", check(&output));
        prop_assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}
