//! What is kept of an attachment on disk, apart from the types of the API.
//!
//! The attach request without its secrets, the secrets in a document of their own, and what must stay
//! the same over a restart: the ISID and the identity of the volume.

use berth_api::{
    AttachmentName, Portal, Secret, TargetName,
    types::{
        AttachRequest, Auth, Chap, DeviceWish, DigestPolicy, Digests, Fence, IscsiSource,
        MutualChap, RecoveryTimeout, Source,
    },
};
use berth_iscsi::types::Isid;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::store::{Store, StoreError};

/// The intent to have an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// What was asked for.
    pub request: AttachRequest,
    /// The session's ISID: a new login with it ends the old session on the target.
    pub isid: Isid,
    /// What the volume said it was when it was attached for the first time.
    pub identity: Option<KnownIdentity>,
}

/// What a volume said it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownIdentity {
    /// The best designator of VPD page 83h, as `naa.…`, or the serial number, as `serial.…`.
    pub designator: String,
    /// Logical block length in bytes.
    pub block_bytes: u32,
}

/// Intents that were read, and files that could not be.
pub type Loaded = (Vec<(AttachmentName, Intent)>, Vec<(String, StoreError)>);

/// Where intents are kept.
#[derive(Debug)]
pub struct Intents {
    attachments: Store,
    secrets: Store,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredAttachment {
    source: StoredSource,
    device: DeviceWish,
    read_only: bool,
    fence: Fence,
    header_digest: DigestPolicy,
    data_digest: DigestPolicy,
    recovery_timeout: RecoveryTimeout,
    attach_timeout_seconds: u32,
    isid: String,
    identity: Option<KnownIdentity>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredSource {
    Iscsi {
        portals: Vec<Portal>,
        target: TargetName,
        lun: u16,
        chap: Option<StoredChap>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredChap {
    user: String,
    mutual: Option<StoredMutual>,
    allow_short_secret: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMutual {
    user: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSecrets {
    secret: String,
    mutual_secret: Option<String>,
}

impl Drop for StoredSecrets {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.mutual_secret.zeroize();
    }
}

impl Intents {
    /// Opens the stores below the state directory.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn open(state_dir: &std::path::Path) -> Result<Self, StoreError> {
        Ok(Self {
            attachments: Store::open(state_dir.join("attachments"))?,
            secrets: Store::open(state_dir.join("secrets"))?,
        })
    }

    /// Keeps the intent; durable when it returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, name: &AttachmentName, intent: &Intent) -> Result<(), StoreError> {
        // Secrets first: an attachment that is there can always be made.
        match secrets_of(&intent.request) {
            Some(secrets) => self.secrets.put(name.as_str(), &secrets)?,
            None => self.secrets.remove(name.as_str())?,
        }
        self.attachments
            .put(name.as_str(), &StoredAttachment::from(intent))
    }

    /// Forgets the intent; absent is fine. Durable when it returns.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &AttachmentName) -> Result<(), StoreError> {
        self.attachments.remove(name.as_str())?;
        self.secrets.remove(name.as_str())
    }

    /// All intents that can be read, and an error for each one that cannot.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for name in self.attachments.names()? {
            match self.load_one(&name) {
                Ok(Some(entry)) => good.push(entry),
                Ok(None) => {}
                Err(error) => bad.push((name, error)),
            }
        }
        Ok((good, bad))
    }

    fn load_one(&self, file_name: &str) -> Result<Option<(AttachmentName, Intent)>, StoreError> {
        let damaged = |message: String| StoreError::Damaged {
            path: format!("attachment {file_name}").into(),
            message,
        };
        let name: AttachmentName = file_name
            .parse()
            .map_err(|error| damaged(format!("{error}")))?;
        let Some(stored) = self.attachments.get::<StoredAttachment>(file_name)? else {
            return Ok(None);
        };
        let secrets = self.secrets.get::<StoredSecrets>(file_name)?;
        let isid = parse_isid(&stored.isid).ok_or_else(|| damaged("wrong isid".to_owned()))?;
        let StoredSource::Iscsi {
            portals,
            target,
            lun,
            chap,
        } = stored.source;
        let auth = match (chap, secrets) {
            (None, _) => None,
            (Some(_), None) => return Err(damaged("its secrets are missing".to_owned())),
            (Some(chap), Some(mut secrets)) => {
                Some(restore_chap(chap, &mut secrets).map_err(damaged)?)
            }
        };
        let request = AttachRequest {
            source: Source::Iscsi(IscsiSource {
                portals,
                target,
                lun,
                auth,
            }),
            device: stored.device,
            read_only: stored.read_only,
            fence: stored.fence,
            digests: Digests {
                header: stored.header_digest,
                data: stored.data_digest,
            },
            recovery_timeout_seconds: stored.recovery_timeout,
            attach_timeout_seconds: stored.attach_timeout_seconds,
        };
        Ok(Some((
            name,
            Intent {
                request,
                isid,
                identity: stored.identity,
            },
        )))
    }
}

fn secrets_of(request: &AttachRequest) -> Option<StoredSecrets> {
    let Source::Iscsi(source) = &request.source;
    let Auth::Chap(chap) = source.auth.as_ref()?;
    Some(StoredSecrets {
        secret: chap.secret.expose().to_owned(),
        mutual_secret: chap
            .mutual
            .as_ref()
            .map(|mutual| mutual.secret.expose().to_owned()),
    })
}

fn restore_chap(chap: StoredChap, secrets: &mut StoredSecrets) -> Result<Auth, String> {
    let mutual = match (chap.mutual, secrets.mutual_secret.take()) {
        (None, _) => None,
        (Some(mutual), Some(secret)) => Some(MutualChap {
            user: mutual.user,
            secret: Secret::new(secret),
        }),
        (Some(_), None) => return Err("the secret of the target is missing".to_owned()),
    };
    let secret = Secret::new(std::mem::take(&mut secrets.secret));
    Chap::new(chap.user, secret, mutual, chap.allow_short_secret)
        .map(Auth::Chap)
        .map_err(|error| error.to_string())
}

impl From<&Intent> for StoredAttachment {
    fn from(intent: &Intent) -> Self {
        let request = &intent.request;
        let Source::Iscsi(source) = &request.source;
        let chap = source.auth.as_ref().map(|Auth::Chap(chap)| StoredChap {
            user: chap.user.clone(),
            mutual: chap.mutual.as_ref().map(|mutual| StoredMutual {
                user: mutual.user.clone(),
            }),
            allow_short_secret: chap.allow_short_secret,
        });
        Self {
            source: StoredSource::Iscsi {
                portals: source.portals.clone(),
                target: source.target.clone(),
                lun: source.lun,
                chap,
            },
            device: request.device,
            read_only: request.read_only,
            fence: request.fence,
            header_digest: request.digests.header,
            data_digest: request.digests.data,
            recovery_timeout: request.recovery_timeout_seconds,
            attach_timeout_seconds: request.attach_timeout_seconds,
            isid: intent.isid.to_string(),
            identity: intent.identity.clone(),
        }
    }
}

fn parse_isid(text: &str) -> Option<Isid> {
    if text.len() != 12 || !text.is_ascii() {
        return None;
    }
    let mut isid = [0; 6];
    for (at, byte) in isid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(Isid(isid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> AttachRequest {
        serde_json::from_str(json).expect("a valid request")
    }

    fn intent() -> Intent {
        let request = request(
            r#"{"source":{"iscsi":{"portals":["192.0.2.1:3260"],"target":"iqn.2026-11.example:t","lun":3,
               "auth":{"chap":{"user":"u","secret":"first-secret-value","mutual":{"user":"t","secret":"second-secret-value"}}}}},
               "digests":{"header":"require","data":"off"},"read_only":true}"#,
        );
        let identity = Some(KnownIdentity {
            designator: "naa.6001".to_owned(),
            block_bytes: 512,
        });
        Intent {
            request,
            isid: Isid::random([1, 2, 3], 4),
            identity,
        }
    }

    #[test]
    fn an_intent_comes_back_as_it_was_with_its_secrets_kept_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let intents = Intents::open(dir.path()).expect("opens");
        let name: AttachmentName = "pv-0".parse().expect("a name");
        intents.put(&name, &intent()).expect("writes");
        let text =
            std::fs::read_to_string(dir.path().join("attachments/pv-0.json")).expect("is there");
        assert!(!text.contains("secret-value"), "{text}");
        let (good, bad) = intents.load().expect("lists");
        assert!(bad.is_empty(), "{bad:?}");
        assert_eq!(good, [(name.clone(), intent())]);
        intents.remove(&name).expect("removes");
        assert!(intents.load().expect("lists").0.is_empty());
        assert!(!dir.path().join("secrets/pv-0.json").exists());
    }

    #[test]
    fn a_damaged_intent_does_not_hide_the_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let intents = Intents::open(dir.path()).expect("opens");
        let name: AttachmentName = "good".parse().expect("a name");
        intents.put(&name, &intent()).expect("writes");
        intents
            .put(&"torn".parse().expect("a name"), &intent())
            .expect("writes");
        std::fs::write(dir.path().join("attachments/torn.json"), "{").expect("writes");
        let (good, bad) = intents.load().expect("lists");
        assert_eq!((good.len(), bad.len()), (1, 1));
        assert_eq!(bad[0].0, "torn");
    }
}
