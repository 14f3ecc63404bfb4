#!/usr/bin/env python3
"""Size of the binary, and how long `bindonce serve` takes from its start until it tells the service
manager READY=1, with its control socket and its listeners open.

    tests/measure/start.py [--rounds 100] [--listeners 1]
"""

import argparse
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time

from stage import binary, isolate

SIZE_LIMIT = 6  # MiB
START_LIMIT = 10  # ms

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=100)
parser.add_argument("--listeners", type=int, default=1)
arguments = parser.parse_args()
isolate()

size = pathlib.Path(binary("bindonce")).stat().st_size / (1 << 20)
times = []
with tempfile.TemporaryDirectory(prefix="bindonce-start-") as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
    notices.bind(f"{directory}/notify")
    notices.settimeout(10)
    listen = [word for n in range(arguments.listeners) for word in ("--listen", f"127.0.0.1:{10000 + n}")]
    command = [binary("bindonce"), "--socket", f"{directory}/bindonce.sock", "serve", *listen]
    environment = {**os.environ, "NOTIFY_SOCKET": f"{directory}/notify"}
    for _ in range(arguments.rounds):
        begun = time.monotonic()
        broker = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while b"READY=1" not in notices.recv(4096):
            pass
        times.append((time.monotonic() - begun) * 1e3)
        socket.create_connection(("127.0.0.1", 10000)).close()
        broker.terminate()
        broker.wait()
        # Discard the notices of its end before the next start.
        notices.setblocking(False)
        try:
            while notices.recv(4096):
                pass
        except BlockingIOError:
            pass
        notices.settimeout(10)

times.sort()
print(f"{binary('bindonce')}: {size:.2f} MiB (limit {SIZE_LIMIT})")
print(f"serve, from its start until it listens ({arguments.listeners} listeners, {arguments.rounds} times): "
      f"median {statistics.median(times):.1f} ms, 99 of 100 within {times[int(len(times) * 0.99) - 1]:.1f} ms, "
      f"longest {times[-1]:.1f} ms (limit {START_LIMIT})")
raise SystemExit(0 if size < SIZE_LIMIT and statistics.median(times) < START_LIMIT else 1)
