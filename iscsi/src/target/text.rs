//! Text requests in full feature phase: SendTargets, its pages, renegotiation (RFC 7143 11.10, 11.11, appendix C).

use berth_iobuf::Payload;

use super::connection::{Connection, reject};
use super::portal::Shared;
use super::session::SessionKind;
use crate::login::Key;
use crate::login::text::{Assembler, TextLimits, parse_number_in, parse_pairs};
use crate::name::IscsiName;
use crate::pdu::{Bhs, Pdu, TextRequest, TextResponse};
use crate::types::{Itt, TargetSn, Ttt};

/// A text negotiation that is not over; a connection has at most one.
#[derive(Debug)]
pub(super) struct TextExchange {
    itt: Itt,
    ttt: Ttt,
    incoming: Assembler,
    /// The answer, and how much of it was sent.
    answer: Vec<u8>,
    sent: usize,
}

impl TextExchange {
    /// The next page and whether it is cut inside a pair. Without `anywhere` it ends after a pair if one fits.
    fn page(&mut self, bytes_max: usize, anywhere: bool) -> (Payload, bool) {
        let rest = &self.answer[self.sent..];
        let mut len = rest.len().min(bytes_max);
        if len < rest.len()
            && !anywhere
            && let Some(end) = rest[..len].iter().rposition(|byte| *byte == 0)
        {
            len = end + 1;
        }
        let cut = len < rest.len() && rest[..len].last() != Some(&0);
        let page = Payload::from(rest[..len].to_vec());
        self.sent += len;
        // With the C bit the segment goes on even when the cut happens to fall between two pairs.
        (page, cut || (anywhere && self.sent < self.answer.len()))
    }

    fn is_sent(&self) -> bool {
        self.sent == self.answer.len()
    }
}

impl Connection {
    pub(super) fn on_text(&mut self, shared: &mut Shared, pdu: &TextRequest, header: &Bhs) {
        let mut exchange = match self.text.take() {
            // A request without a transfer tag starts anew and ends what was there.
            _ if pdu.ttt.is_none() => TextExchange {
                itt: pdu.itt,
                ttt: self.take_ttt(),
                incoming: Assembler::new(TextLimits::LOGIN),
                answer: Vec::new(),
                sent: 0,
            },
            Some(exchange) if exchange.ttt == pdu.ttt && exchange.itt == pdu.itt => exchange,
            other => {
                self.text = other;
                return self.reject(reject::PROTOCOL, header);
            }
        };
        if exchange.is_sent() {
            match exchange.incoming.push(&pdu.data, pdu.continue_) {
                Err(_) => return self.reject(reject::PROTOCOL, header),
                Ok(None) => {}
                Ok(Some(segment)) => {
                    let Some(answer) = self.answer_text(shared, &segment) else {
                        return self.reject(reject::PROTOCOL, header);
                    };
                    exchange.answer = answer;
                    exchange.sent = 0;
                }
            }
        } else if !pdu.data.is_empty() {
            return self.reject(reject::PROTOCOL, header);
        }
        let page_bytes = shared
            .settings
            .text_page_bytes
            .min(self.rules.read.segment_bytes_max)
            .max(1);
        let (data, continue_) = exchange.page(page_bytes, shared.settings.text_continue);
        let final_ = pdu.final_ && !pdu.continue_ && exchange.is_sent();
        self.queue(Pdu::TextResponse(TextResponse {
            final_,
            continue_,
            lun: pdu.lun,
            itt: pdu.itt,
            ttt: if final_ { Ttt::NONE } else { exchange.ttt },
            sn: TargetSn::default(),
            data,
        }));
        if !final_ {
            self.text = Some(exchange);
        }
    }

    /// Answers a whole segment of keys; `None` when it is no list of pairs.
    fn answer_text(&mut self, shared: &Shared, segment: &[u8]) -> Option<Vec<u8>> {
        let pairs = parse_pairs(segment).ok()?;
        let mut out = Vec::new();
        for pair in pairs {
            let put = |out: &mut Vec<u8>, value: &str| push(out, &pair.key, value);
            match Key::from_name(&pair.key) {
                Some(Key::SendTargets) => {
                    if !self.send_targets(shared, &pair.value, &mut out) {
                        put(&mut out, "Reject");
                    }
                }
                Some(Key::MaxRecvDataSegmentLength) => {
                    match parse_number_in(&pair.value, 512, 0xff_ffff) {
                        Ok(len) => self.rules.read.segment_bytes_max = len as usize,
                        Err(_) => put(&mut out, "Reject"),
                    }
                }
                Some(Key::InitiatorAlias | Key::NodeArchitecture) => {}
                // All others belong to the login.
                Some(_) => put(&mut out, "Reject"),
                None => put(&mut out, "NotUnderstood"),
            }
        }
        Some(out)
    }

    /// RFC 7143 appendix C. In a normal session `All` is taken for the session's own target, which is what
    /// `SendTargets=` means there: the RFC wants it refused, initiators ask for it all the same.
    fn send_targets(&self, shared: &Shared, value: &str, out: &mut Vec<u8>) -> bool {
        let Some(session) = self.session.map(|session| &shared.sessions[session]) else {
            return false;
        };
        let discovery = session.kind == SessionKind::Discovery;
        let wanted = match value {
            "All" if discovery => None,
            "" if discovery => return false,
            "" | "All" => Some(session.nexus.target.to_string()),
            name => match IscsiName::parse(name) {
                Ok(name) => Some(name.normalized().to_owned()),
                Err(_) => return false,
            },
        };
        let mut targets: Vec<_> = shared
            .targets
            .iter()
            .map(|(_, target)| &target.config)
            .filter(|target| target.access.allows(&session.nexus.initiator))
            .filter(|target| {
                wanted
                    .as_deref()
                    .is_none_or(|wanted| wanted == target.name.normalized())
            })
            .collect();
        targets.sort_by_key(|target| target.name.normalized());
        for target in targets {
            push(out, "TargetName", target.name.as_str());
            for group in &shared.settings.groups {
                if !target.is_in_group(group.tag) {
                    continue;
                }
                if group.addresses.is_empty() && group.tag == self.group {
                    push(
                        out,
                        "TargetAddress",
                        &format!("{},{}", self.local, group.tag),
                    );
                }
                for address in &group.addresses {
                    push(out, "TargetAddress", &format!("{address},{}", group.tag));
                }
            }
        }
        true
    }
}

fn push(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}
