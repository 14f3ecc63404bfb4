#!/usr/bin/env python3
"""False findings: `bindonce doctor` runs repeatedly on a host whose haproxy is healthy and is
reloaded continuously under load, with clients that keep each replaced generation draining for a
while. Under bindonce, and in the usual ways without it.

    tests/measure/healthy.py [--runs 1000] [--every 1.0] [--only VERSION] [--ways under,unheard,plain,master]

Every finding but a note is false here, and printed whole. A run is one call of doctor. Exits 1 if
there was a false finding, if a reload failed, or if a request under bindonce failed or was answered
stale. The way `master` skips the haproxies of tests/haproxies.
"""

import argparse
import collections
import json
import os
import random
import signal
import statistics
import sys
import threading
import time

from stage import ROOT, Stage, ask, config, half_a_request, haproxies, isolate, told

parser = argparse.ArgumentParser()
parser.add_argument("--runs", type=int, default=1000)
parser.add_argument("--every", type=float, default=1.0, help="seconds between two reloads")
parser.add_argument("--pause", type=float, default=0.1, help="seconds at most between two runs of doctor")
parser.add_argument("--rate", type=int, default=200, help="new connections a second")
parser.add_argument("--ways", default="under,unheard,plain,master")
parser.add_argument("--descriptors", type=int, default=0, help="so many thousand of other processes, which make a look long")
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate(alone=True)

# Seconds without an answer of the new configuration after which a reload counts as lost.
PATIENCE = 5.0
# Seconds that a slow client takes to send its request: its generation drains for that time.
SLOW = 2.0


class Way:
    """How haproxy is started and reloaded."""

    # Number of signals without effect.
    lost = 0
    # More arguments for doctor.
    arguments = ()


class Under(Way):
    """`bindonce run -- haproxy`, and `bindonce reload`."""

    words = "under bindonce, `bindonce reload`"
    broker = True

    def __init__(self, stage, haproxy):
        self.stage = stage
        stage.run(haproxy)

    def reload(self, number):
        code, said, _ = self.stage.reload()
        if code != 0:
            raise SystemExit(f"a reload failed: {said}")


class Unheard(Under):
    """The same, but doctor does not find the broker's socket."""

    words = "under bindonce, `bindonce reload`, the broker not found by doctor"
    arguments = ("--socket", "/nowhere/bindonce.sock")


class Plain(Way):
    """`haproxy -f FILE -sf PID`."""

    words = "without bindonce, `haproxy -sf PID`"
    broker = False

    def __init__(self, stage, haproxy):
        self.stage, self.haproxy, self.process = stage, haproxy, None
        self.reload(1)

    def reload(self, number):
        told_to_stop = ["-sf", str(self.process.pid)] if self.process else []
        command = [self.haproxy, "-db", "-f", self.stage.file, *told_to_stop]
        self.process = self.stage.start("haproxy", command)
        if not answered(number):
            raise SystemExit(f"configuration {number} did not answer")


class Master(Way):
    """`haproxy -W`, and SIGUSR2 to the master, repeated if the master lost it."""

    words = "without bindonce, `haproxy -W` and SIGUSR2"
    broker = False

    def __init__(self, stage, haproxy):
        self.process = stage.start("haproxy", [haproxy, "-W", "-db", "-f", stage.file])
        answered(1)

    def reload(self, number):
        self.process.send_signal(signal.SIGUSR2)
        while not answered(number, PATIENCE):
            self.lost += 1
            self.process.send_signal(signal.SIGUSR2)


WAYS = {"under": Under, "unheard": Unheard, "plain": Plain, "master": Master}


def answered(number, patience=30):
    """Whether this configuration has answered in time."""
    until = time.monotonic() + patience
    while ask()[1] != str(number):
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


class Reloads(threading.Thread):
    """Reloads until told to stop, with a slow client before each."""

    def __init__(self, stage, way):
        super().__init__(daemon=True)
        self.stage, self.way, self.number = stage, way, 1
        self.slow, self.over, self.failed = collections.deque(), threading.Event(), None

    def run(self):
        try:
            due = time.monotonic() + arguments.every
            while not self.over.wait(max(0, due - time.monotonic())):
                while self.slow and self.slow[0][0] <= time.monotonic():
                    self.slow.popleft()[1].close()
                # So few that doctor does not even mention the draining generations.
                if len(self.slow) < 3:
                    self.slow.append((time.monotonic() + SLOW, half_a_request()))
                self.number += 1
                self.stage.file.write_text(config(self.number))
                self.way.reload(self.number)
                due = max(due + arguments.every, time.monotonic())
        except (Exception, SystemExit) as error:  # `measure` prints it
            self.failed = error
        finally:
            for _, client in self.slow:
                client.close()

    def end(self):
        self.over.set()
        self.join(60)
        return self.number - 1


def fetched(haproxy):
    return haproxy.startswith(str(ROOT))


def pad(stage):
    """Starts other processes with a thousand descriptors each, which doctor has to look at."""
    with open("/dev/null") as null:
        copies = [os.dup(null.fileno()) for _ in range(1000 if arguments.descriptors else 0)]
        for _ in range(arguments.descriptors):
            stage.start("sleep", ["sleep", "infinity"], pass_fds=copies)
        for copy in copies:
            os.close(copy)


def measure(way, haproxy):
    """Prints one row; returns the number of false findings, and whether bindonce failed."""
    with Stage(broker=way.broker) as stage:
        stage.file.write_text(config(1))
        pad(stage)
        reloads = Reloads(stage, way(stage, haproxy))
        load = stage.load(4, rate=arguments.rate)
        reloads.start()
        false, notes, took = [], collections.Counter(), []
        pauses = random.Random(1)
        begun = time.monotonic()
        for run in range(1, arguments.runs + 1):
            if reloads.failed:
                break
            _, report = stage.doctor(*way.arguments)
            took.append(report["milliseconds"])
            # The next look comes at any moment of a reload.
            time.sleep(pauses.uniform(0, arguments.pause))
            for finding in report["findings"]:
                if finding["severity"] == "note":
                    notes[finding["kind"]] += 1
                else:
                    false.append((run, finding, report))
        spent = time.monotonic() - begun
        count = reloads.end()
        seen = stage.report(load)
        lost = f", {reloads.way.lost} of the master's signals lost" if reloads.way.lost else ""
        print(f"    {way.words}: {len(took)} runs of doctor in {spent:.0f} s ({statistics.median(took):.0f} ms in the median, "
              f"{max(took)} ms at most) over {count} reloads{lost}: {len(false)} false findings in "
              f"{len({run for run, _, _ in false})} runs\n    notes: {dict(notes) or 'none'}\n    clients: {told(seen)}", flush=True)
        for run, finding, report in false:
            print(f"      run {run}: {json.dumps(finding)}", flush=True)
            about = [one for one in report["sockets"] if one["address"] == finding["address"]]
            print(f"          sockets: {json.dumps(about)}\n          processes: {json.dumps(report['processes'])}", flush=True)
        if reloads.failed:
            print(f"    FAILED: {reloads.failed!r}\n{stage.said('run' if issubclass(way, Under) else 'haproxy')[-2000:]}", flush=True)
        return len(false), bool(reloads.failed) or (issubclass(way, Under) and seen["failed"] + seen["stale"] > 0)


bad = 0
for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}, a reload every {arguments.every:g} s, {arguments.rate} new connections a second", flush=True)
    ways = [name for name in arguments.ways.split(",") if name != "master" or not fetched(haproxy)]
    for name in ways:
        false, failed = measure(WAYS[name], haproxy)
        bad += false + failed
sys.exit(1 if bad else 0)
