#!/usr/bin/env python3
"""Reloads of a plain haproxy, without bindonce, under load: how many connections each way of reloading loses; then
one reload on an inherited socket whose old process misses its signal, and its share of new
connections.

    tests/measure/plain.py [--count 200] [--rate 5] [--clients 20] [--only VERSION]

These are the first two rows of README's table, in the columns of haproxy's own reload and of
systemd's sockets. In place of a socket unit this script holds the inherited descriptor 3.
"""

import os
import signal
import socket
import time

from stage import PORT, Stage, ask, config, haproxies, isolate, reloading, told

arguments = reloading(__doc__)  # --count 0 measures the missed signal alone
isolate()

# Name of the way: (more options, whether SIGUSR2 reloads a master, whether the stats socket exposes
# the listeners, whether the socket is inherited).
WAYS = {
    "-sf": ((), False, False, False),
    "-sf and -x": (("-x", "{stats}"), False, True, False),
    "-W": (("-W",), True, False, False),
    "-W and `expose-fd listeners`": (("-W",), True, True, False),
    "bind fd@3 and -sf": ((), False, False, True),
}


class Plain:
    """A haproxy that is reloaded in one of these ways."""

    def __init__(self, stage, program, way):
        self.stage, self.program = stage, program
        self.options, self.master, self.exposed, self.inherited = WAYS[way]
        self.stats = stage.directory / "stats.sock"
        self.process, self.number, self.ended, self.unheard = None, 0, [], 0
        if self.inherited:
            listener = stage.enter_context(socket.create_server(("127.0.0.1", PORT), backlog=1024))
            # Every child inherits the listener as descriptor 3, its number in this script too.
            if listener.fileno() != 3:
                os.dup2(listener.fileno(), 3)
            os.set_inheritable(3, True)

    def start(self):
        """Starts the next process as a reload does; returns when it has answered."""
        self.number += 1
        text = config(self.number)
        if self.inherited:
            text = text.replace(f"bind 127.0.0.1:{PORT}", "bind fd@3")
        if self.exposed:
            line = f"global\n    stats socket {self.stats} level admin expose-fd listeners\n"
            text = text.replace("global\n", line, 1)
        self.stage.file.write_text(text)
        if self.master and self.process:
            self.process.send_signal(signal.SIGUSR2)
        else:
            older = self.process
            options = [word.format(stats=self.stats) for word in self.options if older or word == "-W"]
            told_to = ["-sf", str(older.pid)] if older else []
            command = ["env", f"BINDONCE_GENERATION={self.number}", self.program, *([] if self.master else ["-db"]),
                       "-f", self.stage.file, *options, *told_to]
            more = {"pass_fds": (3,)} if self.inherited else {}
            self.process = self.stage.start("haproxy", command, **more)
            self.ended += [older] if older else []
        sent = time.monotonic()
        while ask()[1] != str(self.number):
            # A master that is still starting misses the signal: an operator would repeat it.
            if self.master and time.monotonic() - sent > 2:
                self.process.send_signal(signal.SIGUSR2)
                self.unheard, sent = self.unheard + 1, time.monotonic()
        for one in self.ended:
            one.poll()


def lossless(haproxy, way):
    """Reloads in which every process hears its signal."""
    with Stage(broker=False) as stage:
        plain = Plain(stage, haproxy, way)
        plain.start()
        load = stage.load(arguments.clients)
        time.sleep(0.5)  # load before the first reload, not a wait for an event
        begun = time.monotonic()
        for number in range(arguments.count):
            time.sleep(max(0, begun + number / arguments.rate - time.monotonic()))
            plain.start()
        report = stage.report(load)
        words = told(report).splitlines()[0]
        again = f"; SIGUSR2 without effect, sent again: {plain.unheard}" if plain.unheard else ""
        print(f"    {way}: {arguments.count} reloads: {words}{again}", flush=True)


def missed(haproxy):
    """The old process misses SIGUSR1: both accept from one socket."""
    for clients, rate, words in ((1, {}, "one after the other"), (20, {}, "by 20 clients"), (20, {"rate": 200}, "at 200 a second")):
        with Stage(broker=False) as stage:
            program = stage.with_faults(haproxy, {1: f"deaf:{int(signal.SIGUSR1)}:1"})
            plain = Plain(stage, program, "bind fd@3 and -sf")
            plain.start()
            plain.start()
            report = stage.over(stage.load(clients, connections=1000, **rate))
            answers = {token["token"]: token["answers"] for token in report["tokens"]}
            print(f"    bind fd@3, signal missed: the old process answers {answers.get('1', 0)} of {report['connections']} "
                  f"connections made {words}", flush=True)


for version, haproxy in haproxies(arguments.only):
    print(f"haproxy {version}", flush=True)
    for way in WAYS if arguments.count else ():
        lossless(haproxy, way)
    missed(haproxy)
