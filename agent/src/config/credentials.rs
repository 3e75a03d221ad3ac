//! Secrets that the service manager hands over as files (`systemd.exec(5)`, `LoadCredential=`).

use std::path::{Path, PathBuf};

/// The variable with the directory of this service's credentials, as it is written in the configuration.
const PREFIX: &str = "$CREDENTIALS_DIRECTORY";

/// The file that `path` of the configuration means: `$CREDENTIALS_DIRECTORY/NAME` is the credential NAME,
/// everything else is the path itself.
///
/// # Errors
/// What is wrong when the path begins with the variable and there are no credentials.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, String> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    resolve_in(path, dir.as_deref())
}

/// Whether `path` is a credential and this process was not given any: `berthd --check` of a person.
pub(super) fn is_elsewhere(path: &Path) -> bool {
    path.starts_with(PREFIX) && std::env::var_os("CREDENTIALS_DIRECTORY").is_none()
}

fn resolve_in(path: &Path, dir: Option<&Path>) -> Result<PathBuf, String> {
    let Ok(name) = path.strip_prefix(PREFIX) else {
        return Ok(path.to_owned());
    };
    let dir = dir.ok_or_else(|| {
        format!(
            "{} is a credential, and this process has none: only the service manager sets {PREFIX} \
             (LoadCredential= of the unit); name a file instead, or start berthd as a service",
            path.display()
        )
    })?;
    Ok(dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_variable_at_the_start_is_replaced() {
        let dir = Some(Path::new("/run/credentials/berthd.service"));
        let resolved = |path: &str| resolve_in(Path::new(path), dir);
        assert_eq!(
            resolved("$CREDENTIALS_DIRECTORY/secrets_token"),
            Ok("/run/credentials/berthd.service/secrets_token".into())
        );
        assert_eq!(resolved("/etc/berth/token"), Ok("/etc/berth/token".into()));
        let other = "$CREDENTIALS_DIRECTORY_OLD/token";
        assert_eq!(resolved(other), Ok(other.into()));
    }

    #[test]
    fn without_credentials_the_message_says_where_they_come_from() {
        let path = Path::new("$CREDENTIALS_DIRECTORY/token");
        let message = resolve_in(path, None).unwrap_err();
        assert!(message.contains("LoadCredential="), "{message}");
        assert_eq!(resolve_in(Path::new("/t"), None), Ok("/t".into()));
        assert!(!is_elsewhere(Path::new("/t")));
    }
}
