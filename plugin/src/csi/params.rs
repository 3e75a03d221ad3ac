//! Parameters of a StorageClass and of a VolumeAttributesClass, and the keys of Secrets.

use std::collections::HashMap;

use berth_api::Secret;
use berth_api::types::{Auth, Chap, FabricChap, MutualChap, PlacementMode, Qos};
use tonic::Status;

/// What callers add for themselves.
const RESERVED: &str = "csi.storage.k8s.io/";
/// Longest value, in bytes (CSI, size limits).
const VALUE_LEN_MAX: usize = 4096;

/// Parameters that say how a new volume is.
const FIXED: [&str; 4] = ["template", "replicas", "placement", "ipPool"];
/// Parameters that can be changed later, too.
pub const MUTABLE: [&str; 6] = [
    "maxIops",
    "maxReadIops",
    "maxWriteIops",
    "maxBandwidthKiB",
    "maxReadBandwidthKiB",
    "maxWriteBandwidthKiB",
];

/// What a StorageClass asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// AppTemplate of the fabric.
    pub template: Option<String>,
    /// Copies that the fabric keeps.
    pub replicas: Option<u8>,
    /// Media.
    pub placement_mode: Option<PlacementMode>,
    /// Placement policy of the fabric, for any other word than those of media.
    pub placement_policy: Option<String>,
    /// Pool that the portals' addresses come from.
    pub ip_pool: Option<String>,
    /// Limits; nothing: none are asked for.
    pub qos: Option<Qos>,
}

impl Parameters {
    /// Reads the parameters of a StorageClass; what can be changed later may be given apart, and wins then.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, naming the key.
    pub fn parse(
        fixed: &HashMap<String, String>,
        changeable: &HashMap<String, String>,
    ) -> Result<Self, Status> {
        let mut all = Self::default();
        for (key, value) in sorted(fixed) {
            match key {
                "template" => all.template = Some(word(key, value)?),
                "replicas" => all.replicas = Some(replicas(value)?),
                "placement" => match value {
                    "hybrid" => all.placement_mode = Some(PlacementMode::Hybrid),
                    "single_flash" => all.placement_mode = Some(PlacementMode::SingleFlash),
                    "all_flash" => all.placement_mode = Some(PlacementMode::AllFlash),
                    _ => all.placement_policy = Some(word(key, value)?),
                },
                "ipPool" => all.ip_pool = Some(word(key, value)?),
                _ if MUTABLE.contains(&key) => {}
                _ if key.starts_with(RESERVED) => {}
                _ => return Err(unknown(key, &FIXED)),
            }
        }
        let limits = sorted(fixed).filter(|(key, _)| MUTABLE.contains(key));
        all.qos = limits_of(limits.chain(sorted(changeable)), None)?;
        if let Some(template) = &all.template {
            let said = [
                ("replicas", all.replicas.is_some()),
                (
                    "placement",
                    all.placement_mode.is_some() || all.placement_policy.is_some(),
                ),
                ("ipPool", all.ip_pool.is_some()),
            ];
            if let Some((key, _)) = said.into_iter().find(|(_, given)| *given) {
                return Err(Status::invalid_argument(format!(
                    "parameter {key}: template {template} says that already; leave either out"
                )));
            }
        }
        Ok(all)
    }
}

/// Limits after a change: those that are named are changed, the others stay as they are in `now`.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the key.
pub fn changed_limits(
    changes: &HashMap<String, String>,
    now: Option<Qos>,
) -> Result<Option<Qos>, Status> {
    limits_of(sorted(changes), now)
}

fn limits_of<'a>(
    changes: impl Iterator<Item = (&'a str, &'a str)>,
    now: Option<Qos>,
) -> Result<Option<Qos>, Status> {
    let mut qos = now.unwrap_or_default();
    let mut any = now.is_some();
    for (key, value) in changes {
        let (limit, unit) = match key {
            "maxIops" => (&mut qos.total_iops, 1),
            "maxReadIops" => (&mut qos.read_iops, 1),
            "maxWriteIops" => (&mut qos.write_iops, 1),
            "maxBandwidthKiB" => (&mut qos.total_bytes_per_second, 1024),
            "maxReadBandwidthKiB" => (&mut qos.read_bytes_per_second, 1024),
            "maxWriteBandwidthKiB" => (&mut qos.write_bytes_per_second, 1024),
            _ if key.starts_with(RESERVED) => continue,
            _ => return Err(unknown(key, &[])),
        };
        let number = number(key, value)?;
        let value = number.checked_mul(unit).ok_or_else(|| {
            Status::invalid_argument(format!("parameter {key}: {number} is too large"))
        })?;
        // 0 takes a limit away.
        *limit = (value > 0).then_some(value);
        any = true;
    }
    Ok(any.then_some(qos))
}

/// In a fixed order, so that the same request always gets the same error.
fn sorted(map: &HashMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    let mut all: Vec<_> = map
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    all.sort_unstable();
    all.into_iter()
}

fn unknown(key: &str, more: &[&str]) -> Status {
    let known: Vec<_> = more.iter().chain(&MUTABLE).copied().collect();
    Status::invalid_argument(format!(
        "parameter {key:?} is not known, expected one of {}",
        known.join(", ")
    ))
}

fn word(key: &str, value: &str) -> Result<String, Status> {
    if value.is_empty() || value.len() > VALUE_LEN_MAX || value.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "parameter {key}: expected a name"
        )));
    }
    Ok(value.to_owned())
}

fn number(key: &str, value: &str) -> Result<u64, Status> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or_else(|| {
        Status::invalid_argument(format!(
            "parameter {key}: {value:?} is not a whole number; 0 means no limit"
        ))
    })
}

fn replicas(value: &str) -> Result<u8, Status> {
    let number: Option<u8> = value.parse().ok();
    number
        .filter(|number| (1..=5).contains(number))
        .ok_or_else(|| {
            Status::invalid_argument(format!(
                "parameter replicas: {value:?} is not a number from 1 to 5"
            ))
        })
}

/// Credentials that a Secret holds: keys `chapUser` and `chapSecret`, with `chapMutualUser` and `chapMutualSecret` where the
/// target has to prove itself, too. Nothing: there are none.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the key and never the value.
pub fn chap(secrets: &HashMap<String, String>) -> Result<Option<Chap>, Status> {
    const KEYS: [&str; 4] = [
        "chapUser",
        "chapSecret",
        "chapMutualUser",
        "chapMutualSecret",
    ];
    let mut keys: Vec<_> = secrets.keys().map(String::as_str).collect();
    keys.sort_unstable();
    if let Some(key) = keys.iter().find(|key| !KEYS.contains(key)) {
        return Err(Status::invalid_argument(format!(
            "secret key {key:?} is not known, expected {}",
            KEYS.join(", ")
        )));
    }
    let [user, secret, mutual_user, mutual_secret] = KEYS.map(|key| secrets.get(key).cloned());
    let mutual = match (mutual_user, mutual_secret) {
        (None, None) => None,
        (user, Some(secret)) => Some(MutualChap {
            user,
            secret: Secret::new(secret),
        }),
        (Some(_), None) => {
            return Err(Status::invalid_argument(
                "secret key chapMutualUser needs chapMutualSecret",
            ));
        }
    };
    match (user, secret, mutual) {
        (None, None, None) => Ok(None),
        (Some(user), Some(secret), mutual) => Chap::new(user, Secret::new(secret), mutual, false)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("secret: {error}"))),
        _ => Err(Status::invalid_argument(
            "secret keys chapUser and chapSecret go together",
        )),
    }
}

/// The same for a new volume.
///
/// # Errors
/// As [`chap`].
pub fn chap_of_new(secrets: &HashMap<String, String>) -> Result<Option<FabricChap>, Status> {
    Ok(chap(secrets)?.map(|chap| {
        let (mutual_user, mutual_secret) = match chap.mutual {
            None => (None, None),
            // The fabric wants a name; whose it is makes no difference to the proof.
            Some(mutual) => (
                Some(mutual.user.unwrap_or_else(|| chap.user.clone())),
                Some(mutual.secret),
            ),
        };
        FabricChap {
            user: chap.user,
            secret: chap.secret,
            mutual_user,
            mutual_secret,
        }
    }))
}

/// Credentials for an attach.
///
/// # Errors
/// As [`chap`].
pub fn auth(secrets: &HashMap<String, String>) -> Result<Option<Auth>, Status> {
    Ok(chap(secrets)?.map(Auth::Chap))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn parse(pairs: &[(&str, &str)]) -> Result<Parameters, Status> {
        Parameters::parse(&map(pairs), &HashMap::new())
    }

    #[test]
    fn all_of_them() {
        let all = parse(&[
            ("replicas", "2"),
            ("placement", "all_flash"),
            ("ipPool", "fast"),
            ("maxIops", "500"),
            ("maxBandwidthKiB", "2048"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ])
        .unwrap();
        assert_eq!(all.replicas, Some(2));
        assert_eq!(all.placement_mode, Some(PlacementMode::AllFlash));
        let qos = all.qos.unwrap();
        assert_eq!(qos.total_iops, Some(500));
        assert_eq!(qos.total_bytes_per_second, Some(2 << 20));
        assert_eq!(
            parse(&[("placement", "gold")]).unwrap().placement_policy,
            Some("gold".to_owned())
        );
        assert_eq!(parse(&[]).unwrap(), Parameters::default());
    }

    #[test]
    fn errors_name_the_key() {
        for (key, value) in [
            ("replicas", "0"),
            ("replicas", "six"),
            ("maxIops", "-1"),
            ("maxIops", "+1"),
            ("maxIops", ""),
            ("maxBandwidthKiB", "18446744073709551615"),
            ("template", ""),
            ("tenant", "/root"),
        ] {
            let status = parse(&[(key, value)]).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(key), "{status}");
        }
        let status = parse(&[("template", "gold"), ("replicas", "2")]).unwrap_err();
        assert!(status.message().contains("replicas"), "{status}");
    }

    #[test]
    fn mutable_parameters_win_and_change_only_what_they_name() {
        let both = Parameters::parse(&map(&[("maxIops", "1")]), &map(&[("maxIops", "2")])).unwrap();
        assert_eq!(both.qos.unwrap().total_iops, Some(2));
        let now = Qos {
            total_iops: Some(5),
            read_iops: Some(3),
            ..Qos::default()
        };
        let changed = changed_limits(&map(&[("maxReadIops", "0")]), Some(now))
            .unwrap()
            .unwrap();
        assert_eq!((changed.total_iops, changed.read_iops), (Some(5), None));
        assert!(changed_limits(&map(&[("replicas", "2")]), Some(now)).is_err());
        assert_eq!(changed_limits(&HashMap::new(), None).unwrap(), None);
    }

    #[test]
    fn secrets_are_checked_and_not_told() {
        let one_way = map(&[("chapUser", "node"), ("chapSecret", "twelve-bytes")]);
        assert_eq!(chap(&one_way).unwrap().unwrap().user, "node");
        let mutual = map(&[
            ("chapUser", "node"),
            ("chapSecret", "twelve-bytes"),
            ("chapMutualSecret", "other-twelve"),
        ]);
        let made = chap_of_new(&mutual).unwrap().unwrap();
        assert_eq!(made.mutual_user.as_deref(), Some("node"));
        assert_eq!(chap(&HashMap::new()).unwrap(), None);
        for wrong in [
            map(&[("chapUser", "node")]),
            map(&[("chapSecret", "hunter2hunter2")]),
            map(&[("chapUser", "node"), ("chapSecret", "hunter2")]),
            map(&[("password", "hunter2")]),
            map(&[("chapMutualUser", "hunter2")]),
        ] {
            let status = chap(&wrong).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(!status.message().contains("hunter2"), "{status}");
        }
    }
}
