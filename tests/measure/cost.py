#!/usr/bin/env python3
"""What bindonce costs: memory of the broker with 1,000 listeners, time that
`exec` adds to a start, time of a reload against haproxy's own start.

    tests/measure/cost.py [--times 100]
"""

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import time

from stage import Stage, binary, config, haproxies, isolate, ms, spread, unblock

parser = argparse.ArgumentParser()
parser.add_argument("--times", type=int, default=100)
arguments = parser.parse_args()
isolate()


def resident(pid):
    """Resident memory in MiB: all of it, and its anonymous part."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return [int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")]


with Stage() as stage:
    # The broker frees a connection's or large request's memory at once, but only once a second.
    time.sleep(2)
    empty = resident(stage.broker.pid)
    begun = time.monotonic()
    bound = stage.bindonce("bind", "r=127.0.0.1:20000-20999")
    assert bound.returncode == 0, bound.stderr
    took = time.monotonic() - begun
    at_once = resident(stage.broker.pid)
    time.sleep(2)
    full = resident(stage.broker.pid)
    print(f"broker: {empty[0]:.2f} MiB resident when empty and at rest, {at_once[0]:.2f} MiB just after 1,000 listeners were bound, "
          f"{full[0]:.2f} MiB at rest ({full[1]:.2f} MiB of it anonymous); `bindonce bind` of the 1,000 took {ms(took)}",
          flush=True)

    plain, through = [], []
    for _ in range(arguments.times):
        for command, times in (
            (["/bin/true"], plain),
            ([binary("bindonce"), "exec", "--listen", "web=127.0.0.1:8080", "--", "/bin/true"], through),
        ):
            begun = time.monotonic()
            subprocess.run(command, env=stage.environment, check=True)
            times.append(time.monotonic() - begun)
    added = statistics.median(through) - statistics.median(plain)
    print(f"exec: a program starts and ends in {ms(statistics.median(plain))}, through `bindonce exec` in "
          f"{ms(statistics.median(through))} (medians of {arguments.times}): {ms(added)} added", flush=True)


def own_start(haproxy, file):
    """Seconds from the start of a plain haproxy to the SIGUSR1 by which it says
    that every listener is bound."""
    begun = time.monotonic()
    process = subprocess.Popen([haproxy, "-db", "-f", file, "-sf", str(os.getpid())], preexec_fn=unblock,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready = signal.sigtimedwait({signal.SIGUSR1}, 10)
    took = time.monotonic() - begun
    process.kill()
    process.wait()
    assert ready, "haproxy did not start"
    return took


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
for version, haproxy in haproxies():
    with Stage() as stage:
        stage.file.write_text(config(1))
        plain_file = stage.directory / "plain.cfg"
        plain_file.write_text(config(1, listeners=(8181,)))
        stage.run(haproxy)
        own, reload = [], []
        for _ in range(arguments.times):
            own.append(own_start(haproxy, str(plain_file)))
            code, said, seconds = stage.reload()
            assert code == 0, said
            reload.append(seconds)
        more = statistics.median(reload) - statistics.median(own)
        print(f"haproxy {version}: its own start: {spread(own)}\n    `bindonce reload`, from the command's start to its "
              f"end: {spread(reload)}\n    {ms(more)} more in the median of {arguments.times} each", flush=True)
