"""The template unit of docs/library.md under the systemd of systemd.py: its text, its rules, and a
server of the library that starts beside the one before. Runs in the driver's stage."""

import pathlib
import shutil
import socket
import subprocess
import threading

from systemd import CONTROL, SHARED, call, eventually, show, systemctl

UNITS = pathlib.Path("/etc/systemd/system")
ADDRESS = ("127.0.0.1", 443)


def ask(client=None):
    """Returns the answer's text: generation N, pid P."""
    with client or socket.create_connection(ADDRESS, timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b"")).decode()
    return answer.rsplit("\r\n\r\n", 1)[-1].strip()


def pid(answer):
    return answer.rsplit(" ", 1)[-1]


class Clients:
    """Opens one connection after the other, until the block ends."""

    def __enter__(self):
        self.answers, self.failed, self.goes_on = 0, [], True
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self):
        while self.goes_on:
            try:
                assert ask().startswith("generation "), "another answer"
                self.answers += 1
            except (OSError, AssertionError) as error:
                self.failed.append(repr(error))

    def more(self):
        before = self.answers
        eventually("more answers", lambda: self.answers > before + 10 or self.failed)

    def __exit__(self, *_):
        self.goes_on = False
        self.thread.join()


def prepare():
    """Installs the page's unit and rules, with local users, program and service."""
    page = pathlib.Path(SHARED, "library.md").read_text()
    block = page.split("    # /etc/systemd/system/edge@.service\n", 1)[1].split("\n\n\n")[0].split("\nThe broker", 1)[0]
    unit = "".join(f"{line.strip()}\n" for line in block.splitlines())
    rules = page.split("```toml\n[[rule]]", 1)[1].split("```", 1)[0]
    for there, here in (("/usr/bin/edge", "/run/bin/edge"), ("User=edge", "User=nobody"), ("Groups=bindonce", "Groups=daemon")):
        assert there in unit, there
        unit = unit.replace(there, here)
    for there, here in (('user = "edge"', 'user = "nobody"'), ('services = ["edge"]', 'services = ["example"]')):
        assert there in rules, there
        rules = rules.replace(there, here)
    shutil.copy(f"{SHARED}/edge", "/run/bin/edge")
    (UNITS / "edge@.service").write_text(unit)
    # Fails after it has joined: no rule allows that address.
    broken = UNITS / "edge@broken.service.d"
    broken.mkdir()
    (broken / "address.conf").write_text("[Service]\nExecStart=\nExecStart=/run/bin/edge web=0.0.0.0:444\n")
    configuration = pathlib.Path("/run/bin/bindonce.toml")
    configuration.write_text("[[rule]]" + rules)
    (UNITS / "bindonce.service.d/with-rules.conf").write_text(
        f"[Service]\nExecStart=\nExecStart=/run/bin/bindonce serve --socket {CONTROL} --config {configuration}\n")
    systemctl("daemon-reload")
    systemctl("restart", "bindonce.service")
    eventually("the broker after a restart", lambda: call("ping"))


def start(name):
    done = subprocess.run(["systemctl", "start", f"edge@{name}"], capture_output=True, text=True, timeout=60)
    return done.returncode


def template():
    """Four starts, one of which must fail; returns what was seen."""
    prepare()
    state = lambda name: [show(what, f"edge@{name}.service") for what in ("ActiveState", "Result", "ExecMainStatus")]
    main = lambda name: show("MainPID", f"edge@{name}.service")
    seen = {"started": [start("1"), *state("1")]}
    if seen["started"][0] != 0:
        seen["said"] = systemctl("status", "--no-pager", "-l", "edge@1")
        return seen
    seen["first"] = pid(ask()) == main("1")
    with Clients() as clients:
        clients.more()
        # The first has accepted this connection: it has answered one that came later.
        client = socket.create_connection(ADDRESS, timeout=20)
        ask()
        first = main("1")
        seen["second"] = [start("2"), pid(ask()) == main("2"), main("1") == first]
        seen["finished"] = pid(ask(client)) == first
        eventually("the first to end", lambda: state("1")[0] == "inactive")
        seen["ended"] = state("1")
        second = main("2")
        seen["broken"] = [start("broken") != 0, state("broken")[0], pid(ask()) == second == main("2"), state("2")[0]]
        clients.more()
        seen["third"] = [start("3"), pid(ask()) == main("3")]
        eventually("the second to end", lambda: state("2")[0] == "inactive")
        clients.more()
    seen.update(answers=clients.answers, failed=sorted(set(clients.failed)), last=state("3"))
    systemctl("stop", "edge@3")
    seen["stopped"] = state("3")
    return seen
