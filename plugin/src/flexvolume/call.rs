//! What kubelet asks for: the arguments of one call, in either dialect.
//!
//! Kubernetes 1.2 to 1.5 call `attach JSON`, `mount DIR DEVICE JSON`, `unmount DIR` and `detach DEVICE`; later ones
//! `attach JSON NODE`, `mount DIR JSON`, `detach NAME NODE` and more. The number of arguments tells which one it is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::options::{Options, OptionsError};

/// One call.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// `init`.
    Init,
    /// `getvolumename JSON`.
    GetVolumeName(Box<Options>),
    /// `attach JSON`, or `attach JSON NODE`.
    Attach {
        /// What to attach.
        options: Box<Options>,
        /// Where; nothing in the early dialect, where it is always here.
        node: Option<String>,
    },
    /// `isattached JSON NODE`.
    IsAttached {
        /// What.
        options: Box<Options>,
        /// Where.
        node: String,
    },
    /// `waitforattach DEVICE JSON`.
    WaitForAttach(Box<Options>),
    /// `mountdevice DIR DEVICE JSON`.
    MountDevice {
        /// Where, for all pods of this node.
        dir: PathBuf,
        /// What.
        options: Box<Options>,
    },
    /// `mount DIR DEVICE JSON`, or `mount DIR JSON`.
    Mount {
        /// Where, for one pod.
        dir: PathBuf,
        /// What `attach` said; only in the early dialect.
        device: Option<PathBuf>,
        /// What.
        options: Box<Options>,
    },
    /// `unmount DIR`.
    Unmount(PathBuf),
    /// `unmountdevice DIR`.
    UnmountDevice(PathBuf),
    /// `detach DEVICE`: the early dialect.
    DetachDevice(PathBuf),
    /// `detach NAME NODE`.
    Detach {
        /// Name of the PersistentVolume, or of the volume within the pod.
        name: String,
        /// Where.
        node: String,
    },
    /// `expandvolume JSON DIR NEW OLD`.
    ExpandVolume {
        /// What.
        options: Box<Options>,
        /// How large it shall be, in bytes.
        new_bytes: u64,
    },
    /// `expandfs JSON DEVICE DIR NEW OLD`.
    ExpandFs {
        /// What.
        options: Box<Options>,
        /// Where it is mounted.
        dir: PathBuf,
        /// How large it shall be, in bytes.
        new_bytes: u64,
    },
    /// `install --dir DIR [DRIVER...]`: not a call of kubelet.
    Install(Vec<String>),
    /// Something else.
    Unknown,
}

/// Why a call cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nothing was asked for.
    #[error(
        "no call was named: this program is run by kubelet; for people there is: install --dir DIR [VENDOR/DRIVER...]"
    )]
    Nothing,
    /// A known call with another number of arguments.
    #[error("{call} takes {expected}, not {given} arguments")]
    Arity {
        /// The call.
        call: String,
        /// What it takes.
        expected: &'static str,
        /// How many there were.
        given: usize,
    },
    /// An argument is not text.
    #[error("argument {0} is not UTF-8")]
    NotText(usize),
    /// A path that depends on where this program runs.
    #[error("{0:?} is not an absolute path without \"..\"")]
    Path(PathBuf),
    /// No number of bytes.
    #[error("{0:?} is not a number of bytes")]
    Bytes(String),
    /// The options.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

impl Call {
    /// Makes sense of the arguments after the program's name.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn parse(arguments: &[OsString]) -> Result<Self, CallError> {
        let mut words = Vec::with_capacity(arguments.len());
        for (at, argument) in arguments.iter().enumerate() {
            words.push(argument.to_str().ok_or(CallError::NotText(at + 1))?);
        }
        let [call, rest @ ..] = words.as_slice() else {
            return Err(CallError::Nothing);
        };
        let arity = |expected| {
            Err(CallError::Arity {
                call: (*call).to_owned(),
                expected,
                given: rest.len(),
            })
        };
        let options = |json: &str| Options::parse(json).map(Box::new);
        Ok(match (*call, rest) {
            ("init", []) => Self::Init,
            ("init", _) => return arity("none"),
            ("getvolumename", [json]) => Self::GetVolumeName(options(json)?),
            ("getvolumename", _) => return arity("JSON"),
            ("attach", [json]) => Self::Attach {
                options: options(json)?,
                node: None,
            },
            ("attach", [json, node]) => Self::Attach {
                options: options(json)?,
                node: Some((*node).to_owned()),
            },
            ("attach", _) => return arity("JSON, or JSON NODE"),
            ("isattached", [json, node]) => Self::IsAttached {
                options: options(json)?,
                node: (*node).to_owned(),
            },
            ("isattached", _) => return arity("JSON NODE"),
            ("waitforattach", [_, json]) => Self::WaitForAttach(options(json)?),
            ("waitforattach", _) => return arity("DEVICE JSON"),
            ("mountdevice", [dir, _, json]) => Self::MountDevice {
                dir: path(dir)?,
                options: options(json)?,
            },
            ("mountdevice", _) => return arity("DIR DEVICE JSON"),
            ("mount", [dir, json]) => Self::Mount {
                dir: path(dir)?,
                device: None,
                options: options(json)?,
            },
            ("mount", [dir, device, json]) => Self::Mount {
                dir: path(dir)?,
                device: Some(PathBuf::from(device)),
                options: options(json)?,
            },
            ("mount", _) => return arity("DIR JSON, or DIR DEVICE JSON"),
            ("unmount", [dir]) => Self::Unmount(path(dir)?),
            ("unmount", _) => return arity("DIR"),
            ("unmountdevice", [dir]) => Self::UnmountDevice(path(dir)?),
            ("unmountdevice", _) => return arity("DIR"),
            ("detach", [device]) => Self::DetachDevice(path(device)?),
            ("detach", [name, node]) => Self::Detach {
                name: (*name).to_owned(),
                node: (*node).to_owned(),
            },
            ("detach", _) => return arity("DEVICE, or NAME NODE"),
            ("expandvolume", [json, _, new, _]) => Self::ExpandVolume {
                options: options(json)?,
                new_bytes: bytes(new)?,
            },
            ("expandvolume", _) => return arity("JSON DIR NEW OLD"),
            ("expandfs", [json, _, dir, new, _]) => Self::ExpandFs {
                options: options(json)?,
                dir: path(dir)?,
                new_bytes: bytes(new)?,
            },
            ("expandfs", _) => return arity("JSON DEVICE DIR NEW OLD"),
            ("install", rest) => Self::Install(rest.iter().map(|&word| word.to_owned()).collect()),
            _ => Self::Unknown,
        })
    }

    /// What it is about, for the log: never the options, which may hold secrets.
    #[must_use]
    pub fn about(&self) -> String {
        match self {
            Self::Init | Self::Unknown => String::new(),
            Self::GetVolumeName(options) | Self::WaitForAttach(options) => {
                options.volume.to_string()
            }
            Self::Attach { options, .. }
            | Self::IsAttached { options, .. }
            | Self::ExpandVolume { options, .. } => options.volume.to_string(),
            Self::MountDevice { dir, options }
            | Self::Mount { dir, options, .. }
            | Self::ExpandFs { dir, options, .. } => {
                format!("{} at {}", options.volume, dir.display())
            }
            Self::Unmount(path) | Self::UnmountDevice(path) | Self::DetachDevice(path) => {
                path.display().to_string()
            }
            Self::Detach { name, node } => format!("{name} from {node}"),
            Self::Install(words) => words.join(" "),
        }
    }
}

fn path(text: &str) -> Result<PathBuf, CallError> {
    let path = Path::new(text);
    let up = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if path.is_absolute() && !up && !text.contains('\0') {
        Ok(path.to_owned())
    } else {
        Err(CallError::Path(path.to_owned()))
    }
}

/// kubelet writes sizes as plain numbers of bytes.
fn bytes(text: &str) -> Result<u64, CallError> {
    text.parse().map_err(|_| CallError::Bytes(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str =
        r#"{"kubernetes.io/fsType":"xfs","kubernetes.io/readwrite":"rw","volumeID":"vol-1"}"#;

    fn parse(words: &[&str]) -> Result<Call, CallError> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Call::parse(&words)
    }

    #[test]
    fn the_number_of_arguments_tells_the_dialect() {
        let early = parse(&["attach", JSON]).unwrap();
        assert!(matches!(early, Call::Attach { node: None, .. }));
        let late = parse(&["attach", JSON, "n"]).unwrap();
        assert!(matches!(late, Call::Attach { node: Some(node), .. } if node == "n"));
        let early = parse(&["mount", "/d", "/dev/nbd3", JSON]).unwrap();
        assert!(matches!(
            early,
            Call::Mount {
                device: Some(_),
                ..
            }
        ));
        let late = parse(&["mount", "/d", JSON]).unwrap();
        assert!(matches!(late, Call::Mount { device: None, .. }));
        let early = parse(&["detach", "/dev/nbd3"]).unwrap();
        assert!(matches!(early, Call::DetachDevice(_)));
        let late = parse(&["detach", "pv-1", "n"]).unwrap();
        assert!(matches!(late, Call::Detach { .. }));
    }

    #[test]
    fn calls_that_cannot_be_meant() {
        assert_eq!(parse(&[]), Err(CallError::Nothing));
        for words in [
            &["init", "x"][..],
            &["attach"],
            &["mount", "/d"],
            &["mount", "/d", "/dev/nbd0", JSON, "more"],
            &["unmount"],
            &["detach"],
            &["expandfs", JSON, "/dev/nbd0", "/d", "5"],
        ] {
            let error = parse(words).unwrap_err();
            assert!(matches!(error, CallError::Arity { .. }), "{words:?}");
        }
        for words in [
            &["unmount", "relative"][..],
            &["unmount", ""],
            &["unmount", "/a/../b"],
            &["mount", "d", JSON],
        ] {
            let error = parse(words).unwrap_err();
            assert!(matches!(error, CallError::Path(_)), "{words:?}");
        }
        for size in ["-1", "1Gi", "", "1e9"] {
            let error = parse(&["expandvolume", JSON, "/d", size, "1"]).unwrap_err();
            assert!(matches!(error, CallError::Bytes(_)), "{size}");
        }
        assert_eq!(parse(&["fly"]), Ok(Call::Unknown));
    }
}
