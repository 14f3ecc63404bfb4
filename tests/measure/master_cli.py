#!/usr/bin/env python3
"""The master CLI under many clients: several send `reload` at once while another reads `show proc`
as callers do, and load runs meanwhile. Also how long `@1 show info` takes, compared with haproxy's
own admin socket in the same run.

    tests/measure/master_cli.py [--reloads 1000] [--clients 10] [--asks 3000] [--only VERSION]
"""

import argparse
import collections
import re
import socket
import threading
import time

from stage import Stage, binary, config, haproxies, isolate, told, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--reloads", type=int, default=1000)
parser.add_argument("--clients", type=int, default=10)
parser.add_argument("--asks", type=int, default=3000)
parser.add_argument("--only", default="", help="only versions that begin with this")
arguments = parser.parse_args()
isolate()

ROW = re.compile(r"(\d+) +worker +\d+ +\d+d\d\dh\d\dm\d\ds +\S+ *")


def ask(path, text):
    """Returns the answer to one line, and the seconds until its end."""
    begun = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(path))
        client.sendall(text)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return answer.decode(), time.perf_counter() - begun


def wrong_with(processes):
    """Returns the part of `show proc` that a caller could not parse, or None."""
    lines = processes.split("\n")
    if len(lines) < 4 or lines[0].split() != ["#<PID>", "<type>", "<reloads>", "<uptime>", "<version>"]:
        return "header"
    if not re.fullmatch(r"\d+ +master +\d+ \[failed: \d+\] +\S+ +\S+ *", lines[1]) or lines[2] != "# workers":
        return "master"
    if not ROW.fullmatch(lines[3]) or lines[3][16:22] != "worker":
        return "fourth line"
    return None


def storm(stage, cli):
    outcomes, looks, took = collections.Counter(), collections.Counter(), []
    left = list(range(arguments.reloads))
    done = threading.Event()

    def reload():
        while True:
            try:
                left.pop()
            except IndexError:
                return
            answer, seconds = ask(cli, b"reload\n")
            parts = answer.split("\n--\n")
            outcomes[parts[0] if len(parts) == 2 else repr(answer)] += 1
            took.append(seconds)

    def look():
        while not done.is_set():
            looks[wrong_with(ask(cli, b"show proc\n")[0])] += 1

    load = stage.load()
    threads = [threading.Thread(target=reload) for _ in range(arguments.clients)]
    looker = threading.Thread(target=look)
    begun = time.monotonic()
    for thread in [looker, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    looker.join()
    took.sort()
    print(f"  {arguments.reloads} reloads from {arguments.clients} clients at once in {time.monotonic() - begun:.1f} s: "
          f"{dict(outcomes)}; median {took[len(took) // 2]:.2f} s, longest {took[-1]:.2f} s")
    processes = ask(cli, b"show proc\n")[0]
    print(f"  counted: {processes.split(chr(10))[1].split('master')[1].split(']')[0].strip()}]")
    print(f"  show proc meanwhile: {looks.pop(None, 0)} read, {dict(looks)} not")
    print(f"  connections: {told(stage.report(load))}", flush=True)


def latency(cli, admin):
    direct, through = [], []
    for count in range(arguments.asks + 100):
        one, other = ask(admin, b"show info\n"), ask(cli, b"@1 show info\n")
        assert "\nPid: " in one[0] and "\nPid: " in other[0], other[0]
        if count >= 100:
            direct.append(one[1])
            through.append(other[1])
    for share in (0.5, 0.9, 0.99):
        one, other = (sorted(all)[int(len(all) * share)] * 1e6 for all in (direct, through))
        print(f"  show info, p{share * 100:.0f}: haproxy's own admin socket {one:.0f} us, @1 on the master CLI {other:.0f} us, "
              f"ratio {other / one:.2f}", flush=True)


for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}", flush=True)
    with Stage() as stage:
        cli, admin = stage.directory / "master.sock", stage.directory / "admin.sock"
        text = config(1).replace("global\n", f"global\n    stats socket {admin} level admin\n", 1)
        stage.file.write_text(text)
        stage.supervisor = stage.start("run", [binary("bindonce"), "run", "--", str(haproxy), "-f", str(stage.file), "-S", str(cli)])
        wait_for("haproxy to serve", stage.serving)
        latency(cli, admin)
        storm(stage, cli)
