//! `events`.

use std::time::Duration;

use berth_api::client::{Client, ClientError};
use berth_api::types::{Event, EventKind};

use super::args;
use super::error::Failure;
use super::output::{Output, clean};

/// Pause before a daemon that is away is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run(
    client: &Client,
    output: &Output,
    arguments: &args::Events,
) -> Result<(), Failure> {
    let name = arguments.name.as_ref();
    if !arguments.follow {
        let mut events = client.past_events(name).await?;
        while let Some(event) = events.next().await? {
            print(output, &event)?;
        }
        return Ok(());
    }
    let mut last_id = 0;
    let mut told = false;
    loop {
        let ended = match client.events(Some(last_id), name).await {
            Ok(mut events) => {
                told = false;
                loop {
                    match events.next().await {
                        Ok(Some(event)) => {
                            last_id = event.id;
                            print(output, &event)?;
                        }
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                }
            }
            // At first a wrong socket or name is worth an error; later the daemon will be back.
            Err(error) if last_id == 0 || !error.is_retryable() => return Err(error.into()),
            Err(error) => Some(error),
        };
        if !told {
            told = true;
            let why = match ended {
                None => "the daemon stops".to_owned(),
                Some(ClientError::Unreachable { .. }) => "the daemon is away".to_owned(),
                Some(error) => error.to_string(),
            };
            eprintln!("berthctl: {}; waiting for it", clean(&why));
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn print(output: &Output, event: &Event) -> Result<(), Failure> {
    if output.is_json() {
        return output.json_line(event);
    }
    output.text(&line(event, output))
}

fn line(event: &Event, output: &Output) -> String {
    let time = output.dim(&utc(event.time_unix_ms));
    let what = &event.what;
    let name = match &what.attachment {
        Some(name) => format!("{} ", output.bold(name.as_str())),
        None => String::new(),
    };
    let state = match (what.kind, what.previous_state, what.state) {
        (EventKind::State, Some(previous), Some(state)) => {
            format!("{previous} -> {} ", output.state(state))
        }
        (EventKind::State, None, Some(state)) => format!("{} ", output.state(state)),
        (EventKind::State, Some(previous), None) => format!("{previous} -> gone "),
        _ => String::new(),
    };
    let portal = match &what.portal {
        Some(portal) => format!("{portal} "),
        None => String::new(),
    };
    format!("{time}  {name}{state}{portal}{}", clean(&what.message))
}

/// `2026-11-22 18:05:09Z`: sorts, and means the same everywhere.
fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (year, month, day) = date(seconds / 86400);
    let time = seconds % 86400;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z",
        time / 3600,
        time % 3600 / 60,
        time % 60
    )
}

/// Days since 1970 as year, month and day (Gregorian). Counts in years that begin in March, so that
/// the leap day is the last of its year.
fn date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::super::output::Format;
    use super::*;
    use berth_api::types::{AttachmentState, NewEvent};

    #[test]
    fn times_are_utc() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399_000, "2000-02-28 23:59:59Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_709_251_199_999, "2024-02-29 23:59:59Z"),
            (1_795_370_709_000, "2026-11-22 18:05:09Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let mut what = NewEvent::new(EventKind::State, "no path works:\nwaiting");
        what.attachment = Some("disk0".parse().unwrap());
        what.previous_state = Some(AttachmentState::Attached);
        what.state = Some(AttachmentState::Recovering);
        let event = Event {
            id: 1,
            time_unix_ms: 0,
            what,
        };
        assert_eq!(
            line(&event, &Output::new(Format::Json)),
            "1970-01-01 00:00:00Z  disk0 attached -> recovering no path works:\u{fffd}waiting"
        );
    }
}
