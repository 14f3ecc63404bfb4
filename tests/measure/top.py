#!/usr/bin/env python3
"""Cost of `bindonce top` while nothing happens, with one listener and with many: its CPU time in a
terminal of 100 by 30 characters, its memory, and the CPU time of the broker and of the supervisor,
which it asks once a second.

    tests/measure/top.py [--seconds 20] [--listeners 1000]
"""

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

from stage import Stage, config, cpu, haproxies, isolate, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--seconds", type=int, default=20)
parser.add_argument("--listeners", type=int, default=1000)
arguments = parser.parse_args()
isolate()


def read(master, seconds):
    """Returns what is written to the terminal within this time."""
    end, written = time.monotonic() + seconds, b""
    while (left := end - time.monotonic()) > 0:
        if select.select([master], [], [], left)[0]:
            written += os.read(master, 1 << 16)
    return written


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def measure(stage, what):
    pid, master = pty.fork()
    if pid == 0:
        os.execve(stage.command()[0], stage.command("top"), {**stage.environment, "TERM": "xterm", "LANG": "C.UTF-8"})
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    try:
        first = read(master, 3)
        assert b"serving" in first, first
        all_of_them = [("top", pid), ("broker", stage.broker.pid), ("supervisor", stage.supervisor.pid)]
        before, begun = [cpu(one) for _, one in all_of_them], time.monotonic()
        written = len(read(master, arguments.seconds))  # the measured span, not a wait for an event
        span = time.monotonic() - begun
        shares = [f"{name} {(cpu(one) - was) / span:.2%}" for (name, one), was in zip(all_of_them, before)]
        print(f"{what}, {arguments.seconds} s: {', '.join(shares)} of a core; top has {resident(pid) / 1024:.1f} MiB "
              f"resident and wrote {written:,} bytes", flush=True)
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for("top to end", lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
        os.close(master)


with Stage() as stage:
    _, haproxy = next(haproxies())
    stage.file.write_text(config(1))
    stage.run(haproxy)
    measure(stage, "1 listener")
    last = 20000 + arguments.listeners - 2
    bound = stage.bindonce("bind", f"r=127.0.0.1:20000-{last}")
    assert bound.returncode == 0, bound.stderr
    measure(stage, f"{arguments.listeners} listeners")
