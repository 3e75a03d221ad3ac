"""The workloads, as fio runs them over NBD."""

import json
import subprocess
from dataclasses import dataclass

import machine


@dataclass(frozen=True)
class Case:
    """One workload: what fio is told."""

    name: str
    pattern: str
    block: str
    depth: int

    @property
    def writes(self):
        return self.pattern.endswith("write")


# A gibibyte takes seconds; longer means that something hangs.
FILL_LIMIT_S = 120

CASES = [
    Case("randread 4k QD1", "randread", "4k", 1),
    Case("randread 4k QD32", "randread", "4k", 32),
    Case("randwrite 4k QD1", "randwrite", "4k", 1),
    Case("randwrite 4k QD32", "randwrite", "4k", 32),
    Case("read 128k QD8", "read", "128k", 8),
    Case("write 128k QD8", "write", "128k", 8),
    Case("read 1m QD4", "read", "1m", 4),
    Case("write 1m QD4", "write", "1m", 4),
]


@dataclass(frozen=True)
class Sample:
    """What one run of one case gave."""

    iops: float
    mb_per_s: float
    p50_us: float
    p99_us: float
    cpu_us_per_io: float

    def as_dict(self):
        return {name: round(value, 3) for name, value in self.__dict__.items()}


def fill(server):
    """Writes the whole LUN once through `server`.

    QEMU asks GET LBA STATUS before it reads where it has never written or read, and reads nothing where nothing is
    allocated: unfilled, that is what would be measured.
    """
    command = ["fio", "--name=fill", "--ioengine=nbd", f"--uri={server.uri}", "--rw=write", "--bs=1m", "--iodepth=4", "--thread"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FILL_LIMIT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"fio fills the LUN through {server.name}: {done.stderr or done.stdout}")


def run(case, server, seconds):
    """Runs `case` against `server` and gives its sample; any I/O error ends the bench."""
    command = [
        "fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={case.pattern}", f"--bs={case.block}",
        f"--iodepth={case.depth}", "--time_based", f"--runtime={seconds}", "--norandommap", "--randrepeat=0",
        "--thread", "--refill_buffers=0", "--output-format=json",
    ]
    # No ramp-up: the CPU time below must belong to exactly the I/O that fio counts.
    before = machine.cpu_seconds(server.pid)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    spent = machine.cpu_seconds(server.pid) - before
    if done.returncode != 0:
        raise RuntimeError(f"fio against {server.name}, {case.name}: {done.stderr or done.stdout}")
    # fio may print a note before the JSON.
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio against {server.name}, {case.name}: error {job['error']}")
    side = job["write" if case.writes else "read"]
    if side["total_ios"] == 0:
        raise RuntimeError(f"fio against {server.name}, {case.name}: no I/O was done")
    percentile = side["clat_ns"]["percentile"]
    return Sample(
        iops=side["iops"],
        mb_per_s=side["bw_bytes"] / 1e6,
        p50_us=percentile["50.000000"] / 1e3,
        p99_us=percentile["99.000000"] / 1e3,
        cpu_us_per_io=spent * 1e6 / side["total_ios"],
    )
