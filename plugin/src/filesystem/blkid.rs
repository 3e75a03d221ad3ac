//! What `blkid` says of a device: it knows the marks of some hundred file systems and volume managers.

use super::Content;

/// Arguments for a look at the device itself (low-level probing), past the cache that blkid keeps, but for the device.
pub(super) const ARGUMENTS: [&str; 4] = ["--probe", "--output", "export", "--"];
/// Exit code for "nothing found", but also for what could not be read: no proof of anything.
const NOTHING: i32 = 2;
/// Exit code for several marks that exclude each other.
const SEVERAL: i32 = 8;

/// Makes sense of its answer; nothing when it found nothing.
pub(super) fn understand(code: Option<i32>, stdout: &str) -> Result<Option<Content>, String> {
    match code {
        Some(0) => {}
        Some(NOTHING) if stdout.trim().is_empty() => return Ok(None),
        Some(SEVERAL) => {
            return Ok(Some(Content::Other(
                "marks of several formats at once".to_owned(),
            )));
        }
        Some(code) => return Err(format!("blkid ended with exit code {code}")),
        None => return Err("a signal ended blkid".to_owned()),
    }
    let value = |key: &str| {
        let mut pairs = stdout.lines().filter_map(|line| line.split_once('='));
        pairs
            .find(|(found, _)| *found == key)
            .map(|(_, value)| value.to_owned())
    };
    let kind = value("TYPE");
    let content = match (value("USAGE").as_deref(), kind, value("PTTYPE")) {
        (Some("crypto"), Some(kind), _) if kind == "crypto_LUKS" => Content::Luks,
        (Some("filesystem"), Some(kind), _) => Content::FileSystem(kind),
        (_, Some(kind), _) => Content::Other(kind),
        (_, None, Some(table)) => Content::PartitionTable(table),
        (_, None, None) => Content::Other("blkid knows it, but not its name".to_owned()),
    };
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_blkid() {
        let found = |text: &str| understand(Some(0), text).unwrap().unwrap();
        assert_eq!(
            found("DEVNAME=/dev/loop0\nUUID=1\nBLOCK_SIZE=4096\nTYPE=ext4\nUSAGE=filesystem\n"),
            Content::FileSystem("ext4".into())
        );
        assert_eq!(
            found("DEVNAME=a\nVERSION=2\nTYPE=crypto_LUKS\nUSAGE=crypto\n"),
            Content::Luks
        );
        assert_eq!(
            found("PTUUID=1\nPTTYPE=gpt\n"),
            Content::PartitionTable("gpt".into())
        );
        assert_eq!(
            found("TYPE=LVM2_member\nUSAGE=raid\n"),
            Content::Other("LVM2_member".into())
        );
        // A file system whose boot sector looks like a partition table is a file system.
        assert_eq!(
            found("TYPE=vfat\nUSAGE=filesystem\nPTTYPE=dos\n"),
            Content::FileSystem("vfat".into())
        );
        assert!(matches!(found("DEVNAME=a\n"), Content::Other(_)));
        assert_eq!(understand(Some(2), ""), Ok(None));
        assert!(matches!(
            understand(Some(8), ""),
            Ok(Some(Content::Other(_)))
        ));
        assert!(understand(Some(4), "").is_err());
        assert!(understand(Some(2), "TYPE=ext4").is_err());
        assert!(understand(None, "").is_err());
    }
}
