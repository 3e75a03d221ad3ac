"""What the figures were made on, and whether the machine was busy with something else."""

import os
import platform
import re
import subprocess
import time


def _output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def facts():
    """Machine, kernel and versions of everything that takes part."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    changed = _output("git", "-C", root, "status", "--porcelain", "--untracked-files=no").strip()
    commit = _output("git", "-C", root, "rev-parse", "--short", "HEAD").strip() or "unknown"

    def package(name):
        return _output("dpkg-query", "-W", "-f", "${Version}", name).strip()

    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "commit": commit + ("+changes" if changed else ""),
        "date": time.strftime("%Y-%m-%d"),
        "qemu": re.sub(r"\s*\(.*", "", _output("qemu-nbd", "--version").splitlines()[0]) if _output("qemu-nbd", "--version") else "",
        "libiscsi": package("libiscsi7"),
        "tgt": package("tgt"),
        "fio": _output("fio", "--version").strip(),
    }


def busy_percent(seconds=1.0):
    """Share of all cores that is in use now, in percent; steal counts as use."""

    def sample():
        with open("/proc/stat", encoding="utf-8") as stat:
            values = [int(value) for value in stat.readline().split()[1:9]]
        idle = values[3] + values[4]
        return sum(values), idle

    total, idle = sample()
    time.sleep(seconds)
    total_after, idle_after = sample()
    elapsed = max(1, total_after - total)
    return 100.0 * (1 - (idle_after - idle) / elapsed)


def cpu_seconds(pid):
    """User and system time of all threads of a process, ended ones included."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid):
    """Resident memory in MiB."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0
