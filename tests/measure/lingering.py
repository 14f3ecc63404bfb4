#!/usr/bin/env python3
"""Cost of nine lingering generations: throughput compared with none, CPU of each under 1,000
connections a second and while a connection waits in the queue.

    tests/measure/lingering.py [--seconds 10] [--only VERSION]
"""

import argparse
import os
import signal
import socket
import time

from stage import PORT, Stage, config, cpu, ghosts, half_a_request, haproxies, isolate, listening

parser = argparse.ArgumentParser()
parser.add_argument("--seconds", type=int, default=10)
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()
SPAN = f"{arguments.seconds}s"


def shares(pids, during):
    """The share of a core that each process used while `during` ran."""
    before, begun = [cpu(pid) for pid in pids], time.monotonic()
    during()
    took = time.monotonic() - begun
    return [(cpu(pid) - used) / took for pid, used in zip(pids, before)]


def percent(values):
    return f"{max(values) * 100:.2f} % of a core at most, {sum(values) / len(values) * 100:.2f} % on average"


for version, haproxy in haproxies(arguments.only):
    with Stage() as stage:
        stage.file.write_text(config(1, threads=2))
        stage.run(haproxy)
        inodes = listening()
        alone = [stage.over(stage.load(20, duration=SPAN))["per_second"]]
        halves, draining = [], []
        for tag in range(2, 11):
            halves.append(half_a_request())
            draining.append(stage.serving()[1])
            stage.file.write_text(config(tag, threads=2))
            code, said, _ = stage.reload()
            assert code == 0, said
        beside = [stage.over(stage.load(20, duration=SPAN))["per_second"]]
        under_load = shares(draining, lambda: stage.over(stage.load(20, rate=1000, duration=SPAN)))

        def wait_in_the_queue():
            pid = stage.serving()[1]
            os.kill(pid, signal.SIGSTOP)
            try:
                with socket.create_connection(("127.0.0.1", PORT)):
                    time.sleep(arguments.seconds / 2)  # the measured span
            finally:
                os.kill(pid, signal.SIGCONT)

        waiting = shares(draining, wait_in_the_queue)
        left = sum(ghosts(pid, inodes) for pid in draining)
        beside.append(stage.over(stage.load(20, duration=SPAN))["per_second"])
        for half in halves:
            half.close()
        time.sleep(1)  # the nine generations end
        alone.append(stage.over(stage.load(20, duration=SPAN))["per_second"])
        ratio = sum(beside) / sum(alone)
        print(f"haproxy {version}: 20 parallel: {alone[0]:,.0f} and {alone[1]:,.0f} requests per second with none lingering, "
              f"{beside[0]:,.0f} and {beside[1]:,.0f} with nine: {ratio:.2f}\n"
              f"    each lingering one under 1,000 connections a second: {percent(under_load)}\n"
              f"    while a connection waits in the queue: {percent(waiting)}\n"
              f"    ghosts in their epoll sets: {left}", flush=True)
