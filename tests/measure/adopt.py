#!/usr/bin/env python3
"""A plain haproxy's sockets adopted under load, as docs/migrating.md does it: `adopt`, `run`,
`adopt --retire`, and reloads on the adopted sockets. Nothing fails, and the sockets stay.

    tests/measure/adopt.py [--times 5] [--only VERSION] [--bind 'shards by-thread']
"""

import argparse
import time

from stage import PORT, Stage, config, haproxies, isolate, listening, told, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--times", type=int, default=5)
parser.add_argument("--only", default="", help="only versions that begin with this")
parser.add_argument("--bind", default="", help="options of the bind line")
arguments = parser.parse_args()
isolate()


def written(stage, tag):
    text = config(tag, threads=4).replace(f":{PORT}\n", f":{PORT} {arguments.bind}\n")
    return text.replace("global\n", f"global\n    stats socket {stage.directory}/admin.sock level admin expose-fd listeners\n")


def walk(stage, haproxy):
    """One adoption; returns what went wrong, and the load's report."""
    stage.file.write_text(written(stage, 1))
    plain = stage.start("plain", [haproxy, "-db", "-f", stage.file])
    before = set(wait_for("haproxy to listen", listening))
    load = stage.load()
    time.sleep(1)  # load alone
    wrong = []

    def step(*command):
        said = stage.bindonce(*command)
        if said.returncode != 0:
            wrong.append(f"{' '.join(command)}: {said.stdout}{said.stderr}")

    step("adopt", "--stats-socket", f"{stage.directory}/admin.sock")
    stage.run(haproxy)
    step("adopt", "--pid", str(plain.pid), "--retire")
    plain.wait(30)
    kept = listening()
    if len(kept) != 1 or not before.issuperset(kept):
        wrong.append(f"sockets before {sorted(before)}, now {kept}")
    for tag in (2, 3):
        stage.file.write_text(written(stage, tag))
        step("reload")
        if listening() != kept:
            wrong.append(f"sockets after a reload {listening()}, before {kept}")
        time.sleep(0.5)  # load between two
    return wrong, stage.report(load)


for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}, {arguments.times} times adopted, retired and reloaded twice", flush=True)
    for _ in range(arguments.times):
        with Stage() as stage:
            wrong, report = walk(stage, haproxy)
            print(f"    {told(report)}", flush=True)
            for line in wrong:
                print(f"    WRONG: {line}", flush=True)
