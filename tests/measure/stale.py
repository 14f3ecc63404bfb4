#!/usr/bin/env python3
"""The share of new connections that a stale generation answers after ten generations, with signals
lost, late or doubled. Half a request keeps each older generation alive.

    tests/measure/stale.py [--connections 1000] [--every 1.0] [--only VERSION]
"""

import argparse
import os
import signal
import time

from stage import Stage, config, half_a_request, haproxies, isolate, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--connections", type=int, default=1000)
parser.add_argument("--every", type=float, default=1.0, help="seconds between two reloads")
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()

GENERATIONS = 10
USR1, TTOU = int(signal.SIGUSR1), int(signal.SIGTTOU)
FIRST = f"deaf:{USR1}:1 deaf:{TTOU}:1"
EVERY = f"deaf:{USR1}:0 deaf:{TTOU}:0"
TWICE = f"twice:{USR1} twice:{TTOU}"
OLDER = range(1, GENERATIONS)
FAULTS = {
    "nothing lost": {},
    "the first SIGUSR1 of one lost": {9: f"deaf:{USR1}:1"},
    "the first SIGUSR1 of two lost": {8: f"deaf:{USR1}:1", 9: f"deaf:{USR1}:1"},
    "the first of every signal lost, in each": dict.fromkeys(OLDER, FIRST),
    "every SIGUSR1 and SIGTTOU lost, in one": {9: EVERY},
    "every SIGUSR1 and SIGTTOU lost, in two": {8: EVERY, 9: EVERY},
    "every signal heard twice": dict.fromkeys(OLDER, TWICE),
    "stopped (SIGSTOP) at the moment of the signal": {},
    "two reloads racing": {},
    "the supervisor killed between ready and the signal": {9: f"deaf:{TTOU}:0"},
    "host-based routing": {},
}


def grow(stage, what):
    """Starts ten generations; returns the half requests."""
    halves = []
    hosts = what == "host-based routing"
    for tag in range(2, GENERATIONS + 1):
        begun = time.monotonic()
        half = half_a_request()
        halves.append(half)
        stage.file.write_text(config(tag, hosts=("localhost", f"b{tag}") if hosts else ()))
        if what.startswith("stopped") and tag == GENERATIONS:
            os.kill(stage.serving()[1], signal.SIGSTOP)
        if what.startswith("the supervisor") and tag == GENERATIONS:
            kill_in_the_middle(stage)
            continue
        if what.startswith("two reloads"):
            other = stage.start("other", stage.command("reload"))
            code, said, _ = stage.reload()
            assert other.wait() == 0
        else:
            code, said, _ = stage.reload()
        assert code == 0, said
        time.sleep(max(0, begun + arguments.every - time.monotonic()))
    return halves


def kill_in_the_middle(stage):
    seen = stage.said().count("ready: it has bound")
    stage.start("other", stage.command("reload"))
    wait_for("the new generation to be ready", lambda: stage.said().count("ready: it has bound") > seen)
    stage.supervisor.kill()
    stage.supervisor.wait()
    stage.run(stage.program, *stage.options)
    wait_for("the supervisor to reload", lambda: stage.reload()[0] == 0)


for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}: {GENERATIONS} generations, then {arguments.connections} new connections serial, "
          f"and as many 20 parallel", flush=True)
    for what, faults in FAULTS.items():
        with Stage() as stage:
            hosts = what == "host-based routing"
            stage.file.write_text(config(1, hosts=("localhost",) if hosts else ()))
            stage.program = stage.with_faults(haproxy, faults)
            stage.options = ("--retire-timeout", "1s")
            stage.run(stage.program, *stage.options)
            halves = grow(stage, what)
            words = []
            for clients in (1, 20):
                host = {"host": f"b{GENERATIONS}"} if hosts else {}
                report = stage.over(stage.load(clients, connections=arguments.connections, **host))
                newest = sum(token["answers"] for token in report["tokens"] if token["token"] == str(GENERATIONS))
                other = report["connections"] - newest
                words.append(f"{other} of {report['connections']}")
            lingering = sum(1 for _, state in stage.generations().values() if state == "draining")
            print(f"    {what}: not answered by the newest: {words[0]} serial, {words[1]} parallel; "
                  f"{lingering} generations lingered", flush=True)
            for half in halves:
                half.close()
