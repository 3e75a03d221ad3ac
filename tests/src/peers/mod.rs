//! iSCSI targets to test against, each as a guard: started and ready when you get it, gone when you drop it.

mod istgt;
mod lio;
mod portal;
mod tgt;

use std::fmt;
use std::path::Path;

pub use istgt::Istgt;
pub use lio::Lio;
pub use portal::Portal;
pub use tgt::Tgt;

/// Name and secret of one side of CHAP.
#[derive(Clone)]
pub struct Account {
    /// CHAP_N.
    pub user: String,
    /// The shared secret, at least 12 bytes.
    pub secret: String,
}

impl Account {
    /// An account.
    #[must_use]
    pub fn new(user: &str, secret: &str) -> Self {
        Self {
            user: user.to_owned(),
            secret: secret.to_owned(),
        }
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({})", self.user)
    }
}

/// What a target shall be like.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Size of the one LUN in bytes.
    pub size_bytes: u64,
    /// How initiators prove who they are; `None`: no authentication.
    pub chap: Option<Account>,
    /// How the target proves who it is.
    pub mutual: Option<Account>,
    /// The target accepts nothing but CRC32C for header and data.
    pub digests_required: bool,
    /// A target in a guest kernel loses no acknowledged write when its kernel is killed. Others keep their data in the
    /// page cache of this machine, which outlives them, whatever is said here.
    pub durable: bool,
}

impl Spec {
    /// A LUN that everybody may use, digests as the target comes.
    #[must_use]
    pub fn open(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            chap: None,
            mutual: None,
            digests_required: false,
            durable: false,
        }
    }

    /// One-way CHAP and both digests.
    #[must_use]
    pub fn chap(size_bytes: u64) -> Self {
        Self {
            chap: Some(Account::new("node-user", "initiator-secret")),
            digests_required: true,
            ..Self::open(size_bytes)
        }
    }

    /// Mutual CHAP and both digests. Secrets of at most 16 bytes, which is all that some targets take.
    #[must_use]
    pub fn mutual_chap(size_bytes: u64) -> Self {
        Self {
            mutual: Some(Account::new("array-user", "target-secret-1")),
            ..Self::chap(size_bytes)
        }
    }
}

/// What an attach asks for, header and data alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digests {
    /// Never.
    Off,
    /// If the target wants.
    Prefer,
    /// Or no session.
    Require,
}

impl Digests {
    /// The word of the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Prefer => "prefer",
            Self::Require => "require",
        }
    }
}

/// A target that serves one LUN from a file.
pub trait Peer {
    /// Where it listens: `address:port`.
    fn portal(&self) -> String;
    /// All addresses under which the LUN can be reached: its paths.
    fn portals(&self) -> Vec<String> {
        vec![self.portal()]
    }
    /// Its iSCSI name.
    fn target(&self) -> &str;
    /// The LUN that holds the data.
    fn lun(&self) -> u64;
    /// What it was started with.
    fn spec(&self) -> &Spec;
    /// The file behind the LUN; `None` when it is in memory.
    fn backing(&self) -> Option<&Path>;
    /// The network namespace from which alone it can be reached.
    fn netns(&self) -> Option<&str> {
        None
    }
}

/// Removes what a killed program has left behind; not being there is fine.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// A target that can be killed and comes back with the same LUN and the same data.
pub trait Mortal: Peer {
    /// Kills it where it stands, as a crash would (`kill -9`).
    ///
    /// # Errors
    /// When it is dead already.
    fn kill(&mut self) -> anyhow::Result<()>;
    /// Starts it again and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; with its log.
    fn revive(&mut self) -> anyhow::Result<()>;
    /// Makes it stop serving while it lives.
    ///
    /// # Errors
    /// When it cannot be told.
    fn suspend(&mut self) -> anyhow::Result<()>;
    /// Makes it serve again.
    ///
    /// # Errors
    /// When it cannot be told.
    fn resume(&mut self) -> anyhow::Result<()>;
    /// What [`Mortal::suspend`] does, in a word.
    fn suspension(&self) -> &'static str;
}
