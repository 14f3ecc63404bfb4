#!/usr/bin/env python3
"""A thousand reloads under load: failed connections, and whether the broker or the
supervisor grows (first 100 reloads against the last 100).

    tests/measure/endurance.py [--count 1000] [--rate 5] [--clients 20] [--only VERSION]
"""

import argparse
import os
import pathlib
import statistics
import time

from stage import Stage, config, haproxies, isolate, listening, spread, told

parser = argparse.ArgumentParser()
parser.add_argument("--count", type=int, default=1000)
parser.add_argument("--rate", type=float, default=5)
parser.add_argument("--clients", type=int, default=20)
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()


def sample(pid):
    """(descriptors, resident KiB, anonymous KiB)"""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    memory = [int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon")]
    return (len(os.listdir(f"/proc/{pid}/fd")), *memory)


def zombies(pid):
    """Number of a process's children that have ended and were not waited for."""
    found = 0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        found += state == "Z" and parent == str(pid)
    return found


def grown(name, samples, edge):
    first, last = samples[:edge], samples[-edge:]
    words = []
    for column, unit in enumerate(("descriptors", "KiB resident", "KiB anonymous")):
        before, after = (statistics.mean(row[column] for row in rows) for rows in (first, last))
        words.append(f"{unit} {before:,.1f} -> {after:,.1f}")
    print(f"    {name}, mean of the first {edge} reloads -> of the last {edge}: {'; '.join(words)}", flush=True)


for version, haproxy in haproxies(arguments.only):
    with Stage() as stage:
        stage.file.write_text(config(1))
        stage.run(haproxy)
        inode = listening()
        load = stage.load(arguments.clients)
        time.sleep(0.5)  # load before the first reload
        samples = {stage.broker: [], stage.supervisor: []}
        failed, times = [], []
        begun = time.monotonic()
        for number in range(arguments.count):
            time.sleep(max(0, begun + number / arguments.rate - time.monotonic()))
            stage.file.write_text(config(number + 2))
            code, said, seconds = stage.reload()
            times.append(seconds)
            if code != 0:
                failed.append(said)
            for process, rows in samples.items():
                rows.append(sample(process.pid))
        took = time.monotonic() - begun
        report = stage.report(load)
        time.sleep(1)  # drained generations end
        left = zombies(stage.supervisor.pid) + zombies(stage.broker.pid)
        print(f"haproxy {version}: {arguments.count} reloads in {took:.0f} s under {arguments.clients} clients, "
              f"{len(failed)} of them failed; same socket throughout: {'yes' if listening() == inode else 'NO'}")
        print(f"    {told(report)}")
        print(f"    `bindonce reload` took: {spread(times)}")
        edge = min(100, arguments.count // 2)
        grown("broker", samples[stage.broker], edge)
        grown("supervisor", samples[stage.supervisor], edge)
        print(f"    zombies at the end: {left}; generations at the end: {len(stage.generations())}", flush=True)
        for said in failed[:3]:
            print(f"    a failed reload said: {said}")
