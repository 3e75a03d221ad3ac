//! Rules for what a body may say. Every breach of them is told, not only the first.

use super::answer::ApiError;
use super::model::{Auth, AuthKind, Performance, SnapshotPolicy};

/// Most IOPS in a limit.
const IOPS_MAX: u64 = 10_000_000;
/// Most KiB/s in a limit.
const BANDWIDTH_MAX: u64 = 10_240_000;
/// Largest volume in GiB.
const SIZE_MAX_GIB: u64 = 32_768;
/// Largest size in a template in GiB.
const TEMPLATE_SIZE_MAX_GIB: u64 = 262_144;
/// Intervals of snapshot policies.
const INTERVALS: [&str; 8] = [
    "1min", "2min", "15min", "1hour", "1day", "1week", "1month", "1year",
];
/// Modes of creation, which are labels only.
const CREATE_MODES: [&str; 10] = [
    "normal",
    "openstack",
    "internal",
    "docker",
    "cloudstack",
    "kubernetes",
    "mesos",
    "vmware_vro",
    "vmware_vcenter",
    "docker_swarm",
];

/// What is wrong with a body.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    /// Notes a problem unless `holds`.
    pub(super) fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }

    /// A refusal with all of them, if there are any.
    pub(super) fn into_result(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(ApiError::validation(self.0))
        }
    }

    /// The rule for names.
    pub(super) fn name(&mut self, member: &str, text: &str) {
        self.check(is_name(text, 3, 64, false), || {
            format!(
                "{member}: {text:?} must have 3 to 64 characters: a letter or _, then letters, digits, _ - ."
            )
        });
    }

    /// The rule for names of app instances and tenants.
    pub(super) fn name_or_uuid(&mut self, member: &str, text: &str) {
        if !is_uuid(text) {
            self.name(member, text);
        }
    }

    /// The rule for descriptions; an empty one is none.
    pub(super) fn descr(&mut self, member: &str, text: &str) {
        self.check(text.is_empty() || is_name(text, 3, 128, true), || {
            format!(
                "{member}: {text:?} must have 3 to 128 characters: a letter or _, then letters, digits, blanks, _ - ."
            )
        });
    }

    pub(super) fn uuid(&mut self, member: &str, text: &str) {
        self.check(is_uuid(text), || {
            format!("{member}: {text:?} is no lower-case UUID")
        });
    }

    pub(super) fn range(&mut self, member: &str, number: u64, from: u64, to: u64) {
        self.check((from..=to).contains(&number), || {
            format!("{member}: {number} is not in the range {from} to {to}")
        });
    }

    pub(super) fn size(&mut self, member: &str, gib: u64) {
        self.range(member, gib, 1, SIZE_MAX_GIB);
    }

    pub(super) fn template_size(&mut self, member: &str, gib: u64) {
        self.range(member, gib, 1, TEMPLATE_SIZE_MAX_GIB);
    }

    pub(super) fn replicas(&mut self, member: &str, count: u64) {
        self.range(member, count, 1, 5);
    }

    pub(super) fn one_of(&mut self, member: &str, text: &str, known: &[&str]) {
        self.check(known.contains(&text), || {
            format!("{member}: {text:?} is none of {}", known.join(", "))
        });
    }

    pub(super) fn placement_mode(&mut self, member: &str, text: &str) {
        self.one_of(member, text, &["hybrid", "single_flash", "all_flash"]);
    }

    pub(super) fn create_mode(&mut self, text: &str) {
        self.one_of("create_mode", text, &CREATE_MODES);
    }

    pub(super) fn performance(&mut self, member: &str, limits: &Performance) {
        for (name, value, max) in [
            ("total_iops_max", limits.total_iops_max, IOPS_MAX),
            ("read_iops_max", limits.read_iops_max, IOPS_MAX),
            ("write_iops_max", limits.write_iops_max, IOPS_MAX),
            (
                "total_bandwidth_max",
                limits.total_bandwidth_max,
                BANDWIDTH_MAX,
            ),
            (
                "read_bandwidth_max",
                limits.read_bandwidth_max,
                BANDWIDTH_MAX,
            ),
            (
                "write_bandwidth_max",
                limits.write_bandwidth_max,
                BANDWIDTH_MAX,
            ),
        ] {
            self.range(&format!("{member}.{name}"), value, 0, max);
        }
    }

    pub(super) fn snapshot_policies(&mut self, member: &str, policies: &[SnapshotPolicy]) {
        for (index, policy) in policies.iter().enumerate() {
            let at = |name: &str| format!("{member}[{index}].{name}");
            self.name(&at("name"), &policy.name);
            self.range(&at("retention_count"), policy.retention_count, 1, 256);
            self.one_of(&at("interval"), &policy.interval, &INTERVALS);
            let twice = policies[..index].iter().any(|p| p.name == policy.name);
            self.check(!twice, || {
                format!("{}: {:?} is there twice", at("name"), policy.name)
            });
        }
    }

    /// Credentials are complete for their kind.
    pub(super) fn auth(&mut self, member: &str, auth: &Auth) {
        for (name, text) in [
            ("initiator_user_name", &auth.initiator_user_name),
            ("target_user_name", &auth.target_user_name),
        ] {
            if !text.is_empty() {
                self.name(&format!("{member}.{name}"), text);
            }
        }
        for (name, password) in [
            ("initiator_pswd", &auth.initiator_pswd),
            ("target_pswd", &auth.target_pswd),
        ] {
            if let Some(password) = password {
                self.check((12..=16).contains(&password.0.len()), || {
                    format!("{member}.{name}: it must have 12 to 16 characters")
                });
            }
        }
        let one_way = !auth.target_user_name.is_empty() && auth.target_pswd.is_some();
        let mutual = !auth.initiator_user_name.is_empty() && auth.initiator_pswd.is_some();
        self.check(auth.kind == AuthKind::None || one_way, || {
            format!("{member}: CHAP needs target_user_name and target_pswd")
        });
        self.check(auth.kind != AuthKind::Mchap || mutual, || {
            format!("{member}: mutual CHAP needs initiator_user_name and initiator_pswd")
        });
    }

    /// The rule for initiators.
    pub(super) fn initiator_id(&mut self, member: &str, text: &str) {
        let eui = text
            .strip_prefix("eui.")
            .is_some_and(|rest| rest.len() == 16 && rest.chars().all(|c| c.is_ascii_hexdigit()));
        let iqn = text.starts_with("iqn.")
            && (16..=223).contains(&text.len())
            && !text.contains('/')
            && berth_iscsi::name::IscsiName::parse(text).is_ok();
        self.check(eui || iqn, || {
            format!(
                "{member}: {text:?} is no iSCSI name: iqn.YYYY-MM.domain..., or eui. and 16 digits"
            )
        });
    }

    /// Members that v2.1 does not know.
    pub(super) fn only_v22(&mut self, v22: bool, member: &str, given: bool) {
        self.check(v22 || !given, || format!("unknown field `{member}`"));
    }
}

fn is_name(text: &str, min: usize, max: usize, blanks: bool) -> bool {
    let mut characters = text.chars();
    let first = characters
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first
        && (min..=max).contains(&text.len())
        && characters
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c) || (blanks && c == ' '))
}

/// Whether the text is a lower-case UUID.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(index, c)| match index {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_digit() || ('a'..='f').contains(&c),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(check: impl FnOnce(&mut Problems)) -> bool {
        let mut problems = Problems::default();
        check(&mut problems);
        problems.into_result().is_ok()
    }

    #[test]
    fn names_follow_the_rule() {
        for right in ["abc", "_a-b.c", "kube-pv-datera-0", &"x".repeat(64)] {
            assert!(holds(|p| p.name("name", right)), "{right}");
        }
        for wrong in [
            "ab",
            "1abc",
            "a b c",
            "-abc",
            "a/bc",
            &"x".repeat(65),
            "äbc",
        ] {
            assert!(!holds(|p| p.name("name", wrong)), "{wrong}");
        }
        let uuid = "5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944";
        assert!(holds(|p| p.name_or_uuid("name", uuid)));
        assert!(!holds(|p| p.name_or_uuid("name", &uuid.to_uppercase())));
        assert!(holds(|p| p.descr("descr", "a nice volume")));
        assert!(!holds(|p| p.descr("descr", "ab")));
    }

    #[test]
    fn initiators_have_iscsi_names() {
        for right in [
            "iqn.1993-08.org.debian:01:a1b2c3d4e5f6",
            "eui.0123456789abcdef",
        ] {
            assert!(holds(|p| p.initiator_id("id", right)), "{right}");
        }
        for wrong in ["iqn.x", "eui.0123", "iqn.1993-08.org.debian:a/b", "node-1"] {
            assert!(!holds(|p| p.initiator_id("id", wrong)), "{wrong}");
        }
    }
}
