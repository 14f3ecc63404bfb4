#!/usr/bin/env python3
"""Reloads in a row under load: what the clients saw, how many sockets there were.

    tests/measure/reloads.py [--count 200] [--rate 5] [--clients 20] [--only VERSION]
"""

import argparse
import collections
import time

from stage import Stage, config, haproxies, isolate, listening, spread, told

parser = argparse.ArgumentParser()
parser.add_argument("--count", type=int, default=200)
parser.add_argument("--rate", type=float, default=5)
parser.add_argument("--clients", type=int, default=20)
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()

for version, haproxy in haproxies():
    if not version.startswith(arguments.only):
        continue
    with Stage() as stage:
        stage.file.write_text(config(1))
        stage.run(haproxy)
        inodes, most, times, failed = collections.Counter(), 0, [], []
        load = stage.load(arguments.clients)
        time.sleep(0.5)  # load before the first reload, not an event that is waited for
        begun = time.monotonic()
        for number in range(arguments.count):
            time.sleep(max(0, begun + number / arguments.rate - time.monotonic()))
            stage.file.write_text(config(number + 2))
            code, said, seconds = stage.reload()
            if code != 0:
                failed.append(said)
            times.append(seconds)
            shown = listening()
            most = max(most, len(shown))
            inodes.update(shown)
        took = time.monotonic() - begun
        report = stage.report(load)
        print(f"haproxy {version}: {arguments.count} reloads in {took:.1f} s under {arguments.clients} clients, "
              f"{len(failed)} of them failed")
        print(f"    {told(report)}")
        print(f"    sockets on the address at every look: at most {most}; inodes seen: {len(inodes)}")
        print(f"    `bindonce reload` took: {spread(times)}", flush=True)
        for said in failed[:3]:
            print(f"    a failed reload said: {said}")
