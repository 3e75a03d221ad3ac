"""Medians, ratios, gates and tables."""

from statistics import median

FIELDS = ("iops", "mb_per_s", "p50_us", "p99_us", "cpu_us_per_io")

# What a design without batching or with copies cannot reach. Case: least IOPS ratio, greatest CPU ratio to qemu-nbd.
GATES = {
    "portal": {
        "randread 4k QD1": (1.2, 0.65), "randread 4k QD32": (2.2, 0.30),
        "randwrite 4k QD1": (1.2, 0.65), "randwrite 4k QD32": (2.2, 0.30),
        "read 128k QD8": (0.95, 0.80), "write 128k QD8": (1.0, 0.95),
        "read 1m QD4": (2.2, 0.28), "write 1m QD4": (1.8, 0.48),
    },
    # IOPS on tgt: not behind, beyond the noise that the null control shows.
    "tgt": {
        "randread 4k QD1": (None, 0.65), "randread 4k QD32": (None, 0.65),
        "randwrite 4k QD1": (None, 0.65), "randwrite 4k QD32": (None, 0.65),
        "read 128k QD8": (None, 0.70), "write 128k QD8": (None, 0.30),
        "read 1m QD4": (None, 0.40), "write 1m QD4": (None, 0.40),
    },
}

# The same ones: they were found where segments have 8 KiB, and are stricter with longer ones.
GATES["tgt-installed"] = GATES["tgt"]

# Both digests on, on our own target: how much more CPU per I/O than without.
DIGEST_COST_MAX = {"4k": 1.15, "128k": 1.30, "1m": 1.30}


def medians(samples):
    return {field: median(getattr(sample, field) for sample in samples) for field in FIELDS}


def ratio(value, base):
    return value / base if base else 0.0


def summarise(name, title, samples, memory):
    """Everything of one target, ready to be printed or stored."""
    cases = {}
    for case, of_case in samples.items():
        base_name = next(iter(of_case))
        base = medians(of_case[base_name])
        rows = {}
        for server, of_server in of_case.items():
            row = medians(of_server)
            row["iops_ratio"] = ratio(row["iops"], base["iops"])
            row["cpu_ratio"] = ratio(row["cpu_us_per_io"], base["cpu_us_per_io"])
            row["rounds"] = [sample.as_dict() for sample in of_server]
            rows[server] = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        cases[case] = rows
    return {"name": name, "title": title, "cases": cases, "memory_mib": memory}


def progress(case, of_case):
    parts = [f"{name} {median(s.iops for s in samples):.0f}" for name, samples in of_case.items()]
    return f"  {case.name:<18} IOPS: " + ", ".join(parts)


def table(summary):
    """A Markdown table that also reads well on a terminal."""
    head = ("case", "server", "IOPS", "MB/s", "p50 us", "p99 us", "CPU us/IO", "IOPS ratio", "CPU ratio")
    lines = [head]
    for case, rows in summary["cases"].items():
        for number, (server, row) in enumerate(rows.items()):
            lines.append((
                case if number == 0 else "", server, f"{row['iops']:.0f}", f"{row['mb_per_s']:.0f}", f"{row['p50_us']:.0f}",
                f"{row['p99_us']:.0f}", f"{row['cpu_us_per_io']:.1f}", f"{row['iops_ratio']:.2f}", f"{row['cpu_ratio']:.2f}",
            ))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def format_line(line):
        cells = [cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 2) if column < 2 else "-" * (width + 1) + ":" for column, width in enumerate(widths)) + "|"
    memory = ", ".join(f"{server} {mib:.0f} MiB" for server, mib in summary["memory_mib"].items())
    return "\n".join([f"**{summary['title']}**", "", format_line(head), rule, *map(format_line, lines[1:]), "", f"Resident memory at the end: {memory}."])


def missed_gates(result):
    """One line per gate that was not met."""
    missed = []
    for target, summary in result["targets"].items():
        for case, rows in summary["cases"].items():
            if "berth" not in rows or "qemu" not in rows:
                continue
            berth = rows["berth"]
            least_iops, most_cpu = GATES[target][case]
            if least_iops is None:
                least_iops = 1 - noise(rows)
            if berth["iops_ratio"] < least_iops:
                missed.append(f"{target}, {case}: IOPS ratio {berth['iops_ratio']:.2f}, at least {least_iops:.2f}")
            if berth["cpu_ratio"] > most_cpu:
                missed.append(f"{target}, {case}: CPU ratio {berth['cpu_ratio']:.2f}, at most {most_cpu:.2f}")
            if target == "portal" and "berth-dd" in rows:
                cost = ratio(rows["berth-dd"]["cpu_us_per_io"], berth["cpu_us_per_io"])
                most = DIGEST_COST_MAX[case.split()[1]]
                if cost > most:
                    missed.append(f"{target}, {case}: digests cost {cost:.2f} of the CPU without, at most {most:.2f}")
    return missed


def noise(rows):
    """What the null control differs by, in IOPS; at least 5 %."""
    control = rows.get("berth-b")
    if control is None:
        return 0.05
    return max(0.05, abs(ratio(control["iops"], rows["berth"]["iops"]) - 1))


def page(result, tables):
    """docs/bench.md."""
    facts = result["machine"]
    lines = [
        "# berth and qemu-nbd on the same LUN",
        "",
        "Made by `tests/bench/run --docs`; do not edit. Every server has one session to the same LUN; fio drives one at a time, in turn.",
        f"Medians of {result['rounds']} rounds of {result['seconds']} s. `berth-b` is a second, identical berth: what differs between the two is noise.",
        "`berth-dd` has header and data digests on (CRC32C); qemu-nbd's initiator has no data digest, so its figures are without.",
        "CPU is user and system time of the NBD server per I/O; all servers are warmed with 1m I/O first, because a fresh qemu-nbd is slower.",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}; {facts['qemu']}, libiscsi {facts['libiscsi']}, tgt {facts['tgt']}, "
        f"{facts['fio']}; berth {facts['commit']}, {facts['date']}.",
        f"The machine was {result['busy_percent']['before']} % busy before and {result['busy_percent']['after']} % after the run.",
        "",
    ]
    for (name, _), text in zip(result["targets"].items(), tables):
        lines += [f"![{name}](bench-{name}.svg)", "", text, ""]
    return "\n".join(lines)
