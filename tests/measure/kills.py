#!/usr/bin/env python3
"""Supervisor, broker and program of `bindonce run --intercept`, each killed (SIGKILL) at each step
of a program's life, while a client asks continuously. A killed supervisor or broker is restarted
1 s later; then a reload must work.

    tests/measure/kills.py [--only WORD]

Prints a row for each: the outcome of the program's call, the client's longest wait and its
refusals, the time until the service was whole again, and the next reload's message. Exits 1 if
anything hung, that reload failed, or there is not exactly one socket. Takes about two minutes.
"""

import argparse
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from stage import PORT, Stage, ask, binary, isolate, listening, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--only", default="", help="only rows that have this word")
arguments = parser.parse_args()

# Nothing may take longer: a program's call waits 10 s for the next supervisor, and a broker may
# take 30 s to answer.
PATIENCE = 45
# It logs what it does, and waits before each step while a file holds it back.
PROGRAM = """
import errno, os, select, signal, socket, sys, time
me = os.environ['BINDONCE_GENERATION']
def say(text):
    with open(f'said-{me}', 'a') as said: said.write(text + chr(10))
def gate(name):
    say(f'before {name}')
    while os.path.exists(f'closed-{me}-{name}'): time.sleep(0.005)
def call(name, function, *words):
    gate(name)
    try: function(*words)
    except OSError as error:
        say(f'{name}: {errno.errorcode[error.errno]}')
        sys.exit(1)
    say(f'{name}: done')
told, tell = socket.socketpair()
tell.setblocking(False)
signal.set_wakeup_fd(tell.fileno())
deaf = os.path.exists(f'closed-{me}-stop')
signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else lambda *_: None)
server = socket.socket()
call('bind', server.bind, ('127.0.0.1', int(sys.argv[1])))
call('listen', server.listen, 100)
server.setblocking(False)
poll, clients, stops = select.poll(), {}, False
poll.register(server, select.POLLIN)
poll.register(told, select.POLLIN)
answer = f'HTTP/1.0 200 OK{chr(13)}{chr(10)}x-generation: {me}{chr(13)}{chr(10)}{chr(13)}{chr(10)}'.encode()
while not stops or clients:
    for number, _ in poll.poll():
        if number == told.fileno():
            told.recv(100)
            if not stops: poll.unregister(server); server.close()
            stops = True
        elif not stops and number == server.fileno():
            try: client = server.accept()[0]
            except OSError: continue
            clients[client.fileno()] = client
            poll.register(client, select.POLLIN)
        elif number in clients:
            client = clients[number]
            try:
                part = client.recv(4096)
                if part.endswith(b'\\r\\n\\r\\n'): client.sendall(answer)
                elif part: continue
            except OSError: pass
            poll.unregister(client); del clients[number]; client.close()
"""
STEPS = ["before bind", "in bind", "between bind and listen", "held in listen", "serving", "draining"]


class Client(threading.Thread):
    """Asks continuously; records its longest wait for an answer, and how often there was none."""

    def __init__(self):
        super().__init__(daemon=True)
        self.longest, self.refused, self.tag, self.ends = 0.0, 0, None, threading.Event()

    def run(self):
        while not self.ends.wait(0.01):
            begun = time.monotonic()
            status, tag = ask()
            self.longest = max(self.longest, time.monotonic() - begun)
            if " 200 " in status:
                self.tag = tag
            else:
                self.refused += 1


def one(step, victim):
    """Prints a row, and returns whether all went well."""
    with Stage(broker=False) as stage:
        def broker():
            stage.broker = stage.start("broker", [binary("bindonce"), "serve"])
            wait_for("the broker", lambda: stage.bindonce("list").returncode == 0)

        def supervisor():
            command = [binary("bindonce"), "run", "--name", "web", "--retire-timeout", "3s", "--intercept", "--"]
            stage.supervisor = stage.start("run", [*command, sys.executable, "-c", PROGRAM, str(PORT)], cwd=stage.directory)

        def said(generation):
            file = stage.directory / f"said-{generation}"
            return file.read_text() if file.exists() else ""

        def close(generation, name):
            (stage.directory / f"closed-{generation}-{name}").touch()

        def open_all():
            for gate in stage.directory.glob("closed-*"):
                gate.unlink()

        def process(generation):
            found = [line for line in stage.said().splitlines() if f"started generation={generation} pid=" in line]
            return int(found[-1].split("pid=")[1].split()[0])

        broker()
        supervisor()
        wait_for("the first generation", lambda: stage.serving() and " 200 " in ask()[0])
        client = Client()
        client.start()
        reload, half, target = None, None, 2
        if step in ("before bind", "in bind", "between bind and listen", "held in listen"):
            if step == "before bind":
                close(2, "bind")
            if step == "between bind and listen":
                close(2, "listen")
            if step == "in bind":
                stage.broker.send_signal(signal.SIGSTOP)
                close(2, "bind")
            if step == "held in listen":
                # The new generation is held until the older one has stopped, which it does not.
                os.kill(process(1), signal.SIGSTOP)
            reload = stage.start("reload", [binary("bindonce"), "reload", "--name", "web"])
            if step == "in bind":
                # The generation connects to the broker first.
                stage.broker.send_signal(signal.SIGCONT)
                wait_for("it to be before bind", lambda: "before bind" in said(2))
                stage.broker.send_signal(signal.SIGSTOP)
                open_all()
                call = pathlib.Path(f"/proc/{process(2)}/syscall")
                wait_for("it to wait in bind", lambda: call.exists() and call.read_text().startswith("49 "))
            elif step == "held in listen":
                wait_for("it to be held", lambda: "listens on all that is served now" in stage.said())
            else:
                last = {"before bind": "before bind", "between bind and listen": "before listen"}[step]
                wait_for(f"it to be {step}", lambda: last in said(2))
        elif step == "draining":
            half = socket.create_connection(("127.0.0.1", PORT))
            half.sendall(b"GET / HTTP/1.0\r\n")
            ask()
            stage.bindonce("reload", "--name", "web")
            wait_for("the second to answer", lambda: ask()[1] == "2")
            target = 1
        else:
            target = 1

        begun = time.monotonic()
        if victim == "program":
            os.kill(process(target), signal.SIGKILL)
        else:
            dead = stage.supervisor if victim == "supervisor" else stage.broker
            dead.kill()
            dead.wait()
        time.sleep(1)  # as a service manager may take
        if step == "held in listen" and pathlib.Path(f"/proc/{process(1)}").exists():
            os.kill(process(1), signal.SIGCONT)
        open_all()
        if step == "in bind" and victim != "broker":
            stage.broker.send_signal(signal.SIGCONT)
        if victim == "broker":
            broker()
        if victim == "supervisor":
            supervisor()
        hung = []

        def whole(what, probe):
            """Waits for the probe; on timeout records `what` and returns false."""
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                if found := probe():
                    return found
                time.sleep(0.01)
            hung.append(what)
            return False

        whole("the supervisor to serve", lambda: stage.serving())
        if reload is not None:
            whole("the reload to end", lambda: reload.poll() is not None)
        took = time.monotonic() - begun
        if half is not None and victim != "program":
            half.settimeout(10)
            half.sendall(b"Host: localhost\r\n\r\n")
            answered = b"x-generation: 1" in half.recv(4096)
        else:
            answered = None
        again = subprocess.Popen([binary("bindonce"), "reload", "--name", "web"], env=stage.environment,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        whole("the next reload to end", lambda: again.poll() is not None)
        if again.poll() is None:
            again.kill()
        text = again.communicate()[0].strip().splitlines()
        ends = " ".join(said(2).split("\n")[-2:-1]) if reload is not None else ""
        client.ends.set()
        client.join(PATIENCE)
        sockets = len(set(listening()))
        row = [step, victim, ends or "no call", f"{'-' if reload is None else reload.poll()}", f"{client.longest * 1000:.0f} ms",
               str(client.refused), f"{took:.1f} s", (text or ["nothing"])[0][:60], str(sockets)]
        if answered is not None:
            row[2] = "the drained client was answered" if answered else "THE DRAINED CLIENT WAS NOT ANSWERED"
        if hung:
            row[2] += f" HUNG: {', '.join(hung)}"
            print(stage.said()[-3000:], file=sys.stderr)
        print("| " + " | ".join(row) + " |", flush=True)
        if half is not None:
            half.close()
        stage.end(stage.supervisor)
        return not hung and sockets == 1 and again.returncode == 0


isolate(alone=True)
head = ["step", "killed", "last that the new one said", "exit of the reload", "longest wait of a client", "refused", "whole after", "the next reload", "sockets"]
print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
rows = [(step, victim) for step in STEPS for victim in ("supervisor", "broker", "program")]
results = [one(*row) for row in rows if arguments.only in " ".join(row)]
sys.exit(0 if all(results) else 1)
