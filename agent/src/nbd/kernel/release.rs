//! Taking a device away.

use std::time::Duration;

use tokio::time::Instant;

use super::device::{Identity, KernelNbd, LOOK_AGAIN, stored_name};
use super::driver::Claim;
use super::error::{DeviceError, failed};
use super::link::Link;
use super::users::User;

/// Time for users of a device that was taken away by force to close it, before it is left behind.
const USED_LIMIT: Duration = Duration::from_secs(1);
/// Time to open a device that is taken away by force: it takes microseconds, or for ever.
const FORCED_CLAIM_LIMIT: Duration = Duration::from_secs(1);
/// Time for the last flush of a device that is taken away by force.
const FORCED_FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// How a device was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// It is free.
    Free,
    /// All its I/O fails, but somebody still has it open; it is free when they close it.
    StillOpen,
}

impl KernelNbd {
    /// Takes a device away: what the kernel holds of it is written first, and it is free afterwards. `link`:
    /// its connection, if it is served. `force`: whoever has it open. `answers`: its I/O works at present; with
    /// force nothing else is waited for.
    ///
    /// A device that is gone, or another's, is released.
    ///
    /// # Errors
    /// [`DeviceError::InUse`], or the flush failed or was not over in time; not with `force`. The device is
    /// as it was then.
    pub async fn release(
        &self,
        index: u32,
        identity: &Identity,
        link: Option<&Link>,
        force: bool,
        answers: bool,
    ) -> Result<Released, DeviceError> {
        match self.check_ours(index, identity).await {
            Ok(_) => {}
            Err(DeviceError::Lost { .. }) => {
                self.store.remove(&stored_name(&identity.backend));
                return Ok(Released::Free);
            }
            Err(error) => return Err(error),
        }
        let claim = self.claim(index, force).await?;
        let mut users = self
            .call(move |driver| driver.users(index))
            .await
            .map_err(failed("look for users of the device"))?;
        if claim.is_none() && users.is_empty() {
            users.push(User::Unknown);
        }
        if !users.is_empty() && !force {
            let node = self.node(index);
            return Err(DeviceError::InUse { node, users });
        }
        // Without a connection nobody would answer; and without openers there is nothing to flush either: the
        // last one to close it did that.
        if link.is_some() && (answers || !force) {
            self.last_flush(index, force).await?;
        }
        if force && let Some(link) = link {
            // A sender that waits for us to read holds a lock that DISCONNECT needs.
            link.shut();
        }
        let disconnected = self.call(move |driver| driver.disconnect(index)).await;
        drop(claim);
        if let Err(error) = disconnected
            && self.check_ours(index, identity).await.is_ok()
        {
            return Err(error.into());
        }
        self.store.remove(&stored_name(&identity.backend));
        let limit = self.settings.release_timeout;
        // Whoever has it mounted will not be gone in that time.
        let limit = if users.is_empty() {
            limit
        } else {
            limit.min(USED_LIMIT)
        };
        Ok(self.wait_free(index, identity, limit).await)
    }

    /// Keeps others from mounting the device, as long as the claim lives; `None`: somebody has it already.
    ///
    /// Opening waits for whoever is about to close the device, who may wait for I/O that nobody answers any more. By
    /// force that is not waited for: DISCONNECT is what ends it.
    async fn claim(&self, index: u32, force: bool) -> Result<Option<Claim>, DeviceError> {
        let claim = self.call(move |driver| driver.claim(index));
        let claim = if force {
            match tokio::time::timeout(FORCED_CLAIM_LIMIT, claim).await {
                Ok(claim) => claim,
                Err(_) => return Ok(None),
            }
        } else {
            claim.await
        };
        claim.map_err(failed("open the device"))
    }

    async fn last_flush(&self, index: u32, force: bool) -> Result<(), DeviceError> {
        let limit = if force {
            FORCED_FLUSH_LIMIT.min(self.settings.flush_timeout)
        } else {
            self.settings.flush_timeout
        };
        let flush = self.call(move |driver| driver.flush(index));
        let what = "the last flush of the device";
        let error = match tokio::time::timeout(limit, flush).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(source)) => DeviceError::Io {
                what: "flush the device",
                source,
            },
            Err(_) => DeviceError::TimedOut { what, limit },
        };
        if !force {
            return Err(error);
        }
        tracing::warn!(device = index, %error, "the device is taken away by force, unflushed");
        Ok(())
    }

    /// Waits until the device has nothing of us any more: then its number may be used again.
    async fn wait_free(&self, index: u32, identity: &Identity, limit: Duration) -> Released {
        let deadline = Instant::now() + limit;
        loop {
            match self.facts(index).await {
                Ok(facts) if facts.pid.is_none() && !facts.held => return Released::Free,
                // Somebody else was quicker.
                Ok(facts)
                    if facts.pid.is_some() && facts.backend.as_ref() != Some(&identity.backend) =>
                {
                    return Released::Free;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(device = index, %error, "the device cannot be looked at");
                }
            }
            if Instant::now() >= deadline {
                tracing::warn!(
                    device = index,
                    "the device was disconnected, and somebody still has it open; it is free when they close it"
                );
                return Released::StillOpen;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
