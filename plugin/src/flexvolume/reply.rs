//! What a call answers: one JSON object on standard output, and the exit code that goes with it.

use std::path::PathBuf;

use serde::Serialize;

/// Longest message, in bytes: it ends up in events of pods.
const MESSAGE_LEN_MAX: usize = 2000;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// How it went.
    pub status: Status,
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The device, in the answers to `attach` and `waitforattach`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,
    /// In the answer to `getvolumename`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_name: Option<String>,
    /// In the answer to `isattached`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attached: Option<bool>,
    /// In the answer to `init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// In bytes, in the answers to `expandvolume` and `expandfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_new_size: Option<u64>,
}

/// The three words that kubelet knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Status {
    /// Done.
    Success,
    /// Not done.
    Failure,
    /// There is no such call here. kubelet remembers that, so it is never said of anything that may pass.
    #[serde(rename = "Not supported")]
    NotSupported,
}

/// What kubelet may leave to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Attaching and detaching are calls of their own.
    pub attach: bool,
    /// Files may get SELinux labels.
    #[serde(rename = "selinuxRelabel")]
    pub selinux_relabel: bool,
    /// kubelet may ask the file system for its size and use.
    pub supports_metrics: bool,
    /// kubelet gives files to the group of the pod.
    pub fs_group: bool,
    /// The file system has to grow when the volume did.
    #[serde(rename = "requiresFSResize")]
    pub requires_fs_resize: bool,
}

impl Reply {
    fn of(status: Status) -> Self {
        Self {
            status,
            message: None,
            device: None,
            volume_name: None,
            attached: None,
            capabilities: None,
            volume_new_size: None,
        }
    }

    /// Done.
    #[must_use]
    pub fn success() -> Self {
        Self::of(Status::Success)
    }

    /// Not done, and why.
    #[must_use]
    pub fn failure(message: impl Into<String>) -> Self {
        let mut reply = Self::of(Status::Failure);
        reply.message = Some(shorten(message.into()));
        reply
    }

    /// There is no such call here.
    #[must_use]
    pub fn not_supported() -> Self {
        Self::of(Status::NotSupported)
    }

    /// The same with a message.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(shorten(message.into()));
        self
    }

    /// The line for standard output.
    #[must_use]
    pub fn line(&self) -> String {
        let line = serde_json::to_string(self).unwrap_or_else(|_| {
            // A device whose path is not text: there is none, but an answer has to be.
            r#"{"status":"Failure","message":"the answer is not text"}"#.to_owned()
        });
        line + "\n"
    }

    /// 0 for success and for what is not supported. kubelet takes success with another exit code for a bug, or for success.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(self.status == Status::Failure)
    }
}

fn shorten(mut message: String) -> String {
    if message.len() > MESSAGE_LEN_MAX {
        let mut end = MESSAGE_LEN_MAX;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// An error and what led to it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys and words that kubelet's decoder has (reference of FlexVolume, and its code).
    #[test]
    fn words_of_kubelet() {
        assert_eq!(Reply::success().line(), "{\"status\":\"Success\"}\n");
        assert_eq!(
            Reply::not_supported().line(),
            "{\"status\":\"Not supported\"}\n"
        );
        assert_eq!(
            Reply::failure("no").line(),
            "{\"status\":\"Failure\",\"message\":\"no\"}\n"
        );
        let reply = Reply {
            device: Some("/dev/nbd3".into()),
            volume_name: Some("v".into()),
            attached: Some(true),
            volume_new_size: Some(5),
            capabilities: Some(Capabilities {
                attach: false,
                selinux_relabel: true,
                supports_metrics: true,
                fs_group: true,
                requires_fs_resize: true,
            }),
            ..Reply::success()
        };
        assert_eq!(
            reply.line(),
            "{\"status\":\"Success\",\"device\":\"/dev/nbd3\",\"volumeName\":\"v\",\"attached\":true,\
             \"capabilities\":{\"attach\":false,\"selinuxRelabel\":true,\"supportsMetrics\":true,\"fsGroup\":true,\
             \"requiresFSResize\":true},\"volumeNewSize\":5}\n"
        );
    }

    #[test]
    fn exit_codes() {
        assert_eq!(Reply::success().exit_code(), 0);
        assert_eq!(Reply::not_supported().exit_code(), 0);
        assert_eq!(Reply::failure("").exit_code(), 1);
    }

    #[test]
    fn messages_end() {
        let reply = Reply::failure("ä".repeat(5000));
        assert!(reply.message.unwrap().len() <= MESSAGE_LEN_MAX + 3);
    }
}
