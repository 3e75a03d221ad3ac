//! Safety while memory is short.
//!
//! The kernel frees memory by writing dirty pages, also to our own devices. If it did that for an
//! allocation of ours, we would wait for it and it for us. Two things break the circle: memory that we
//! have stays ours (mlockall(2)), and for memory that we ask for the kernel starts no I/O
//! (`PR_SET_IO_FLUSHER`, prctl(2), Linux 5.6).

use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

use crate::config::{Effort, Memory};

/// Something that was to be had in any case was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = \"always\": {reason}; allow it, or use \"auto\"")]
pub struct Refused {
    key: &'static str,
    reason: String,
}

/// Prepares this process as the configuration says. To be called before the first thread is started: the
/// state belongs to a thread, and those started later inherit it.
///
/// # Errors
/// When something is refused that the configuration wants always.
pub fn prepare(memory: &Memory) -> Result<(), Refused> {
    let flusher = attempt("memory.io_flusher", memory.io_flusher, become_io_flusher)?;
    let locked = attempt("memory.lock", memory.lock, lock_memory)?;
    tracing::info!(io_flusher = flusher, locked, "memory reclaim");
    Ok(())
}

/// Whether it was done.
fn attempt(
    key: &'static str,
    effort: Effort,
    step: impl FnOnce() -> Result<(), String>,
) -> Result<bool, Refused> {
    if effort == Effort::Never {
        return Ok(false);
    }
    match (step(), effort) {
        (Ok(()), _) => Ok(true),
        (Err(reason), Effort::Always) => Err(Refused { key, reason }),
        (Err(reason), _) => {
            tracing::warn!(
                key,
                "{reason}; a file system on a kernel device of this node may hang when memory is short"
            );
            Ok(false)
        }
    }
}

fn become_io_flusher() -> Result<(), String> {
    match rustix::process::configure_io_flusher_behavior(true) {
        Ok(()) => {}
        Err(Errno::PERM) => {
            return Err("PR_SET_IO_FLUSHER is refused: it needs CAP_SYS_RESOURCE".to_owned());
        }
        Err(Errno::INVAL) => {
            return Err("this kernel has no PR_SET_IO_FLUSHER: it needs Linux 5.6".to_owned());
        }
        Err(error) => return Err(format!("PR_SET_IO_FLUSHER failed: {error}")),
    }
    // Other programs have passed wrong arguments here for years without noticing: look.
    match rustix::process::is_io_flusher() {
        Ok(true) => Ok(()),
        Ok(false) => Err("PR_SET_IO_FLUSHER had no effect".to_owned()),
        Err(error) => Err(format!("PR_GET_IO_FLUSHER failed: {error}")),
    }
}

/// What is mapped now is read in and stays. What is mapped later stays once it was touched: stacks and
/// buffers of which only a part is used do not count in full.
fn lock_memory() -> Result<(), String> {
    // With a limit, a later allocation would fail in the middle of the work.
    let limit = getrlimit(Resource::Memlock).current;
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if let Some(limit) = limit.filter(|_| !privileged) {
        return Err(format!(
            "memory is not locked: the limit (LimitMEMLOCK, RLIMIT_MEMLOCK) is {limit} bytes and has to be infinity"
        ));
    }
    rustix::mm::mlockall(MlockAllFlags::CURRENT)
        .and_then(|()| rustix::mm::mlockall(MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT))
        .map_err(|error| format!("mlockall failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse() -> Result<(), String> {
        Err("no".to_owned())
    }

    #[test]
    fn only_what_is_wanted_always_stops_the_start() {
        assert_eq!(attempt("memory.lock", Effort::Auto, refuse), Ok(false));
        assert_eq!(attempt("memory.lock", Effort::Auto, || Ok(())), Ok(true));
        let never = attempt("memory.lock", Effort::Never, || panic!("it was tried"));
        assert_eq!(never, Ok(false));
        let error = attempt("memory.lock", Effort::Always, refuse).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory.lock = \"always\": no; allow it, or use \"auto\""
        );
    }

    #[test]
    fn threads_inherit_the_io_flusher_state() {
        // The state is this thread's alone: the other tests are not touched.
        match become_io_flusher() {
            Ok(()) => {
                let inherited = std::thread::spawn(rustix::process::is_io_flusher);
                assert_eq!(inherited.join().unwrap(), Ok(true));
            }
            Err(reason) => assert!(reason.contains("CAP_SYS_RESOURCE"), "{reason}"),
        }
    }
}
