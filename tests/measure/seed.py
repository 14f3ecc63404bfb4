#!/usr/bin/env python3
"""The seed case: a plain haproxy, reloaded each second, one or two of whose processes miss their
signal; only the newest configuration knows a new host. How many of 30 requests for that host fail,
whether `bindonce doctor` names the processes and their shares, and whether its remedy helps.

    tests/measure/seed.py [--runs 20] [--reloads 5] [--every 1.0] [--only VERSION]

Each run starts from scratch. A run is right if doctor has exactly one finding, a split on the
address with exactly the deaf processes, their share of the sockets, each one's share, and the
newest process; and if doctor finds nothing after the command that it prints. Exits 1 if one is not.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from stage import PORT, Stage, ask, config, haproxies, isolate, listening, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--runs", type=int, default=20)
parser.add_argument("--reloads", type=int, default=5, help="at least 3")
parser.add_argument("--every", type=float, default=1.0, help="seconds between two reloads")
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate(alone=True)

REQUESTS = 30
NEW = "new.example"
# The fault preloaded into deaf processes: the first SIGUSR1 is lost.
LOST = f"deaf:{int(signal.SIGUSR1)}:1"


def reload(stage, program, number, older):
    """Starts haproxy as a reload does, with the older one's pid. Returns when it has answered."""
    hosts = ("localhost", NEW) if number > arguments.reloads else ("localhost",)
    stage.file.write_text(config(number, hosts=hosts))
    told = ["-sf", str(older.pid)] if older else []
    command = ["env", f"BINDONCE_GENERATION={number}", program, "-db", "-f", stage.file, *told]
    process = stage.start("haproxy", command)
    wait_for(f"configuration {number} to answer", lambda: ask()[1] == str(number))
    return process


def grow(stage, program, deaf):
    """Does all reloads; returns the processes that are left, the newest last."""
    processes = []
    due = time.monotonic()
    for number in range(1, arguments.reloads + 2):
        processes.append(reload(stage, program, number, processes[-1] if processes else None))
        due += arguments.every
        time.sleep(max(0, due - time.monotonic()))
    wait_for("the others to end", lambda: sum(one.poll() is None for one in processes) == len(deaf) + 1)
    return [one for one in processes if one.poll() is None]


def table():
    """Whether the newest configuration answered each request for the new host."""
    newest = str(arguments.reloads + 1)
    answers = [ask(NEW) for _ in range(REQUESTS)]
    return [" 200 " in status and tag == newest for status, tag in answers]


def wrong(report, left):
    """Returns what is wrong with doctor's report; empty if it is right."""
    *older, newest = [process.pid for process in left]
    found = [one for one in report["findings"] if one["severity"] != "note"]
    if [one["kind"] for one in found] != ["split"]:
        return f"findings {[(one['kind'], one['summary']) for one in found]}"
    split, evidence = found[0], found[0]["evidence"]
    share = 100 / len(left)
    expected = {
        "address": (split["address"], f"127.0.0.1:{PORT}"),
        "pids": (split["pids"], older),
        "sockets": (evidence["sockets"], len(left)),
        "stale sockets": (evidence["stale_sockets"], len(older)),
        "stale percent": (round(evidence["stale_percent"], 1), round(share * len(older), 1)),
        "newest": (evidence["newest_pid"], newest),
        "shares": (sorted(evidence["share"]), sorted(f"pid {pid}: {share:.0f} %" for pid in (*older, newest))),
    }
    return "; ".join(f"{what}: {said}, not {meant}" for what, (said, meant) in expected.items() if said != meant)


def cure(stage, report, left):
    """Runs the remedy's first command; returns what is wrong afterwards."""
    split = next(one for one in report["findings"] if one["kind"] == "split")
    subprocess.run(["sh", "-c", split["remedy"][0]], check=True)
    wait_for("the older to end", lambda: all(process.poll() is not None for process in left[:-1]))
    code, after = stage.doctor()
    found = [(one["kind"], one["summary"]) for one in after["findings"] if one["severity"] != "note"]
    failed = table().count(False)
    return "" if code == 0 and not found and not failed else f"afterwards: {found}, {failed} failed"


def run(haproxy, deaf):
    """One run; returns failed requests, doctor's summaries in one line, and what was wrong."""
    with Stage(broker=False) as stage:
        program = stage.with_faults(haproxy, dict.fromkeys(deaf, LOST))
        left = grow(stage, program, deaf)
        assert len(listening()) == len(left), listening()
        failed = table().count(False)
        code, report = stage.doctor()
        bad = wrong(report, left) if code == 3 else f"exit code {code}"
        bad = bad or cure(stage, report, left)
        said = "; ".join(one["summary"] for one in report["findings"] if one["severity"] != "note")
        return failed, said, bad


mistaken = 0
for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}, {arguments.reloads} reloads, one in {arguments.every:g} s; {arguments.runs} runs each", flush=True)
    for deaf in ([2], [2, 3]):
        seen = [run(haproxy, deaf) for _ in range(arguments.runs)]
        failed = [one[0] for one in seen]
        right = sum(not bad for _, _, bad in seen)
        mistaken += len(seen) - right
        mean = sum(failed) / len(failed)
        print(f"    {len(deaf) + 1} processes: {mean:.1f} of {REQUESTS} requests failed on average "
              f"({min(failed)} to {max(failed)}; all runs: {sum(failed)} of {REQUESTS * len(failed)}); doctor right in "
              f"{right} of {len(seen)} runs\n        {seen[0][1]}", flush=True)
        for number, (_, said, bad) in enumerate(seen, 1):
            if bad:
                print(f"        run {number} wrong: {bad}\n            it said: {said}", flush=True)
sys.exit(1 if mistaken else 0)
