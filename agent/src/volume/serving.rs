//! An attachment whose volume is up: how it stands is told, kept and changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_api::types::{
    AttachmentPatch, AttachmentState, EventKind, NewEvent, PathState, Reason, Source, SourcePatch,
};
use berth_api::{AttachmentName, Code, Error, Portal};
use tokio::sync::oneshot;

use super::attachment::{Call, Next, Task};
use super::device;
use super::failure;
use super::intent::Intent;
use super::shut_out::Doubt;
use crate::initiator;
use crate::plane::spec::{Leave, PathStatus, Reconfigure, VolumeHealth, VolumeStatus};
use crate::plane::{Ended, Volume};

/// Answer to a change.
pub(super) type ChangeAnswer = oneshot::Sender<Result<(), Error>>;

/// What was told already.
#[derive(Default)]
struct Told {
    /// Of each path, by its number.
    paths: BTreeMap<u16, (Portal, PathState)>,
    cache_losses: u64,
}

impl Task {
    /// `attached`, `recovering`, or `failed` with a volume that is still there; until the volume ends or
    /// somebody takes it away.
    pub(super) async fn serve(&mut self, volume: Arc<Volume>) -> Next {
        let mut status = volume.status();
        let mut geometry = volume.geometry_changes();
        let mut size_bytes = volume.geometry().size_bytes;
        let mut told = Told::default();
        let mut doubt = Doubt::default();
        let now = status.borrow_and_update().clone();
        doubt.look(self, &now);
        self.on_status(&volume, &mut told, now).await;
        self.answer_waiting(&Ok(()));
        loop {
            tokio::select! {
                biased;
                Ok(()) = status.changed() => {
                    let now = status.borrow_and_update().clone();
                    doubt.look(self, &now);
                    self.on_status(&volume, &mut told, now).await;
                    // It may have waited for I/O to work.
                    self.sync_device_size(&volume).await;
                }
                event = device::next_event(&mut self.device) => {
                    if let Some(next) = self.on_device_event(&volume, event).await {
                        return next;
                    }
                }
                Ok(()) = geometry.changed() => {
                    let size = geometry.borrow_and_update().as_ref().map(|g| g.size_bytes);
                    if let Some(now) = size.filter(|now| *now != size_bytes) {
                        self.context.events.publish(resized(&self.name, size_bytes, now));
                        size_bytes = now;
                        self.sync_device_size(&volume).await;
                    }
                }
                ended = volume.wait_ended() => {
                    let error = match ended {
                        Ended::Failed(error) => error,
                        Ended::Detached { .. } => failure::lost("the data plane has stopped"),
                    };
                    self.note_fenced(&error);
                    self.leave_device().await;
                    self.keep_intent_or_log().await;
                    return Next::Failed(error.with_attachment(&self.name));
                }
                error = doubt.confirmed() => self.shut_out(&volume, error).await,
                call = self.calls.recv() => match call {
                    Some(call) => {
                        if let Some(next) = self.on_call(&volume, call).await {
                            return next;
                        }
                    }
                    None => return std::future::pending().await,
                },
            }
        }
    }

    async fn on_call(&mut self, volume: &Arc<Volume>, call: Call) -> Option<Next> {
        match call {
            Call::Attach { takeover, answer } => {
                if self.view.borrow().state != AttachmentState::Failed {
                    let _ = answer.send(Ok(()));
                    return None;
                }
                // Only a new volume can work again.
                let _ = volume.begin_detach(true).await;
                self.end(volume, Leave::Stop).await;
                self.takeover |= takeover;
                self.waiting.push(answer);
                Some(Next::Connect { retry: false })
            }
            Call::Detach { force, answer } => {
                if let Err(in_use) = volume.begin_detach(force).await {
                    let _ = answer.send(Err(failure::in_use(&self.name, in_use.clients)));
                    return None;
                }
                if let Err(error) = self.release_device(volume, force).await {
                    volume.keep_on().await;
                    let _ = answer.send(Err(error));
                    return None;
                }
                self.forced |= force;
                self.detaching.push_back(answer);
                let state = AttachmentState::Detaching;
                self.set_state(state, None, Some(Arc::clone(volume)));
                self.end(volume, Leave::Detach).await;
                Some(Next::Detach)
            }
            Call::Change { patch, answer } => {
                let result = self.change_volume(volume, &patch).await;
                let _ = answer.send(result);
                None
            }
            Call::Stop(answer) => {
                self.end(volume, Leave::Stop).await;
                Some(Next::Stop(answer))
            }
        }
    }

    /// Ends the volume and keeps whether anything of it can be left on the target.
    pub(super) async fn end(&mut self, volume: &Volume, leave: Leave) {
        self.intent.clean = volume.end(leave).await;
        self.leave_device().await;
        if leave == Leave::Stop {
            self.keep_intent_or_log().await;
        }
    }

    async fn on_status(&mut self, volume: &Arc<Volume>, told: &mut Told, status: VolumeStatus) {
        for event in told.news(&self.name, &status.paths) {
            self.context.events.publish(event);
        }
        if status.cache_losses > told.cache_losses {
            told.cache_losses = status.cache_losses;
            self.context.events.publish(cache_loss(&self.name));
        }
        let mut changed = self.note_paths(&status.paths);
        let (state, reason) = match &status.health {
            VolumeHealth::Up => (AttachmentState::Attached, None),
            VolumeHealth::Recovering {
                reason, io_fails, ..
            } => {
                let mut reason = Reason::from(reason);
                reason.retryable = true;
                if *io_fails {
                    let late = "; the recovery timeout is over and I/O fails until a path is back";
                    reason.detail.push_str(late);
                }
                (AttachmentState::Recovering, Some(reason))
            }
            VolumeHealth::Failed { reason } => {
                self.note_fenced(reason);
                changed = true;
                (AttachmentState::Failed, Some(Reason::from(reason)))
            }
        };
        if changed {
            self.keep_intent_or_log().await;
            self.tell_kept(volume);
        }
        let same = {
            let view = self.view.borrow();
            view.state == state && view.reason == reason && view.volume.is_some()
        };
        if !same {
            self.set_state(state, reason, Some(Arc::clone(volume)));
        }
    }

    /// Keeps the portal groups that the target named, and forgets paths that are gone. Whether anything
    /// has changed.
    pub(super) fn note_paths(&mut self, paths: &[PathStatus]) -> bool {
        let before = self.intent.paths.clone();
        self.intent
            .paths
            .retain(|known| !known.retired || paths.iter().any(|path| path.index == known.index));
        for known in &mut self.intent.paths {
            let found = paths.iter().find(|path| path.index == known.index);
            if let Some(group) = found.and_then(|path| path.portal_group) {
                known.portal_group = Some(group);
            }
        }
        before != self.intent.paths
    }

    /// Lets paths be used of which it is known now, in the next life too, which portal group they are with. Also
    /// when it could not be written: then the log says so, and waiting would help nobody.
    pub(super) fn tell_kept(&self, volume: &Volume) {
        let paths = self.intent.paths.iter();
        let groups = paths.filter_map(|path| Some((path.index, path.portal_group?)));
        volume.set_kept_groups(groups.collect());
    }

    /// Changes the intent and then the volume.
    async fn change_volume(
        &mut self,
        volume: &Volume,
        patch: &AttachmentPatch,
    ) -> Result<(), Error> {
        let before = self.change_intent(patch).await?;
        let timeout = self.intent.recovery_timeout(self.context.recovery_timeout);
        let change = Reconfigure {
            recovery_timeout: timeout.as_duration(),
            paths: initiator::paths(&self.intent),
        };
        if let Err(error) = volume.configure(change).await {
            self.intent = before;
            self.keep_intent_or_log().await;
            self.show_request();
            return Err(error.with_attachment(&self.name));
        }
        Ok(())
    }

    /// Makes a change durable; gives what was before.
    pub(super) async fn change_intent(&mut self, patch: &AttachmentPatch) -> Result<Intent, Error> {
        if patch.source.is_some() && matches!(self.intent.request.source, Source::Fabric(_)) {
            let detail =
                "the fabric says where the portals of its volumes are; attach again to ask it anew";
            let error = Error::new(Code::InvalidArgument, detail).with_field("source.iscsi");
            return Err(error.with_attachment(&self.name));
        }
        let before = self.intent.clone();
        if let Some(timeout) = patch.recovery_timeout_seconds {
            self.intent.request.recovery_timeout_seconds = timeout;
        }
        if let Some(SourcePatch::Iscsi(iscsi)) = &patch.source
            && let Err(used_up) = self.intent.set_portals(&iscsi.portals)
        {
            self.intent = before;
            let error = Error::new(Code::Exhausted, used_up.to_string());
            return Err(error.with_retryable(false).with_attachment(&self.name));
        }
        if let Err(error) = self.keep_intent().await {
            self.intent = before;
            return Err(error);
        }
        self.show_request();
        Ok(before)
    }
}

fn resized(name: &AttachmentName, was: u64, is: u64) -> NewEvent {
    NewEvent {
        attachment: Some(name.clone()),
        ..NewEvent::new(
            EventKind::Resized,
            format!("{name} has {is} bytes now, it had {was}"),
        )
    }
}

fn cache_loss(name: &AttachmentName) -> NewEvent {
    let detail =
        "the unit was reset with its write cache on: writes since the last flush may be lost";
    let reason = Reason {
        code: Code::DataUnsafe,
        detail: detail.to_owned(),
        retryable: false,
    };
    NewEvent {
        attachment: Some(name.clone()),
        reason: Some(reason),
        ..NewEvent::new(EventKind::Notice, format!("{name}: {detail}"))
    }
}

impl Told {
    /// What has changed since it was told last.
    fn news(&mut self, name: &AttachmentName, paths: &[PathStatus]) -> Vec<NewEvent> {
        let mut news = Vec::new();
        let event = |portal: &Portal, reason: Option<Reason>, what: &str| {
            let why = reason
                .as_ref()
                .map_or_else(String::new, |reason| format!(": {}", reason.detail));
            NewEvent {
                attachment: Some(name.clone()),
                portal: Some(portal.clone()),
                reason,
                ..NewEvent::new(
                    EventKind::Path,
                    format!("{name}: path {portal} {what}{why}"),
                )
            }
        };
        for path in paths {
            let portal = initiator::api_portal(&path.portal);
            let state = path.state;
            if self.paths.get(&path.index).map(|(_, told)| *told) != Some(state) {
                let reason = path.reason.as_ref().map(Reason::from);
                news.push(event(&portal, reason, &format!("is {state}")));
                self.paths.insert(path.index, (portal, state));
            }
        }
        self.paths.retain(|index, (portal, _)| {
            let there = paths.iter().any(|path| path.index == *index);
            if !there {
                news.push(event(portal, None, "is gone"));
            }
            there
        });
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(index: u16, state: PathState, reason: Option<Error>) -> PathStatus {
        PathStatus {
            index,
            portal: format!("192.0.2.{index}:3260").parse().expect("a portal"),
            state,
            since_unix_ms: 0,
            reason,
            portal_group: None,
            retired: false,
        }
    }

    #[test]
    fn each_change_of_a_path_is_told_once_with_its_reason() {
        let name = "pv-0".parse().expect("a name");
        let mut told = Told::default();
        let messages = |told: &mut Told, paths: &[PathStatus]| -> Vec<String> {
            let news = told.news(&name, paths);
            news.into_iter().map(|event| event.message).collect()
        };
        let both = [
            path(1, PathState::Up, None),
            path(2, PathState::Connecting, None),
        ];
        assert_eq!(
            messages(&mut told, &both),
            [
                "pv-0: path 192.0.2.1:3260 is up",
                "pv-0: path 192.0.2.2:3260 is connecting"
            ]
        );
        assert_eq!(messages(&mut told, &both), [""; 0]);
        let lost = [path(1, PathState::Down, Some(failure::lost("cut")))];
        assert_eq!(
            messages(&mut told, &lost),
            [
                "pv-0: path 192.0.2.1:3260 is down: the session was lost: cut",
                "pv-0: path 192.0.2.2:3260 is gone"
            ]
        );
    }
}
