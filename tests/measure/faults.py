#!/usr/bin/env python3
"""Reloads that must fail, and a killed haproxy, under load: the caller's message, whether the old
generation keeps serving, and which addresses stay bound.

    tests/measure/faults.py [--kills 10]
"""

import argparse
import json
import os
import signal
import socket
import time

from stage import PORT, Stage, config, haproxies, isolate, listening, told, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--kills", type=int, default=10)
arguments = parser.parse_args()
isolate()

squatter = socket.create_server(("127.0.0.1", 9090))
BAD = {
    "a configuration error": "frontend other\n    bind 127.0.0.1:9091\n    no-such-word\n",
    "a port in use": "frontend other\n    bind 127.0.0.1:9090\n",
    "a missing certificate": "frontend other\n    bind 127.0.0.1:9092 ssl crt /nonexistent/site.pem\n",
}

for version, haproxy in haproxies():
    with Stage() as stage:
        stage.file.write_text(config(1))
        stage.run(haproxy)
        before = stage.serving()
        load = stage.load()
        print(f"haproxy {version}")
        for what, extra in BAD.items():
            stage.file.write_text(config(9, extra=extra))
            code, said, seconds = stage.reload()
            wait_for("new listeners to go", lambda: not listening(9091) and not listening(9092))
            held = json.loads(stage.bindonce("list", "--json").stdout)["listeners"]
            held = [entry["address"] for entry in held if "@" not in entry["address"]]
            same = "yes" if stage.serving() == before else "NO"
            print(f"    {what}: exit code {code} after {seconds * 1000:.0f} ms; the old generation serves on: {same}; "
                  f"held: {', '.join(held)}; said:")
            for line in said.strip().splitlines():
                print(f"        | {line}")
        print(f"    load meanwhile: {told(stage.report(load))}", flush=True)

        stage.file.write_text(config(2))
        inode = listening()
        load = stage.load()
        longest = 0
        for _ in range(arguments.kills):
            generation, pid = wait_for("a generation that serves", stage.serving)
            time.sleep(0.5)  # load between two kills
            begun = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_for("the next generation", lambda: (stage.serving() or (0, 0))[0] > generation)
            longest = max(longest, time.monotonic() - begun)
        report = stage.report(load)
        print(f"    {arguments.kills} times kill -9 of haproxy: serving again after {longest * 1000:.0f} ms at most; "
              f"same socket throughout: {'yes' if listening() == inode else 'NO'}")
        print(f"    {told(report)}", flush=True)
