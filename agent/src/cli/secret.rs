//! Secrets: from a file, standard input, the environment or a prompt, never from an argument, which
//! every process of the machine could read.

use std::io::{IsTerminal as _, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use berth_api::Secret;
use berth_api::types::{Auth, Chap, MutualChap};
use zeroize::Zeroizing;

use super::args;
use super::error::Failure;

/// Longest file that is read for a secret, in bytes.
const FILE_LEN_MAX: u64 = 4096;

/// The credentials that the arguments ask for, with secrets from where they are.
pub(super) fn auth(arguments: &args::Chap) -> Result<Option<Auth>, Failure> {
    let Some(user) = arguments.chap_user.clone() else {
        return Ok(None);
    };
    let stdin = |path: &Option<std::path::PathBuf>| path.as_deref() == Some(Path::new("-"));
    if stdin(&arguments.chap_secret_file) && stdin(&arguments.mutual_secret_file) {
        return Err(Failure::Usage(
            "only one of the two secrets can come from standard input".to_owned(),
        ));
    }
    let secret = find(
        arguments.chap_secret_file.as_deref(),
        "BERTH_CHAP_SECRET",
        "--chap-secret-file",
        &format!("CHAP secret of {user}: "),
    )?;
    let wants_mutual = arguments.mutual_user.is_some() || arguments.mutual_secret_file.is_some();
    let mutual = if wants_mutual {
        let secret = find(
            arguments.mutual_secret_file.as_deref(),
            "BERTH_MUTUAL_SECRET",
            "--mutual-secret-file",
            "CHAP secret of the target: ",
        )?;
        Some(MutualChap {
            user: arguments.mutual_user.clone(),
            secret,
        })
    } else {
        None
    };
    Chap::new(user, secret, mutual, arguments.allow_short_secret)
        .map(|chap| Some(Auth::Chap(chap)))
        .map_err(|error| {
            let text = error.to_string();
            Failure::Usage(text.replace("set allow_short_secret", "give --allow-short-secret"))
        })
}

fn find(
    file: Option<&Path>,
    variable: &str,
    option: &str,
    question: &str,
) -> Result<Secret, Failure> {
    if let Some(path) = file {
        return from_file(path);
    }
    if let Ok(text) = std::env::var(variable) {
        return Ok(Secret::new(text));
    }
    if std::io::stdin().is_terminal() {
        return rpassword::prompt_password(question)
            .map(Secret::new)
            .map_err(|error| Failure::local("cannot read the secret from the terminal", error));
    }
    Err(Failure::Usage(format!(
        "a secret is needed: give {option} FILE (\"-\" for standard input) or set {variable}"
    )))
}

/// Reads a secret from a file, or standard input for `-`. One line break at the end is not part of
/// it; everything else is.
pub(super) fn from_file(path: &Path) -> Result<Secret, Failure> {
    let failed = |error| {
        Failure::local(
            format!("cannot read the secret from {}", path.display()),
            error,
        )
    };
    // Full size at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_LEN_MAX as usize + 1));
    if path == Path::new("-") {
        std::io::stdin()
            .take(FILE_LEN_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        if mode & 0o007 != 0 {
            eprintln!(
                "berthctl: warning: everybody can read {} (mode {:03o}); chmod 600 it",
                path.display(),
                mode & 0o777
            );
        }
        file.take(FILE_LEN_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
    }
    parse(&bytes).map_err(|what| Failure::Usage(format!("{}: {what}", path.display())))
}

fn parse(bytes: &[u8]) -> Result<Secret, &'static str> {
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err("is too long to be a secret");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text in UTF-8")?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err("holds no secret: it is empty");
    }
    if text.contains('\n') {
        return Err("has more than one line");
    }
    Ok(Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_is_not_part_of_a_secret() {
        for (bytes, secret) in [
            (&b"hunter2"[..], "hunter2"),
            (b"hunter2\n", "hunter2"),
            (b"hunter2\r\n", "hunter2"),
            (b" hunter 2 ", " hunter 2 "),
        ] {
            assert_eq!(parse(bytes).unwrap().expose(), secret);
        }
        for bytes in [&b""[..], b"\n", b"a\nb", b"a\n\n", b"\xff", &[b'x'; 5000]] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn secrets_come_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let arguments = args::Chap {
            chap_user: Some("u".into()),
            chap_secret_file: file("ours", "hunter2hunter2\n"),
            mutual_user: None,
            mutual_secret_file: file("theirs", "sesamesesame\n"),
            allow_short_secret: false,
        };
        let Some(Auth::Chap(chap)) = auth(&arguments).unwrap() else {
            panic!("there is a user");
        };
        assert_eq!(chap.secret.expose(), "hunter2hunter2");
        let mutual = chap.mutual.unwrap();
        assert_eq!(
            (mutual.secret.expose(), mutual.user),
            ("sesamesesame", None)
        );

        let arguments = args::Chap {
            chap_user: Some("u".into()),
            chap_secret_file: file("short", "hunter2"),
            ..args::Chap::default()
        };
        let error = auth(&arguments).unwrap_err().to_string();
        assert!(
            error.contains("--allow-short-secret") && !error.contains("hunter2"),
            "{error}"
        );
        assert!(auth(&args::Chap::default()).unwrap().is_none());
    }
}
