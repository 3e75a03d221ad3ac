//! `/v1/events`: server-sent events (WHATWG HTML, server-sent events).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Deserialize;
use tokio_stream::wrappers::WatchStream;

use super::Api;
use super::context::Failure;
use super::extract::Parameters;
use crate::error::{Code, Error, Problem};
use crate::name::AttachmentName;
use crate::service::{EventStream, NodeService};
use crate::types::Event;

/// How often a comment is sent while nothing happens, so that both ends notice a dead connection.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Parameters of the stream.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParameters {
    after: Option<u64>,
    attachment: Option<AttachmentName>,
    follow: Option<bool>,
}

/// Every state change, with its reason, as it happens. Each server-sent event has the id, the kind
/// as its name, and an `Event` as its data.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", operation_id = "events",
    params(
        ("Last-Event-ID" = Option<u64>, Header, description = "Go on after this event; 0: begin with the oldest that is kept"),
        ("after" = Option<u64>, Query, description = "The same, for those who cannot set headers"),
        ("attachment" = Option<String>, Query, description = "Only of this attachment"),
        ("follow" = Option<bool>, Query, description = "false: end after the last event there is now"),
    ),
    responses(
        (status = 200, description = "A stream of events", body = Event, content_type = "text/event-stream"),
        (status = "default", description = "An error", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events<S: NodeService>(
    State(api): State<Api<S>>,
    Parameters(parameters): Parameters<EventParameters>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let after = match headers.get("last-event-id") {
        None => parameters.after,
        Some(value) => Some(
            value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .ok_or_else(|| {
                    Error::new(
                        Code::InvalidArgument,
                        "Last-Event-ID takes the number of the last event that was seen",
                    )
                    .with_field("Last-Event-ID")
                })?,
        ),
    };
    let stream = Stoppable {
        events: api.shared.service.events(after),
        attachment: parameters.attachment,
        follow: parameters.follow.unwrap_or(true),
        stop: WatchStream::new(api.shared.stop.subscribe()),
    };
    let mut response = Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    // Proxies must neither store nor collect it.
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Events until the API stops.
struct Stoppable {
    events: EventStream,
    attachment: Option<AttachmentName>,
    /// Wait for what is yet to happen.
    follow: bool,
    stop: WatchStream<bool>,
}

impl Stream for Stoppable {
    type Item = Result<SseEvent, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match Pin::new(&mut self.stop).poll_next(cx) {
                Poll::Ready(Some(false)) => {}
                Poll::Ready(Some(true) | None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        loop {
            match self.events.as_mut().poll_next(cx) {
                Poll::Ready(Some(event)) if self.is_wanted(&event) => {
                    return Poll::Ready(Some(Ok(to_sse(&event))));
                }
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending if self.follow => return Poll::Pending,
                Poll::Pending => return Poll::Ready(None),
            }
        }
    }
}

impl Stoppable {
    /// Those of other attachments are left out; those of none (gaps, notices) concern everybody.
    fn is_wanted(&self, event: &Event) -> bool {
        match (&self.attachment, &event.what.attachment) {
            (Some(wanted), Some(name)) => wanted == name,
            (None, _) | (_, None) => true,
        }
    }
}

fn to_sse(event: &Event) -> SseEvent {
    SseEvent::default()
        .id(event.id.to_string())
        .event(event.what.kind.as_str())
        .data(serde_json::to_string(event).expect("an event has only strings and numbers"))
}
