#!/usr/bin/env python3
"""The whole service stopped and started under load, and killed with a gap: no client is refused,
because the broker keeps the sockets.

    tests/measure/restarts.py [--times 10] [--rate 1500] [--gap 0.5] [--only VERSION]
"""

import argparse
import os
import signal
import time

from stage import Stage, config, haproxies, isolate, listening, told

parser = argparse.ArgumentParser()
parser.add_argument("--times", type=int, default=10)
parser.add_argument("--rate", type=int, default=1500, help="connections a second")
parser.add_argument("--gap", type=float, default=0.5, help="seconds without haproxy after a kill")
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()

# Enough that clients which wait in the queue do not hold the others back for long.
CLIENTS = 200


def stop(stage, haproxy):
    stage.end(stage.supervisor)


def kill(stage, haproxy):
    # The supervisor first: it would start haproxy again at once.
    pid = stage.serving()[1]
    stage.supervisor.kill()
    os.kill(pid, signal.SIGKILL)
    stage.supervisor.wait()
    time.sleep(arguments.gap)


for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}, at {arguments.rate:,} connections a second", flush=True)
    for what, end in (("stopped and started", stop), (f"killed (-9), {arguments.gap} s without", kill)):
        with Stage() as stage:
            stage.file.write_text(config(1))
            stage.run(haproxy)
            inode = listening()
            load = stage.load(CLIENTS, rate=arguments.rate)
            for _ in range(arguments.times):
                time.sleep(0.5)  # load between two
                end(stage, haproxy)
                stage.run(haproxy)
            time.sleep(0.5)
            same = "yes" if listening() == inode else "NO"
            report = stage.report(load)
            print(f"    {arguments.times} times {what}; same socket throughout: {same}\n    {told(report)}", flush=True)
