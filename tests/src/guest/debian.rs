//! The Debian that [`super::qemu`] boots: made once per machine, from Debian's packages.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::tool;

const RECIPE: &str = include_str!("debian-root.sh");
/// Some 250 packages over a slow line onto a busy machine.
const DEADLINE: Duration = Duration::from_secs(1200);

/// A root and a kernel for it; nobody writes to them.
#[derive(Debug, Clone)]
pub struct Debian {
    folder: PathBuf,
}

impl Debian {
    /// The one that this recipe makes, from the machine's cache or made now, which takes about a minute.
    ///
    /// # Errors
    /// When it cannot be made; with what the tools say.
    pub fn get() -> Result<Self> {
        let cache = cache()?;
        std::fs::create_dir_all(&cache)?;
        let recipe = tempfile::NamedTempFile::new()?;
        std::fs::write(recipe.path(), RECIPE)?;
        let hash = tool::sha256(recipe.path(), DEADLINE)?;
        let folder = cache.join(format!("debian-{}", &hash[..16]));
        if !folder.is_dir() {
            make(recipe.path(), &cache, &folder)?;
        }
        let debian = Self { folder };
        for file in [debian.root(), debian.kernel()] {
            ensure!(
                file.is_file(),
                "{} is missing: remove its folder",
                file.display()
            );
        }
        Ok(debian)
    }

    /// An ext4 file system.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.img")
    }

    /// A kernel that needs no initial RAM disk for it.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }
}

/// What is made beside, in a folder of another name, counts only once it is whole.
fn make(recipe: &Path, cache: &Path, folder: &Path) -> Result<()> {
    let new = tempfile::Builder::new().prefix("new-").tempdir_in(cache)?;
    let words = [recipe.as_os_str(), new.path().as_os_str()];
    tool::run("bash", &words, DEADLINE)?;
    if let Err(error) = std::fs::rename(new.path(), folder) {
        // Somebody else was quicker, with the same recipe.
        ensure!(folder.is_dir(), "{}: {error}", folder.display());
    }
    Ok(())
}

fn cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    Ok(cache
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("berth-tests"))
}
