#!/usr/bin/env python3
"""Cost of a scrape: CPU time of a broker with 1,000 listeners that is scraped once a second,
compared with no scrapes; and how long a scrape takes, because claims may have to wait for it.

    tests/measure/metrics.py [--seconds 30] [--listeners 1000]
"""

import argparse
import socket
import time

from stage import Stage, cpu, isolate, spread

parser = argparse.ArgumentParser()
parser.add_argument("--seconds", type=int, default=30)
parser.add_argument("--listeners", type=int, default=1000)
arguments = parser.parse_args()
isolate()


def scrape(path):
    """Returns one page, and how long it took."""
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        page = b""
        while part := client.recv(1 << 16):
            page += part
    assert page.startswith(b"HTTP/1.1 200 ") and page.endswith(b"# EOF\n"), page[:200]
    return time.monotonic() - begun, len(page)


with Stage() as stage:
    last = 20000 + arguments.listeners - 1
    bound = stage.bindonce("bind", f"r=127.0.0.1:20000-{last}")
    assert bound.returncode == 0, bound.stderr
    pid = stage.broker.pid
    path = str(stage.socket) + ".metrics"

    before, begun = cpu(pid), time.monotonic()
    time.sleep(arguments.seconds)  # the measured span, not a wait for an event
    idle = (cpu(pid) - before) / (time.monotonic() - begun)

    took, length = [], 0
    before, begun = cpu(pid), time.monotonic()
    for number in range(arguments.seconds):
        time.sleep(max(0, begun + number - time.monotonic()))
        seconds, length = scrape(path)
        took.append(seconds)
    time.sleep(max(0, begun + arguments.seconds - time.monotonic()))
    busy = (cpu(pid) - before) / (time.monotonic() - begun)

    print(f"broker with {arguments.listeners} listeners, {arguments.seconds} s each: {idle:.3%} of a core when idle, "
          f"{busy:.3%} with a scrape a second; a page has {length:,} bytes and takes {spread(took)}", flush=True)
