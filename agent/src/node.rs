//! Who this node is: its name, and the initiator name that is made once and kept.

use std::path::Path;

use berth_iscsi::name::IscsiName;

use crate::volume::store::{StoreError, write_synced};

const FILE: &str = "initiator_name";

/// The host name, or `localhost` when the kernel has none.
#[must_use]
pub fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if name.is_empty() || name == "(none)" {
        "localhost".to_owned()
    } else {
        name
    }
}

/// The initiator name that was kept in `state_dir`; made from the node's name and kept when there is
/// none. Targets know a node by this name (access lists, reservations), so it must not change.
///
/// # Errors
/// When the file cannot be read or written, or does not hold an iSCSI name.
pub fn initiator_name(state_dir: &Path, node: &str) -> Result<IscsiName, StoreError> {
    let path = state_dir.join(FILE);
    let damaged = |message: String| StoreError::Damaged {
        path: path.clone(),
        message,
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|error| damaged(format!("{error}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut random = [0u8; 4];
            getrandom::fill(&mut random).map_err(|error| damaged(error.to_string()))?;
            let suffix = u32::from_be_bytes(random);
            let safe: String = node
                .to_ascii_lowercase()
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() || c == '-' || c == '.' {
                        c
                    } else {
                        '-'
                    }
                })
                .take(100)
                .collect();
            let name = format!("iqn.2026-11.io.berth:{safe}-{suffix:08x}");
            write_synced(&path, format!("{name}\n").as_bytes())?;
            name.parse().map_err(|error| damaged(format!("{error}")))
        }
        Err(source) => Err(StoreError::Io {
            what: "read",
            path,
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initiator_name_is_made_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = initiator_name(dir.path(), "Worker_1").expect("made");
        assert!(
            first.as_str().starts_with("iqn.2026-11.io.berth:worker-1-"),
            "{first}"
        );
        assert_eq!(initiator_name(dir.path(), "other").expect("kept"), first);
    }

    #[test]
    fn a_damaged_file_is_refused_and_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join(FILE), "nonsense").expect("writes");
        assert!(initiator_name(dir.path(), "a").is_err());
        assert_eq!(
            std::fs::read_to_string(dir.path().join(FILE)).expect("reads"),
            "nonsense"
        );
    }
}
