#!/usr/bin/env python3
"""What a stick table loses over reloads in a row: a table that the local peer teaches to each new generation, under bindonce
and with plain haproxy (-W, SIGUSR2 to the master).

    tests/measure/tables.py [--entries 100000] [--reloads 20] [--rate 2] [--only VERSION] [--peers-timeout TIME]
"""

import argparse
import signal
import socket
import time

from stage import Stage, haproxies, isolate, spread, wait_for

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--entries", type=int, default=100_000)
parser.add_argument("--reloads", type=int, default=20)
parser.add_argument("--rate", type=float, default=2, help="reloads a second")
parser.add_argument("--only", default="", help="only versions that begin with this")
parser.add_argument("--peers-timeout", default="", help="of bindonce run")
arguments = parser.parse_args()
isolate()


def config(stage, tag):
    return (f"global\n    stats socket {stage.directory}/cli level admin\n    localpeer me\ndefaults\n    mode http\n"
            "    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\npeers mesh\n    peer me 127.0.0.1:10000\n"
            "frontend web\n    bind 127.0.0.1:8080\n"
            f"    http-request return status 200 content-type text/plain hdr x-generation {tag} string ok\n"
            f"backend t\n    stick-table type string len 16 size {2 * arguments.entries} expire 1h store gpc0 peers mesh\n")


def ask(stage, command):
    with socket.socket(socket.AF_UNIX) as cli:
        cli.connect(f"{stage.directory}/cli")
        cli.sendall(f"{command}\n".encode())
        answer = b""
        while part := cli.recv(1 << 16):
            answer += part
    return answer.decode(errors="replace")


def used(stage):
    """Number of entries in the table; 0 while no haproxy answers."""
    try:
        return int(ask(stage, "show table t").split("used:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def fill(stage):
    for first in range(0, arguments.entries, 200):
        keys = range(first, min(first + 200, arguments.entries))
        ask(stage, ";".join(f"set table t key k{key} data.gpc0 {key}" for key in keys))
    assert used(stage) == arguments.entries, used(stage)


def tell(stage, what, times=()):
    """Waits until the last generation's table stays the same; prints the entries lost."""
    before = -1
    while before != (before := used(stage)):
        time.sleep(6)
    took = f"; a reload took: {spread(times)}" if times else ""
    print(f"    {what}: {arguments.entries - before:,} of {arguments.entries:,} entries lost{took}", flush=True)


for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}, {arguments.reloads} reloads, {arguments.rate:g} a second", flush=True)
    with Stage() as stage:
        stage.file.write_text(config(stage, 1))
        stage.run(haproxy, *(["--peers-timeout", arguments.peers_timeout] if arguments.peers_timeout else []))
        fill(stage)
        times, failed, _ = stage.reloads(arguments.reloads, arguments.rate, lambda tag: config(stage, tag))
        tell(stage, f"bindonce, {len(failed)} reloads failed", times)
        if failed:
            print(f"        {failed[0]}")
    with Stage(broker=False) as stage:
        stage.file.write_text(config(stage, 1))
        master = stage.start("haproxy", [haproxy, "-W", "-f", str(stage.file)])
        wait_for("haproxy", lambda: "show table" in stage.said("haproxy") or (stage.directory / "cli").exists())
        time.sleep(1)
        fill(stage)
        begun = time.monotonic()
        for number in range(arguments.reloads):
            time.sleep(max(0, begun + number / arguments.rate - time.monotonic()))
            master.send_signal(signal.SIGUSR2)
        tell(stage, "plain haproxy")
