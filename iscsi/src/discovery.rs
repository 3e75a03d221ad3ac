//! SendTargets: the question, the answer, and the answering side (RFC 7143 4.3, appendix C).
//!
//! The answer is a stranger's data. A name or address that is not one is left out and reported, with
//! its reason; everything else is kept.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::error::{Error, Incompatibility};
use crate::login::Key;
use crate::login::text::TextLimits;
use crate::name::{IscsiName, Portal, TargetAddress};

/// `SendTargets=All` with its ending NUL: every target that we may see. For a discovery session.
pub const SEND_TARGETS_ALL: &[u8] = b"SendTargets=All\0";
/// `SendTargets=` with its ending NUL: the target of this session. For a normal session.
pub const SEND_TARGETS_THIS: &[u8] = b"SendTargets=\0";

/// Addresses of one target that are kept; arrays have dozens.
const ADDRESSES_MAX: usize = 256;
/// Refused records that are reported one by one; the rest is counted.
const REFUSED_MAX: usize = 64;
/// Characters of a refused record that are shown.
const EXCERPT_CHARS: usize = 80;

/// A target with the portals it says it is reachable at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// Its name.
    pub name: IscsiName,
    /// Its addresses in the order of the answer, without repetitions.
    pub addresses: Vec<TargetAddress>,
    /// The target named no address at all: it is at the portal that was asked.
    pub at_asked_portal: bool,
}

impl DiscoveredTarget {
    /// Portals by portal group tag. Portals of one group may carry connections of one session; two
    /// groups are two sessions, paths to the same LUNs. `asked` is the portal that gave the answer.
    #[must_use]
    pub fn portal_groups(&self, asked: &Portal) -> BTreeMap<Option<u16>, Vec<Portal>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        if self.at_asked_portal {
            groups.insert(None, vec![asked.clone()]);
        }
        for address in &self.addresses {
            let group = groups.entry(address.tpgt).or_default();
            group.push(address.portal.clone());
        }
        groups
    }
}

/// A record of the answer that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRecord {
    /// Its beginning, with everything escaped that could steer a terminal or a log.
    pub record: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for RefusedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.record, self.reason)
    }
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovered {
    /// Targets in the order of the answer; a name occurs once.
    pub targets: Vec<DiscoveredTarget>,
    /// The first records that were left out.
    pub refused: Vec<RefusedRecord>,
    /// Records left out, reported or not.
    pub refused_count: usize,
}

impl Discovered {
    /// Takes the text of an answer; of a long one the text of all its PDUs joined, because a record may
    /// be cut anywhere (RFC 7143 6.2).
    ///
    /// # Errors
    /// [`Error::Malformed`] above [`TextLimits::DISCOVERY`]; [`Error::TargetIncompatible`] when the
    /// target refuses to be asked.
    pub fn parse(answer: &[u8]) -> Result<Self, Error> {
        if answer.len() > TextLimits::DISCOVERY.bytes_max {
            return Err(Error::malformed(
                "SendTargets answer",
                format!(
                    "{} bytes, at most {} are taken",
                    answer.len(),
                    TextLimits::DISCOVERY.bytes_max
                ),
            ));
        }
        let mut out = Self::default();
        let mut index: HashMap<IscsiName, usize> = HashMap::new();
        // Target that the next address belongs to; `None` after a name that was refused.
        let mut current = None;
        for record in answer.split(|byte| *byte == 0).filter(|r| !r.is_empty()) {
            let Ok(text) = std::str::from_utf8(record) else {
                // The name may be what is broken: what follows must not go to the target before it.
                if record.starts_with(b"TargetName=") {
                    current = None;
                }
                out.refuse(&String::from_utf8_lossy(record), "not UTF-8");
                continue;
            };
            let Some((key, value)) = text.split_once('=') else {
                out.refuse(text, "not a key=value pair");
                continue;
            };
            match Key::from_name(key) {
                Some(Key::TargetName) => match IscsiName::parse(value) {
                    Ok(name) => {
                        current = Some(*index.entry(name.clone()).or_insert_with(|| {
                            out.targets.push(DiscoveredTarget {
                                name,
                                addresses: Vec::new(),
                                at_asked_portal: true,
                            });
                            out.targets.len() - 1
                        }));
                    }
                    Err(error) => {
                        current = None;
                        out.refuse(text, &error.to_string());
                    }
                },
                Some(Key::TargetAddress) => match current {
                    Some(target) => out.take_address(target, text, value),
                    None => out.refuse(text, "belongs to no target that was taken"),
                },
                Some(Key::SendTargets) => {
                    return Err(Error::TargetIncompatible(Incompatibility::Key {
                        key: Key::SendTargets.name().into(),
                        problem: format!("the target answered {}", excerpt(value)).into(),
                    }));
                }
                // An alias, or a key of a later standard: not needed.
                _ => {}
            }
        }
        Ok(out)
    }

    fn take_address(&mut self, target: usize, text: &str, value: &str) {
        let target = &mut self.targets[target];
        // Also when the address is of no use: the target is not where we asked.
        target.at_asked_portal = false;
        match TargetAddress::parse(value) {
            Ok(address) if target.addresses.contains(&address) => {}
            Ok(_) if target.addresses.len() == ADDRESSES_MAX => {
                self.refuse(text, "the target has more than 256 addresses");
            }
            Ok(address) => target.addresses.push(address),
            Err(error) => self.refuse(text, &error.to_string()),
        }
    }

    fn refuse(&mut self, record: &str, reason: &str) {
        self.refused_count += 1;
        if self.refused.len() < REFUSED_MAX {
            self.refused.push(RefusedRecord {
                record: excerpt(record),
                // Reasons may quote the record.
                reason: reason.chars().take(4 * EXCERPT_CHARS).collect(),
            });
        }
    }
}

fn excerpt(text: &str) -> String {
    let short: String = text.chars().take(EXCERPT_CHARS).collect();
    format!("{short:?}")
}

/// Writes the answer to SendTargets. A target without addresses is at the portal that is asked.
pub fn emit_targets<'a>(
    targets: impl IntoIterator<Item = (&'a IscsiName, &'a [TargetAddress])>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut record = |key: Key, value: &str| {
        out.extend_from_slice(key.name().as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.as_bytes());
        out.push(0);
    };
    for (name, addresses) in targets {
        record(Key::TargetName, name.as_str());
        for address in addresses {
            record(Key::TargetAddress, &address.to_string());
        }
    }
    out
}

/// What a SendTargets request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All targets that the initiator may see; in discovery sessions only (RFC 7143 appendix C).
    All,
    /// The target of the session.
    This,
    /// One target.
    One(IscsiName),
}

impl Wanted {
    /// Takes the value of SendTargets; `None` when it is to be answered `Reject`.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "All" => Some(Self::All),
            "" => Some(Self::This),
            name => IscsiName::parse(name).ok().map(Self::One),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> IscsiName {
        IscsiName::parse(text).unwrap()
    }

    fn shown(target: &DiscoveredTarget) -> (String, Vec<String>) {
        let addresses = target.addresses.iter().map(ToString::to_string).collect();
        (target.name.to_string(), addresses)
    }

    /// RFC 7143 appendix C: its two examples, and the address forms of 13.8.
    #[test]
    fn targets_with_their_addresses() {
        let found = Discovered::parse(
            b"TargetName=iqn.1993-11.com.example:diskarray.sn.8675309\0\
              TargetName=iqn.1993-11.com.example:diskarray.sn.1234567\0\
              TargetAddress=10.1.0.45:5300,1\0TargetAddress=10.1.1.45:5300,1\0\
              TargetAddress=10.1.2.46:5300,2\0TargetAddress=[2001:db8::1],3\0\
              TargetAddress=2001:db8::2,3\0TargetAddress=array.example.com,3\0",
        )
        .unwrap();
        assert_eq!(found.refused_count, 0);
        let [first, second] = &found.targets[..] else {
            panic!("{found:?}");
        };
        assert!(first.at_asked_portal && first.addresses.is_empty());
        assert!(!second.at_asked_portal);
        assert_eq!(
            shown(second).1,
            [
                "10.1.0.45:5300,1",
                "10.1.1.45:5300,1",
                "10.1.2.46:5300,2",
                "[2001:db8::1]:3260,3",
                "[2001:db8::2]:3260,3",
                "array.example.com:3260,3"
            ]
        );
        let asked = Portal::parse("192.0.2.1").unwrap();
        let groups = second.portal_groups(&asked);
        let sizes: Vec<_> = groups.iter().map(|(tag, p)| (*tag, p.len())).collect();
        assert_eq!(sizes, [(Some(1), 2), (Some(2), 1), (Some(3), 3)]);
        assert_eq!(first.portal_groups(&asked), [(None, vec![asked])].into());
    }

    /// RFC 7143 4.2.7: names of strangers are checked; the rest of the answer is kept.
    #[test]
    fn hostile_records_are_refused_and_the_rest_is_kept() {
        let found = Discovered::parse(
            b"TargetAddress=192.0.2.9,1\0\
              TargetName=iqn.2026-01.io.example:../../etc\0TargetAddress=192.0.2.8,1\0\
              TargetName=iqn.2026-01.io.example:a\x1b[2J\0\
              TargetName=iqn.2026-01.io.example:\xff\0TargetAddress=192.0.2.7,1\0\
              nonsense\0=\0\
              TargetName=iqn.2026-01.io.example:good\0\
              TargetAddress=[fe80::1%eth0]:3260,1\0TargetAddress=192.0.2.1:99999,1\0\
              TargetAddress=192.0.2.2,70000\0TargetAddress=192.0.2.3,1\0\
              X-com.example.colour=red\0TargetAlias=disk\0\
              TargetName=iqn.2026-01.io.example:last",
        )
        .unwrap();
        let names: Vec<_> = found.targets.iter().map(shown).collect();
        assert_eq!(
            names,
            [
                (
                    "iqn.2026-01.io.example:good".to_owned(),
                    vec!["192.0.2.3:3260,1".to_owned()]
                ),
                ("iqn.2026-01.io.example:last".to_owned(), vec![]),
            ]
        );
        assert_eq!(found.refused_count, 10);
        for refused in &found.refused {
            let text = refused.to_string();
            assert!(!text.contains(['\x1b', '\n', '\0']), "{text:?}");
        }
    }

    /// A target all of whose addresses are refused is not at the portal that was asked.
    #[test]
    fn refused_addresses_do_not_become_the_asked_portal() {
        let found =
            Discovered::parse(b"TargetName=iqn.2026-01.io.example:a\0TargetAddress=fe80::1%2,1\0")
                .unwrap();
        assert!(found.targets[0].addresses.is_empty());
        assert!(!found.targets[0].at_asked_portal);
        let asked = Portal::parse("192.0.2.1").unwrap();
        assert!(found.targets[0].portal_groups(&asked).is_empty());
    }

    #[test]
    fn repeated_names_and_addresses_are_joined() {
        let found = Discovered::parse(
            b"TargetName=iqn.2026-01.io.example:a\0TargetAddress=192.0.2.1,1\0\
              TargetName=iqn.2026-01.io.example:b\0\
              TargetName=IQN.2026-01.io.example:A\0TargetAddress=192.0.2.1:3260,1\0\
              TargetAddress=192.0.2.2,1\0",
        )
        .unwrap();
        assert_eq!(found.targets.len(), 2);
        assert_eq!(found.targets[0].addresses.len(), 2);
    }

    #[test]
    fn an_endless_list_of_addresses_or_mistakes_is_bounded() {
        let mut text = b"TargetName=iqn.2026-01.io.example:a\0".to_vec();
        for i in 0..2000 {
            text.extend_from_slice(format!("TargetAddress=192.0.2.1:{},1\0", i + 1).as_bytes());
        }
        let found = Discovered::parse(&text).unwrap();
        assert_eq!(found.targets[0].addresses.len(), ADDRESSES_MAX);
        assert_eq!(found.refused_count, 2000 - ADDRESSES_MAX);
        assert_eq!(found.refused.len(), REFUSED_MAX);
        let long = vec![b'a'; TextLimits::DISCOVERY.bytes_max + 1];
        assert!(matches!(
            Discovered::parse(&long),
            Err(Error::Malformed { .. })
        ));
    }

    #[test]
    fn ten_thousand_targets_are_taken() {
        let names: Vec<_> = (0..10_000)
            .map(|i| name(&format!("iqn.2026-01.io.example:disk{i}")))
            .collect();
        let address = [TargetAddress::parse("192.0.2.1:3260,1").unwrap()];
        let text = emit_targets(names.iter().map(|n| (n, &address[..])));
        let found = Discovered::parse(&text).unwrap();
        assert_eq!(found.targets.len(), names.len());
        assert!(found.targets.iter().map(|t| &t.name).eq(&names));
    }

    #[test]
    fn a_target_that_refuses_the_question_is_an_error() {
        assert!(matches!(
            Discovered::parse(b"SendTargets=Reject\0"),
            Err(Error::TargetIncompatible(_))
        ));
        assert_eq!(Discovered::parse(b"").unwrap(), Discovered::default());
    }

    /// RFC 7143 appendix C: the three forms of the question.
    #[test]
    fn questions_are_understood() {
        assert_eq!(Wanted::parse("All"), Some(Wanted::All));
        assert_eq!(Wanted::parse(""), Some(Wanted::This));
        let one = name("iqn.2026-01.io.example:a");
        assert_eq!(Wanted::parse(one.as_str()), Some(Wanted::One(one)));
        assert_eq!(Wanted::parse("all"), None);
        assert_eq!(Wanted::parse("iqn.2026-01.io.example:a b"), None);
        for (text, value) in [(SEND_TARGETS_ALL, "All"), (SEND_TARGETS_THIS, "")] {
            let pairs = crate::login::text::parse_pairs(text).unwrap();
            assert_eq!(
                (pairs[0].key.as_str(), pairs[0].value.as_str()),
                ("SendTargets", value)
            );
        }
    }

    proptest! {
        #[test]
        fn answers_round_trip(targets in proptest::collection::btree_map(
            "iqn\\.2026-01\\.io\\.example:[a-z0-9.-]{1,20}",
            proptest::collection::btree_set((any::<std::net::IpAddr>(), 1u16.., any::<u16>()), 0..5),
            0..8,
        )) {
            let targets: Vec<(IscsiName, Vec<TargetAddress>)> = targets
                .into_iter()
                .map(|(n, addresses)| {
                    let addresses = addresses.into_iter().map(|(ip, port, tpgt)| TargetAddress {
                        portal: std::net::SocketAddr::new(ip, port).into(),
                        tpgt: Some(tpgt),
                    });
                    (name(&n), addresses.collect())
                })
                .collect();
            let text = emit_targets(targets.iter().map(|(n, a)| (n, &a[..])));
            let found = Discovered::parse(&text).unwrap();
            prop_assert_eq!(found.refused_count, 0);
            let back: Vec<_> = found.targets.into_iter().map(|t| (t.name, t.addresses)).collect();
            prop_assert_eq!(back, targets);
        }

        #[test]
        fn any_bytes_give_an_answer(
            records in proptest::collection::vec(
                ("(TargetName=|TargetAddress=|[A-Za-z]{0,5}=?)", proptest::collection::vec(any::<u8>(), 0..40)),
                0..20,
            )
        ) {
            let mut text = Vec::new();
            for (key, value) in records {
                text.extend_from_slice(key.as_bytes());
                text.extend(value);
                text.push(0);
            }
            if let Ok(found) = Discovered::parse(&text) {
                prop_assert!(found.refused.iter().all(|r| !r.to_string().contains(char::is_control)));
            }
        }
    }
}
