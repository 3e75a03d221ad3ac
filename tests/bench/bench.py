"""Comparison of berth with qemu-nbd: the same LUN, the same fio workloads, A B A B, medians of the rounds."""

import argparse
import json
import os
import shutil
import sys
import tempfile

import machine
import plot
import report
import servers
import workload

QUIET_PERCENT = 15.0


def arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds: shows that it works, proves no number")
    parser.add_argument("--json", metavar="FILE", help="write every sample and all medians there")
    parser.add_argument("--docs", action="store_true", help="write docs/bench.{md,json} and the plots beside them")
    parser.add_argument("--gate", action="store_true", help="exit with 1 when a gate is missed")
    parser.add_argument("--rounds", type=int, help="rounds per case (5; quick: 2)")
    parser.add_argument("--seconds", type=int, help="seconds per run of fio (3; quick: 1)")
    parser.add_argument("--targets", default="portal,tgt,tgt-installed", help="which of: " + ", ".join(servers.TARGETS))
    parser.add_argument("--servers", default="qemu,berth,berth-b,berth-dd", help="which of: " + ", ".join(servers.SERVERS))
    parser.add_argument("--cases", default="", help="only cases whose name contains this, for example '4k'")
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the LUN")
    parser.add_argument("--programs", default="target/release", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 3)
    return options


def measure(target_name, options, cases, folder):
    """All cases on one target: {case: {server: [sample of each round]}}."""
    target = servers.TARGETS[target_name](folder, options.programs, options.size_mib)
    running = []
    try:
        print(f"\n{target.title}: {options.rounds} rounds of {options.seconds} s", flush=True)
        for name in options.servers.split(","):
            running.append(servers.SERVERS[name](name, folder, options.programs, target))
        # A fresh qemu-nbd is two to three times slower at 128k than one that has seen 1m I/O. Everybody is warmed alike.
        for server in running:
            workload.fill(server)
            for case in workload.CASES[-2:]:
                workload.run(case, server, options.seconds)
        samples = {}
        for case in cases:
            of_case = samples[case.name] = {server.name: [] for server in running}
            for number in range(options.rounds):
                # The order turns from round to round, so that nobody always comes after the same neighbour.
                for server in running[number % len(running):] + running[:number % len(running)]:
                    of_case[server.name].append(workload.run(case, server, options.seconds))
            print(report.progress(case, of_case), flush=True)
        memory = {server.name: round(machine.rss_mib(server.pid), 1) for server in running}
        return target.title, samples, memory
    finally:
        for server in running:
            server.close()
        target.close()


def main():
    options = arguments()
    cases = [case for case in workload.CASES if options.cases in case.name]
    if not cases:
        sys.exit(f"no case has {options.cases!r} in its name")
    busy_before = machine.busy_percent()
    if busy_before > QUIET_PERCENT:
        print(f"WARNING: the machine is {busy_before:.0f} % busy with other things; the figures mean little", file=sys.stderr)
    result = {"machine": machine.facts(), "rounds": options.rounds, "seconds": options.seconds, "targets": {}}
    text = []
    for name in options.targets.split(","):
        folder = tempfile.mkdtemp(prefix="berth-bench-")
        try:
            title, samples, memory = measure(name, options, cases, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        summary = report.summarise(name, title, samples, memory)
        result["targets"][name] = summary
        text.append(report.table(summary))
        print("\n" + text[-1], flush=True)
    result["busy_percent"] = {"before": round(busy_before, 1), "after": round(machine.busy_percent(), 1)}
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    if options.docs:
        docs = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs")
        write_docs(docs, result, text)
    missed = report.missed_gates(result)
    for line in missed:
        print("missed:", line)
    sys.exit(1 if missed and options.gate else 0)


def write_docs(docs, result, text):
    """The page, the samples and a plot per target."""
    with open(os.path.join(docs, "bench.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    for name, summary in result["targets"].items():
        with open(os.path.join(docs, f"bench-{name}.svg"), "w", encoding="utf-8") as file:
            file.write(plot.svg(summary))
    with open(os.path.join(docs, "bench.md"), "w", encoding="utf-8") as file:
        file.write(report.page(result, text))


if __name__ == "__main__":
    main()
