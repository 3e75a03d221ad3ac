//! Looks after one LUN while it serves: pauses that end, and facts that change.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use berth_iscsi::scsi::sense::Refresh;

use super::volume::Shared;
use crate::block::Error;
use crate::block::hub::DynHub;
use crate::block::lun::{LunControl, News, probe};

/// Times that a unit's facts are read before its I/O is given up.
const REFRESH_TRIES: u32 = 5;
/// Pause between these tries.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// Keeps a LUN until its session is lost, then returns.
pub(super) struct Keeper {
    pub(super) volume: String,
    pub(super) lun: LunControl,
    pub(super) hub: Rc<RefCell<DynHub>>,
    pub(super) shared: Arc<Shared>,
}

impl Keeper {
    pub(super) async fn run(self) {
        loop {
            let retry_at = self.lun.poll_timeout();
            let news = tokio::select! {
                biased;
                news = poll_fn(|cx| self.lun.poll_news(cx)) => news,
                () = pause_until(retry_at) => {
                    self.lun.handle_timeout(crate::block::now());
                    self.hub.borrow_mut().pump();
                    continue;
                }
            };
            match news {
                News::PauseBegan => {}
                News::Refresh(refresh) => self.refresh(refresh).await,
                News::Closed => return,
            }
        }
    }

    /// Reads again what a unit attention said has changed.
    async fn refresh(&self, refresh: Refresh) {
        if refresh.contains(Refresh::CACHE_LOSS) && self.lun.profile().write_cache {
            tracing::error!(
                volume = self.volume,
                "the unit was reset with its write cache on: writes since the last flush may be lost"
            );
        }
        // Another LUN map may have put another unit behind our number.
        let wanted = [
            Refresh::CAPACITY,
            Refresh::MODE,
            Refresh::INQUIRY,
            Refresh::LUNS,
        ];
        if wanted.into_iter().any(|one| refresh.contains(one)) {
            for _ in 0..REFRESH_TRIES {
                match self.read_again().await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(volume = self.volume, %error, "the unit's facts cannot be read");
                    }
                }
                if self.lun.port().is_closed() {
                    return; // The end of the session answers everything.
                }
                tokio::time::sleep(REFRESH_PAUSE).await;
            }
            // Whether it still is the same unit is not known: nothing more goes to it.
            self.give_up(Error::Unavailable);
        }
    }

    async fn read_again(&self) -> Result<(), probe::ProbeError> {
        let mut profile = self.lun.profile();
        let (identity, size_bytes) = (profile.identity.clone(), profile.size_bytes());
        probe::refresh(&self.lun.port(), &mut profile).await?;
        if profile.identity != identity {
            tracing::error!(
                volume = self.volume, was = ?identity, is = ?profile.identity,
                "the LUN is another unit now: all I/O is failed"
            );
            self.give_up(Error::Gone);
            return Ok(());
        }
        if profile.size_bytes() != size_bytes {
            let is_bytes = profile.size_bytes();
            tracing::info!(
                volume = self.volume,
                was_bytes = size_bytes,
                is_bytes,
                "the unit has another size"
            );
        }
        self.lun.update_profile(|current| *current = profile);
        self.shared.geometry.send_replace(Some(self.lun.geometry()));
        self.hub.borrow_mut().pump();
        Ok(())
    }

    fn give_up(&self, error: Error) {
        self.lun.fail_all(error);
        self.hub.borrow_mut().pump();
    }
}

async fn pause_until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
