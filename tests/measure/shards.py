#!/usr/bin/env python3
"""New connections a second on one queue and on several: plain haproxy with `shards by-thread`,
which has a socket for each thread, and the same configuration under bindonce, where all threads
accept from one socket.

    tests/measure/shards.py [--seconds 5] [--times 3] [--threads CORES] [--clients 20] [--only VERSION]

Both answer in turns on one machine, each connection one request. The clients need CPU time too: on
a machine of few cores they set the rate, and the ratio says what one queue costs a whole host.
"""

import argparse
import os
import statistics

from stage import PORT, Stage, ask, config, haproxies, isolate, listening, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--seconds", type=int, default=5)
parser.add_argument("--times", type=int, default=3)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--clients", type=int, default=20)
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()

BIND = f"bind 127.0.0.1:{PORT}"


def rate(stage, sockets):
    """Connections a second; none may fail."""
    wait_for("an answer", lambda: ask()[1] == "1")
    found = len(set(listening()))
    assert found == sockets, f"{found} sockets"
    report = stage.over(stage.load(arguments.clients, duration=f"{arguments.seconds}s"))
    assert report["failed"] == 0, report
    return report["per_second"]


def measured(haproxy, plain):
    with Stage(broker=not plain) as stage:
        text = config(1, threads=arguments.threads)
        stage.file.write_text(text.replace(BIND, f"{BIND} shards by-thread", 1))
        if plain:
            stage.start("haproxy", [haproxy, "-db", "-f", str(stage.file)])
            return rate(stage, arguments.threads)
        stage.run(haproxy)
        return rate(stage, 1)


for version, haproxy in haproxies(arguments.only):
    several, one = [], []
    for _ in range(arguments.times):
        several.append(measured(haproxy, True))
        one.append(measured(haproxy, False))
    ratios = [queue / queues for queue, queues in zip(one, several)]
    print(f"haproxy {version}, {arguments.threads} threads, {arguments.clients} clients, {os.cpu_count()} cores: "
          f"{statistics.median(several):,.0f} connections a second with a socket for each thread, "
          f"{statistics.median(one):,.0f} from one queue: {statistics.median(ratios):.2f} of it "
          f"({min(ratios):.2f} to {max(ratios):.2f} in {arguments.times} pairs)", flush=True)
