//! One connection of the initiator, from connect to the end of its last command.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::slice;
use std::time::Duration;

use berth_iscsi::Payload;
use berth_iscsi::error::Error;
use berth_iscsi::login::{DigestPolicy, LoginConfig, Offer, SessionKind};
use berth_iscsi::name::IscsiName;
use berth_iscsi::net::{
    ConnectOptions, Connected, Driver, DriverOptions, Handle, TcpNetwork, connect,
};
use berth_iscsi::scsi::Cdb;
use berth_iscsi::scsi::cdb::Caching;
use berth_iscsi::session::{CloseReason, Command, Event, SessionOptions, TaskOutcome, Transfer};
use berth_iscsi::types::{Isid, Lun};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use super::tally::Tally;
use super::{Dice, TARGET, Targets, plans, raw};

const CONNECT: Duration = Duration::from_millis(500);
const COMMAND: Duration = Duration::from_millis(250);
/// For each of abort, reset, drain and logout.
const STEP: Duration = Duration::from_millis(100);
const PING: Duration = Duration::from_millis(120);
/// How late a busy machine may be. What hangs is late for ever.
const LATE_MAX: Duration = Duration::from_secs(10);

fn options() -> ConnectOptions {
    ConnectOptions {
        deadline: CONNECT,
        attempt_timeout: CONNECT,
        session: SessionOptions {
            ping_interval: Some(PING),
            ping_timeout: PING,
            abort_timeout: STEP,
            logical_unit_reset_timeout: STEP,
            task_management_timeout: STEP,
            text_timeout: STEP,
            drain_timeout: STEP,
            logout_timeout: STEP,
            ..SessionOptions::default()
        },
        ..ConnectOptions::default()
    }
}

/// Notes how late something ended; too late is a failure.
fn in_time(what: &str, began: Instant, allowed: Duration, number: u64, tally: &RefCell<Tally>) {
    let late = began.elapsed().saturating_sub(allowed);
    assert!(
        late <= LATE_MAX,
        "connection {number}: {what} is late by {late:?}"
    );
    tally.borrow_mut().note_late(late);
}

/// Connection `number` of the run.
pub(crate) async fn one(targets: &Targets, seed: u64, number: u64, tally: &RefCell<Tally>) {
    let mut dice = Dice::new(seed, number);
    let faulty = number.is_multiple_of(2);
    let portal = if faulty {
        let (kind, plan) = plans::plan(&mut dice, &targets.faulty_portal);
        *tally.borrow_mut().attacks.entry(kind).or_default() += 1;
        let pushed = targets
            .faulty
            .with(move |portal, _| portal.push_faults(plan));
        pushed.await.expect("the target runs");
        &targets.faulty_portal
    } else {
        let kind = raw::KINDS[raw::kind(seed, number / 2)];
        *tally.borrow_mut().attacks.entry(kind).or_default() += 1;
        &targets.raw_portal
    };
    let name = |text: &str| IscsiName::parse(text).expect("a name");
    let kind = SessionKind::Normal {
        target_name: name(TARGET),
    };
    let isid = Isid::random([1, 2, 3], number as u16);
    let mut config = LoginConfig::new(name("iqn.2026-11.io.berth:i"), kind, isid);
    let digest = |dice: &mut Dice| match dice.below(3) {
        0 => DigestPolicy::Prefer,
        _ => DigestPolicy::Off,
    };
    config.offer = Offer {
        header_digest: digest(&mut dice),
        data_digest: digest(&mut dice),
        initial_r2t: dice.below(2) == 0,
        immediate_data: dice.below(2) == 0,
        ..Offer::default()
    };
    let began = Instant::now();
    let connected = connect(&TcpNetwork, slice::from_ref(portal), config, &options()).await;
    let took = began.elapsed();
    in_time("the login", began, CONNECT, number, tally);
    {
        let mut tally = tally.borrow_mut();
        tally.connections += 1;
        tally.connect_max = tally.connect_max.max(took);
        match &connected {
            Ok(_) => tally.sessions += 1,
            Err(error) => {
                let end = format!("login: {}", class(&error.error));
                *tally.ends.entry(end).or_default() += 1;
            }
        }
    }
    if let Ok(connected) = connected {
        let began = Instant::now();
        session(targets, connected, &mut dice, number, tally).await;
        let mut tally = tally.borrow_mut();
        tally.session_max = tally.session_max.max(began.elapsed());
    }
}

/// Events of a session, and word of new ones.
#[derive(Default)]
struct Inbox {
    events: RefCell<VecDeque<Event>>,
    news: Notify,
}

impl Inbox {
    async fn next(&self) -> Event {
        loop {
            let next = self.events.borrow_mut().pop_front();
            match next {
                Some(event) => return event,
                None => self.news.notified().await,
            }
        }
    }
}

fn drive(connected: Connected) -> (Rc<Handle>, Rc<Inbox>, tokio::task::JoinHandle<()>) {
    let inbox = Rc::new(Inbox::default());
    let on_events = {
        let inbox = inbox.clone();
        Box::new(move |handle: &Handle| {
            let told = std::iter::from_fn(|| handle.poll_event());
            inbox.events.borrow_mut().extend(told);
            inbox.news.notify_one();
        })
    };
    let (handle, driver) = Driver::new(
        connected.stream,
        connected.session,
        connected.receive,
        DriverOptions::default(),
        on_events,
    );
    (handle, inbox, spawn_local(driver.run()))
}

/// What a volume does, and then the end.
async fn session(
    targets: &Targets,
    connected: Connected,
    dice: &mut Dice,
    number: u64,
    tally: &RefCell<Tally>,
) {
    let (handle, inbox, driver) = drive(connected);
    let began = Instant::now();
    // Tag to the bytes that a read may bring.
    let mut open: BTreeMap<u64, usize> = BTreeMap::new();
    for tag in 0..1 + dice.below(10) {
        let (command, bytes) = command(dice, tag);
        if handle.submit(command).is_ok() {
            open.insert(tag, bytes);
        }
    }
    let submitted = open.len() as u64;
    handle.commit();
    misuse(&handle, dice);
    if number.is_multiple_of(2) && dice.below(8) == 0 {
        stir(targets, dice).await;
    }
    // Commands, their aborts, the reset of their LUN; then nothing is left.
    let commands_end = COMMAND + STEP + STEP;
    let mut closed = None;
    while !open.is_empty() && closed.is_none() {
        let next = timeout_at(began + commands_end + LATE_MAX, inbox.next()).await;
        let Ok(event) = next else {
            panic!("connection {number}: commands hang: {open:?}");
        };
        closed = take(event, &mut open, tally);
    }
    in_time("the last command", began, commands_end, number, tally);
    let leaving = Instant::now();
    handle.with_session(|session, now| session.logout(now));
    while closed.is_none() {
        let next = timeout_at(leaving + STEP + STEP + LATE_MAX, inbox.next()).await;
        let Ok(event) = next else {
            panic!("connection {number}: the logout hangs");
        };
        closed = take(event, &mut open, tally);
    }
    in_time("the logout", leaving, STEP + STEP, number, tally);
    for unfinished in handle.take_unfinished() {
        let known = open.remove(&unfinished.command.tag);
        assert!(known.is_some(), "connection {number}: it had ended already");
        let kind = if unfinished.sent {
            "left, sent"
        } else {
            "left, not sent"
        };
        note_command(kind, tally);
    }
    assert!(open.is_empty(), "connection {number}: no end for {open:?}");
    driver.await.expect("the driver does not panic");
    assert!(
        inbox.events.borrow().is_empty(),
        "connection {number}: events behind the last"
    );
    let mut tally = tally.borrow_mut();
    tally.submitted += submitted;
    if let Some(end) = closed {
        *tally.ends.entry(end).or_default() += 1;
    }
}

/// Takes in an event; how the session ended, once it has.
fn take(event: Event, open: &mut BTreeMap<u64, usize>, tally: &RefCell<Tally>) -> Option<String> {
    match event {
        Event::TaskDone { tag, outcome } => {
            let asked = open.remove(&tag).expect("each command ends once");
            let kind = match outcome {
                TaskOutcome::Completed { data, .. } => {
                    assert!(data.len() <= asked, "more than was asked for");
                    "completed"
                }
                TaskOutcome::TargetFailure { .. } => "target failure",
                TaskOutcome::DataMismatch { .. } => "bytes missing",
                TaskOutcome::Rejected { .. } => "rejected",
                TaskOutcome::Aborted { sent: true, .. } => "aborted",
                TaskOutcome::Aborted { sent: false, .. } => "dropped",
            };
            note_command(kind, tally);
            None
        }
        Event::Closed(reason) => Some(match reason {
            CloseReason::LoggedOut { response, .. } => match response {
                Some(_) => "session: logged out".to_owned(),
                None => "session: left without an answer".to_owned(),
            },
            CloseReason::DroppedByTarget { .. } => "session: dropped by the target".to_owned(),
            CloseReason::Failed(error) => format!("session: {}", class(&error)),
        }),
        _ => None,
    }
}

fn note_command(kind: &'static str, tally: &RefCell<Tally>) {
    let mut tally = tally.borrow_mut();
    tally.ended += 1;
    *tally.commands.entry(kind).or_default() += 1;
}

/// A read, a write or a flush, and the bytes that it may bring.
fn command(dice: &mut Dice, tag: u64) -> (Command, usize) {
    let blocks = 1 + dice.below(256) as u16;
    let lba = dice.below(4096) as u32;
    let bytes = usize::from(blocks) * 512;
    let (cdb, transfer, asked) = match dice.below(5) {
        0 | 1 => {
            let len_bytes = bytes as u32;
            let cdb = Cdb::read10(lba, blocks, Caching::NONE);
            (cdb, Transfer::Read { len_bytes }, bytes)
        }
        2 | 3 => {
            let data = Payload::from(vec![tag as u8; bytes]);
            let cdb = Cdb::write10(lba, blocks, Caching::NONE);
            (cdb, Transfer::Write(data), 0)
        }
        _ => (Cdb::test_unit_ready(), Transfer::None, 0),
    };
    let mut command = Command::new(tag, Lun::default(), cdb.padded(), transfer);
    command.deadline = Some((Instant::now() + COMMAND).into_std());
    command.immediate = dice.below(40) == 0;
    (command, asked)
}

/// What a user may do besides; whether it is taken is of no importance.
fn misuse(handle: &Handle, dice: &mut Dice) {
    let choice = dice.below(16);
    handle.with_session(|session, now| match choice {
        0 => drop(session.abort(now, 0)),
        1 => drop(session.ping(now)),
        2 => drop(session.text(now, b"SendTargets=\0".to_vec())),
        3 => session.logout(now),
        4 => {
            let function = berth_iscsi::session::TaskManagement::AbortTaskSet;
            drop(session.task_management(1, function, Lun::default()));
        }
        _ => {}
    });
}

/// The target does something on its own to its youngest connection.
async fn stir(targets: &Targets, dice: &mut Dice) {
    let choice = dice.below(3);
    let notice = plans::notice(dice);
    let done = targets.faulty.with(move |portal, now| {
        let Some(id) = portal.connections().last() else {
            return;
        };
        match choice {
            0 => portal.freeze_window(id, true),
            1 => portal.ping(id, now, Duration::from_millis(50)),
            _ => portal.send_async(id, now, &notice),
        }
    });
    done.await.expect("the target runs");
}

/// What kind of error it is, for the count.
fn class(error: &Error) -> &'static str {
    match error {
        Error::Malformed { .. } => "malformed",
        Error::TargetMisbehaved(_) => "protocol broken",
        Error::TargetIncompatible(_) => "does not fit",
        Error::LoginRejected(_) => "refused",
        Error::Digest(_) => "digest",
        Error::Rejected(_) => "rejected",
        Error::Lost(_) => "lost",
        Error::TimedOut(_) => "timed out",
        Error::Misuse(_) => "misuse",
    }
}
