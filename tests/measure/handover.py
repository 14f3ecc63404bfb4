#!/usr/bin/env python3
"""Handovers of every kind: ghosts that they leave (entries of the listeners in the older
generation's epoll sets, by fdinfo), how long no process accepts, and answers of an older generation
after the first answer of a newer one.

    tests/measure/handover.py [--each 25] [--only VERSION]

With --each 25 it makes 300 handovers of each haproxy: 1, 20 and 200 listeners, 2 and 8 threads,
idle and under 20 clients.
"""

import argparse
import re
import statistics
import time

from stage import PORT, Stage, config, ghosts, half_a_request, haproxies, isolate, listening, ms

parser = argparse.ArgumentParser()
parser.add_argument("--each", type=int, default=25)
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()

# The supervisor's own time: from the first signal until the proof that no process accepts.
PAUSE = re.compile(r"no process accepts any more.*took=([0-9.]+)(ms|µs|s)")
MILLISECONDS = {"ms": 1.0, "µs": 0.001, "s": 1000.0}


def pauses(said):
    return [float(value) * MILLISECONDS[unit] / 1000 for value, unit in PAUSE.findall(said)]


for version, haproxy in haproxies(arguments.only):
    totals = {"handovers": 0, "left": 0, "possible": 0, "stale": 0, "failed": 0, "connections": 0}
    every = []
    print(f"haproxy {version}", flush=True)
    for listeners in (1, 20, 200):
        for threads in (2, 8):
            for clients in (0, 20):
                with Stage() as stage:
                    ports = [PORT, *range(20000, 20000 + listeners - 1)]
                    stage.file.write_text(config(1, ports, threads=threads))
                    stage.run(haproxy, "--log-level", "info,bindonce_haproxy=debug")
                    inodes = [inode for port in ports for inode in listening(port)]
                    load = stage.load(clients) if clients else None
                    left = late = 0
                    for number in range(arguments.each):
                        generation, pid = stage.serving()
                        half = half_a_request()
                        stage.file.write_text(config(number + 2, ports, threads=threads))
                        code, said, _ = stage.reload()
                        assert code == 0, said
                        left += ghosts(pid, inodes)
                        deadline = time.monotonic() + 0.5
                        while ghosts(pid, inodes) and time.monotonic() < deadline:
                            time.sleep(0.005)
                        late += ghosts(pid, inodes)
                        half.close()
                    took = pauses(stage.said())
                    every += took
                    line = (f"    {listeners:3} listeners, {threads} threads, {clients:2} clients: {arguments.each} handovers, "
                            f"ghosts: {left} when `reload` returned, {late} half a second later; paused "
                            f"{ms(statistics.median(took))} in the median, {ms(max(took))} at most")
                    if load:
                        report = stage.report(load)
                        totals["stale"] += report["stale"]
                        totals["failed"] += report["failed"]
                        totals["connections"] += report["connections"]
                        line += (f"; {report['connections']:,} connections, {report['failed']} failed, {report['stale']} stale, "
                                 f"longest wait {report['answer']['max_ms']:.1f} ms")
                    print(line, flush=True)
                    totals["handovers"] += arguments.each
                    totals["left"] += late
                    totals["possible"] += arguments.each * listeners * threads
    print(f"  {version} in all: {totals['handovers']} handovers, {totals['left']} ghosts left of {totals['possible']:,} "
          f"possible; accepting paused {ms(statistics.median(every))} in the median, {ms(max(every))} at most; "
          f"{totals['connections']:,} connections, {totals['failed']} failed, {totals['stale']} answered by an older "
          f"generation after a newer had answered", flush=True)
