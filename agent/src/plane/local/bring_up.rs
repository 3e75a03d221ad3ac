//! Bringing a volume up: all its paths are tried, and the first one that works is looked at before any I/O.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use berth_api::types::Identity;
use berth_api::{Code, Error};
use berth_iscsi::session::TaskManagement;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::LocalVolume;
use crate::block::Hub;
use crate::block::align::Align;
use crate::block::fault::Fault;
use crate::block::hub::DynHub;
use crate::block::lun::{Lun, LunOptions, Port, Profile, reservation};
use crate::block::split::Split;
use crate::block::stats::Stats;
use crate::nbd::connection::Stop;
use crate::plane::context::Context;
use crate::plane::keeper;
use crate::plane::path::{FirstAttempt, is_expected};
use crate::plane::session::{self, Attempt, Old, Opened};
use crate::plane::spec::{PathSpec, VolumeSpec};
use crate::plane::volume::{Ready, Shared};
use crate::volume::failure;
use crate::volume::intent::KnownIdentity;

/// First attempts on all paths, until one works.
struct FirstAttempts {
    pending: Vec<(usize, FirstAttempt)>,
    done: Vec<(usize, Attempt)>,
}

impl FirstAttempts {
    fn start(spec: &Rc<VolumeSpec>) -> Self {
        let attempt = |(at, path): (usize, &PathSpec)| {
            let (spec, path) = (Rc::clone(spec), path.clone());
            let old = if spec.unclean {
                old_session_at_start(&spec, &path)
            } else {
                Old::default()
            };
            let future: FirstAttempt =
                Box::pin(async move { session::open(&spec, &path, old).await });
            (at, future)
        };
        Self {
            pending: spec.paths.iter().enumerate().map(attempt).collect(),
            done: Vec::new(),
        }
    }

    /// The next attempt that has a session; `None` when there is no other.
    async fn next_opened(&mut self) -> Option<(usize, Box<Opened>)> {
        while !self.pending.is_empty() {
            let (at, attempt) = std::future::poll_fn(|cx| {
                for index in 0..self.pending.len() {
                    if let std::task::Poll::Ready(attempt) =
                        Pin::new(&mut self.pending[index].1).poll(cx)
                    {
                        let (at, _) = self.pending.remove(index);
                        return std::task::Poll::Ready((at, attempt));
                    }
                }
                std::task::Poll::Pending
            })
            .await;
            match attempt {
                Attempt::Opened(opened) => return Some((at, opened)),
                other => self.done.push((at, other)),
            }
        }
        None
    }

    /// Why none works: what the first portal said.
    fn error(&self) -> Error {
        let errors = self.done.iter().filter_map(|(at, attempt)| match attempt {
            Attempt::Failed(error) | Attempt::Unusable(error) => Some((at, error)),
            _ => None,
        });
        errors.min_by_key(|(at, _)| **at).map_or_else(
            || Error::new(Code::InvalidArgument, "no portal was given"),
            |(_, error)| error.clone(),
        )
    }

    /// What is left, by path.
    fn into_attempts(self) -> Vec<(usize, FirstAttempt)> {
        let done = self.done.into_iter().map(|(at, attempt)| {
            let ready: FirstAttempt = Box::pin(std::future::ready(attempt));
            (at, ready)
        });
        self.pending.into_iter().chain(done).collect()
    }
}

fn old_session_at_start(spec: &VolumeSpec, path: &PathSpec) -> Old {
    let Some(group) = path.known_group else {
        return Old::default();
    };
    let leads_there = |other: &&PathSpec| other.known_group == Some(group);
    let others = || {
        let others = spec.paths.iter();
        others.filter(|other| other.index != path.index)
    };
    Old {
        group: Some(group),
        portals: std::iter::once(path)
            .chain(others().filter(leads_there))
            .map(|path| path.portal.clone())
            .collect(),
        elsewhere: others()
            .filter(|other| !leads_there(other))
            .map(|path| path.portal.clone())
            .collect(),
    }
}

/// A volume that is up, and what its owner has to keep of it.
pub(super) async fn bring_up(
    spec: VolumeSpec,
    shared: &Arc<Shared>,
) -> Result<(LocalVolume, Ready), Error> {
    let spec = Rc::new(spec);
    let mut attempts = FirstAttempts::start(&spec);
    let (at, opened) = loop {
        let Some((at, opened)) = attempts.next_opened().await else {
            return Err(attempts.error());
        };
        if spec.paths[at].retired {
            attempts.done.push((at, Attempt::Opened(opened)));
            continue;
        }
        match admit(&spec, &opened).await {
            Ok(()) => break (at, opened),
            Err(error) if !error.is_retryable() => {
                opened
                    .session
                    .end(Instant::now() + spec.logout_timeout)
                    .await;
                return Err(error);
            }
            Err(error) => {
                opened
                    .session
                    .end(Instant::now() + spec.logout_timeout)
                    .await;
                attempts.done.push((at, Attempt::Unusable(error)));
            }
        }
    };
    let profile = opened.found.profile.clone();
    let facts = ready(&profile);
    tracing::info!(
        volume = spec.name, target = spec.target, lun = %spec.lun,
        identity = facts.identity.as_ref().map(|i| i.designator.as_str()),
        size_bytes = profile.size_bytes(), "volume is up"
    );
    let options = LunOptions {
        read_only: spec.read_only,
        recovery_timeout: spec.recovery_timeout,
        stale_session_timeout: spec.stale_session_timeout,
        cache_loss: spec.cache_loss,
        queue_depth_max: spec.queue_depth_max,
    };
    let (lun, control) = Lun::new(profile, options);
    let device = Fault::new(lun, Arc::clone(&shared.faults));
    let device = Stats::new(Align::new(Split::new(device)), Arc::clone(&shared.stats));
    shared.geometry.send_replace(Some(control.geometry()));
    let hub: Rc<std::cell::RefCell<DynHub>> = Hub::new(device);
    let context = Context::new((*spec).clone(), Arc::clone(shared), control, hub);
    let keeper = tokio::task::spawn_local(keeper::keep(Rc::clone(&context)));
    let mut volume = LocalVolume {
        context,
        paths: JoinSet::new(),
        unclean: false,
        keeper,
        connections: JoinSet::new(),
        kernel: JoinSet::new(),
        receive_pool: None,
        stop: Stop::new(),
        ending: false,
        forced: false,
    };
    let group = opened.session.view.portal_group_tag;
    let mut attempts = attempts.into_attempts();
    let first: FirstAttempt = Box::pin(std::future::ready(Attempt::Opened(opened)));
    attempts.push((at, first));
    attempts.sort_by_key(|(at, _)| *at);
    for (at, attempt) in attempts {
        volume.add_path(&spec.paths[at], spec.unclean, Some(attempt));
    }
    // Told before the volume is ready: the owner writes it down before anything else.
    if let Some(group) = group {
        volume.context.board.set_group(spec.paths[at].index, group);
    }
    Ok((volume, facts))
}

/// The checks before a volume takes its first I/O: is it the unit that it was, may we write to it.
async fn admit(spec: &VolumeSpec, opened: &Opened) -> Result<(), Error> {
    if spec.expected_identity.is_some() && opened.found.profile.identity.is_none() {
        return Err(failure::identity_unknown(&spec.target));
    }
    if !is_expected(spec.expected_identity.as_ref(), &opened.found.profile) {
        return Err(failure::identity_changed(&spec.target));
    }
    if let Some(fence) = spec.fence {
        let held = reservation::admit(&*opened.session.port, fence.key, fence.claim)
            .await
            .map_err(|error| failure::from_fence(error, &spec.target))?;
        tracing::info!(volume = spec.name, key = %fence.key, ?held, "the reservation is held");
        if held.must_clear_task_set {
            clear_task_set(&opened.session.port, &spec.target).await?;
        }
    }
    Ok(())
}

/// Ends what the former holder may have left in the unit's queue, before we send anything.
async fn clear_task_set(port: &Port, target: &str) -> Result<(), Error> {
    for function in [
        TaskManagement::ClearTaskSet,
        TaskManagement::LogicalUnitReset,
    ] {
        match port.manage(function).await {
            Ok(()) => return Ok(()),
            Err(crate::block::Error::NotSupported) => {}
            Err(_) => {
                return Err(failure::lost(
                    "while the former holder's commands were ended",
                ));
            }
        }
    }
    let detail = format!(
        "target {target} cannot end the commands of the former holder: it has neither PREEMPT AND ABORT nor \
         CLEAR TASK SET nor LOGICAL UNIT RESET"
    );
    Err(Error::new(Code::TargetIncompatible, detail))
}

fn ready(profile: &Profile) -> Ready {
    let designator = profile
        .identity
        .as_ref()
        .map(|identity| identity.as_str().to_owned());
    let part = |prefix: &str| {
        designator
            .as_ref()
            .and_then(|text| text.strip_prefix(prefix))
            .map(str::to_owned)
    };
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ready {
        facts: Identity {
            naa: part("naa."),
            eui: part("eui."),
            serial: profile.serial.clone(),
            vendor: text(&profile.vendor),
            product: text(&profile.product),
            revision: text(&profile.revision),
        },
        identity: designator.map(|designator| KnownIdentity {
            designator,
            block_bytes: profile.block_bytes,
        }),
    }
}
