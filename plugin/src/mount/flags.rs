//! Mount options as callers give them.

/// Why a mount flag is refused. Its value may be a secret and is not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Empty, or with characters that no option has.
    #[error("mount flag {index} is empty or has control characters")]
    Malformed {
        /// Which one, counted from 1.
        index: usize,
    },
    /// It would make another kind of mount.
    #[error(
        "mount flag {index} ({word}) is not an option of a file system: it would change what is mounted, or where"
    )]
    NotAnOption {
        /// Which one, counted from 1.
        index: usize,
        /// The word before any value.
        word: &'static str,
    },
}

/// Words that are no options of a file system, but tell `mount(8)` to do something else.
const OTHERS: [&str; 24] = [
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "offset",
    "sizelimit",
    "encryption",
    "helper",
    "uhelper",
    "fstype",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
    "X-mount.mkdir",
    "x-mount.mkdir",
    "X-mount.subdir",
    "X-mount.idmap",
    "X-mount.nocanonicalize",
];

/// One text of options: our own first, then those of the caller.
pub(super) fn join(own: &[&str], flags: &[String]) -> Result<String, FlagError> {
    for (at, flag) in flags.iter().enumerate() {
        let index = at + 1;
        if flag.is_empty() || flag.chars().any(char::is_control) {
            return Err(FlagError::Malformed { index });
        }
        for option in flag.split(',') {
            let word = option.split('=').next().unwrap_or_default();
            if let Some(word) = OTHERS.into_iter().find(|other| *other == word) {
                return Err(FlagError::NotAnOption { index, word });
            }
        }
    }
    let mut options = own.join(",");
    for flag in flags {
        options.push(',');
        options.push_str(flag);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_checked() {
        let joined = |flags: &[&str]| {
            let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
            join(&["rw"], &flags)
        };
        assert_eq!(joined(&[]).unwrap(), "rw");
        assert_eq!(
            joined(&["noatime", "context=\"a:b,c\"", "discard"]).unwrap(),
            "rw,noatime,context=\"a:b,c\",discard"
        );
        for bad in ["", "a\0", "a\nb"] {
            assert_eq!(
                joined(&["noatime", bad]),
                Err(FlagError::Malformed { index: 2 })
            );
        }
        for (flag, word) in [
            ("bind", "bind"),
            ("noatime,remount", "remount"),
            ("offset=512", "offset"),
            ("loop=/dev/loop0", "loop"),
        ] {
            assert_eq!(
                joined(&[flag]),
                Err(FlagError::NotAnOption { index: 1, word })
            );
        }
        let error = joined(&["move=hunter2"]).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
