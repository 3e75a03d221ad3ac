//! `[nbd.device]`: kernel devices, their timers and their queues.

use std::time::Duration;

use serde::Deserialize;

use super::KernelDevices;
use super::units::{Size, Span};
use crate::nbd::kernel::Settings;
use crate::nbd::kernel::driver::{LinkLimits, Tuning};

/// `[nbd.device]`. Each device has one connection; why, and what the times were measured to do, stands in
/// `docs/decisions/0008-kernel-devices.md`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// I/O of a device waits for so long while no daemon serves it, then it fails and the device is over.
    /// Default 24 h: whoever mends a node comes back sooner, and errors in a file system cannot be mended.
    pub dead_connection_timeout: Span,
    /// A request that is not answered in this time ends the connection, and comes again on a new one.
    /// Default `"0s"`, never: a slow volume is none that another connection would make faster.
    pub request_timeout: Span,
    /// How often the kernel looks whether a request in flight must be sent again, because its connection was
    /// replaced. Default 2 s: what I/O in flight loses at most when the daemon dies.
    pub resend_interval: Span,
    /// Longest request of the kernel; larger I/O is cut up. Default 1 MiB, 32 MiB at most. The kernel's own
    /// 128 KiB cost large I/O a third of its speed and more.
    pub request_max: Size,
    /// Memory that each device has from the start for what the kernel writes to it, because the kernel may write
    /// when there is no other memory to be had. More is in flight only as long as one request needs it.
    /// Default 8 MiB: eight of the longest requests, enough for 800 MB/s at 10 ms.
    pub receive_pool: Size,
    /// A new device must answer its first read, and a found one take its new connection, within this time.
    /// Default 30 s.
    pub ready_timeout: Span,
    /// On detach the kernel must have written what it holds of the device within this time. Default 30 s;
    /// with force 5 s at most.
    pub flush_timeout: Span,
    /// On detach the device must be free within this time; one that somebody keeps open after a detach by
    /// force is left behind then. Default 10 s.
    pub release_timeout: Span,
}

impl Default for Device {
    fn default() -> Self {
        let seconds = |seconds| Span(Duration::from_secs(seconds));
        Self {
            dead_connection_timeout: seconds(86_400),
            request_timeout: seconds(0),
            resend_interval: seconds(2),
            request_max: Size(1 << 20),
            receive_pool: Size(8 << 20),
            ready_timeout: seconds(30),
            flush_timeout: seconds(30),
            release_timeout: seconds(10),
        }
    }
}

impl Device {
    /// What the devices are made with.
    #[must_use]
    pub fn settings(&self, policy: KernelDevices) -> Settings {
        Settings {
            limits: LinkLimits {
                request_timeout: self.request_timeout.0,
                dead_conn_timeout: self.dead_connection_timeout.0,
            },
            tuning: Tuning {
                resend_interval: self.resend_interval.0,
                request_max_bytes: self.request_max.0,
            },
            ready_timeout: self.ready_timeout.0,
            flush_timeout: self.flush_timeout.0,
            release_timeout: self.release_timeout.0,
            policy,
        }
    }

    /// Checks what types cannot; the key and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |key, span: Span, least: Duration, most: Duration| {
            if (least..=most).contains(&span.0) {
                return Ok(());
            }
            let message =
                format!("{span:?} is out of range; use {least:?} to {most:?}, with its unit");
            Err((key, message))
        };
        let second = Duration::from_secs(1);
        let (hour, month) = (3600 * second, 30 * 86_400 * second);
        // The driver counts both in whole seconds.
        let dead = self.dead_connection_timeout;
        within(
            "nbd.device.dead_connection_timeout",
            dead,
            10 * second,
            month,
        )?;
        within(
            "nbd.device.request_timeout",
            self.request_timeout,
            Duration::ZERO,
            hour,
        )?;
        let least = Duration::from_millis(100);
        within(
            "nbd.device.resend_interval",
            self.resend_interval,
            least,
            60 * second,
        )?;
        within("nbd.device.ready_timeout", self.ready_timeout, second, hour)?;
        within("nbd.device.flush_timeout", self.flush_timeout, second, hour)?;
        within(
            "nbd.device.release_timeout",
            self.release_timeout,
            second,
            hour,
        )?;
        if !(4 << 10..=32 << 20).contains(&self.request_max.0) {
            let message = format!("{:?} is out of range; use 4KiB to 32MiB", self.request_max);
            return Err(("nbd.device.request_max", message));
        }
        if !(1 << 20..=1 << 30).contains(&self.receive_pool.0) {
            let message = format!("{:?} is out of range; use 1MiB to 1GiB", self.receive_pool);
            return Err(("nbd.device.receive_pool", message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    #[test]
    fn what_is_written_is_used_and_what_cannot_work_is_refused_by_key() {
        let parse = |text: &str| Config::parse(text, Path::new("berth.toml"));
        let text = "[nbd.device]\ndead_connection_timeout = \"30s\"\nresend_interval = \"500ms\"\n\
                    request_max = \"4MiB\"\nrequest_timeout = \"20s\"\nreceive_pool = \"2MiB\"\n";
        let config = parse(text).expect("valid");
        let settings = config.nbd.device.settings(config.nbd.kernel);
        assert_eq!(settings.limits.dead_conn_timeout, Duration::from_secs(30));
        assert_eq!(settings.limits.request_timeout, Duration::from_secs(20));
        assert_eq!(settings.tuning.resend_interval, Duration::from_millis(500));
        assert_eq!(settings.tuning.request_max_bytes, 4 << 20);
        assert_eq!(config.nbd.device.receive_pool.0, 2 << 20);
        for line in [
            "dead_connection_timeout = \"0s\"",
            "resend_interval = \"0s\"",
            "request_max = \"64MiB\"",
            "flush_timeout = \"0s\"",
            "receive_pool = \"64KiB\"",
        ] {
            let error = parse(&format!("[nbd.device]\n{line}\n")).expect_err(line);
            let key = line.split(' ').next().expect("a key");
            let message = error.to_string();
            assert!(
                message.contains(&format!(":2: nbd.device.{key}")),
                "{message}"
            );
        }
    }
}
