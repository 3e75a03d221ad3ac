//! The source of an attachment as it is kept on disk: its secrets in a document of their own.

use berth_api::types::{
    AttachRequest, Auth, Chap, FabricSource, IscsiSource, MutualChap, Source, VolumeRequest,
};
use berth_api::{Portal, Secret, TargetName, VolumeName};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StoredSource {
    Iscsi {
        portals: Vec<Portal>,
        target: TargetName,
        lun: u16,
        chap: Option<StoredChap>,
    },
    /// Not in files before version 4.
    Fabric {
        volume: VolumeName,
        unit: Option<String>,
        /// Without secrets; a type of the API, whose first version is for good.
        create: Option<Box<VolumeRequest>>,
        /// Not in the first files of version 4: this node is to be admitted.
        #[serde(default = "yes")]
        grant: bool,
        revoke_on_detach: bool,
        /// The credentials are part of what was asked for, and not of the configuration.
        auth_asked: bool,
        chap: Option<StoredChap>,
        found: Option<StoredUnit>,
    },
}

fn yes() -> bool {
    true
}

/// Where the fabric said that a volume is.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredUnit {
    portals: Vec<Portal>,
    target: TargetName,
    lun: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredChap {
    user: String,
    mutual: Option<StoredMutual>,
    allow_short_secret: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredMutual {
    user: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredSecrets {
    secret: String,
    mutual_secret: Option<String>,
}

impl Drop for StoredSecrets {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.mutual_secret.zeroize();
    }
}

/// The credentials of a source: those of the unit, once it is known.
fn auth_of(source: &Source) -> Option<&Auth> {
    match source {
        Source::Iscsi(source) => source.auth.as_ref(),
        Source::Fabric(source) => match &source.found {
            Some(found) => found.auth.as_ref(),
            None => source.auth.as_ref(),
        },
    }
}

pub(super) fn secrets_of(request: &AttachRequest) -> Option<StoredSecrets> {
    let Auth::Chap(chap) = auth_of(&request.source)?;
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

impl StoredSource {
    /// The source with its secrets.
    pub(super) fn restore(self, secrets: Option<StoredSecrets>) -> Result<Source, String> {
        let auth_of = |chap: Option<StoredChap>| match (chap, secrets) {
            (None, _) => Ok(None),
            (Some(_), None) => Err("its secrets are missing".to_owned()),
            (Some(chap), Some(mut secrets)) => restore_chap(chap, &mut secrets).map(Some),
        };
        match self {
            Self::Iscsi {
                portals,
                target,
                lun,
                chap,
            } => Ok(Source::Iscsi(IscsiSource {
                portals,
                target,
                lun,
                auth: auth_of(chap)?,
            })),
            Self::Fabric {
                volume,
                unit,
                create,
                grant,
                revoke_on_detach,
                auth_asked,
                chap,
                found,
            } => {
                let auth = auth_of(chap)?;
                let found = found.map(|found| {
                    Box::new(IscsiSource {
                        portals: found.portals,
                        target: found.target,
                        lun: found.lun,
                        auth: auth.clone(),
                    })
                });
                Ok(Source::Fabric(FabricSource {
                    volume,
                    unit,
                    create,
                    auth: auth.filter(|_| auth_asked),
                    grant,
                    revoke_on_detach,
                    found,
                }))
            }
        }
    }
}

impl From<&Source> for StoredSource {
    fn from(source: &Source) -> Self {
        let chap = auth_of(source).map(|Auth::Chap(chap)| StoredChap {
            user: chap.user.clone(),
            mutual: chap.mutual.as_ref().map(|mutual| StoredMutual {
                user: mutual.user.clone(),
            }),
            allow_short_secret: chap.allow_short_secret,
        });
        match source {
            Source::Iscsi(source) => Self::Iscsi {
                portals: source.portals.clone(),
                target: source.target.clone(),
                lun: source.lun,
                chap,
            },
            Source::Fabric(source) => Self::Fabric {
                volume: source.volume.clone(),
                unit: source.unit.clone(),
                create: source.create.clone(),
                grant: source.grant,
                revoke_on_detach: source.revoke_on_detach,
                auth_asked: source.auth.is_some(),
                chap,
                found: source.found.as_ref().map(|found| StoredUnit {
                    portals: found.portals.clone(),
                    target: found.target.clone(),
                    lun: found.lun,
                }),
            },
        }
    }
}
