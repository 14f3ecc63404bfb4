#!/usr/bin/env python3
"""Draws the pictures of the documentation from the real program.

    tests/measure/pictures.py BINDONCE

writes docs/images/top.svg (`bindonce top` in a terminal of 92 columns) and
docs/images/status-page.png (the status page in a browser). Needs haproxy, chromium, and pyte
(PyPI). Everything runs in a temporary directory and on free ports.
"""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from html import escape
from pathlib import Path

import pyte

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
COLUMNS, LINES = 92, 22
CONFIG = """
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 5s
frontend web
    bind 127.0.0.1:{}
    bind 127.0.0.1:{}
    http-request wait-for-body time 60s
    http-request return status 200 content-type text/plain string ok
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stage:
    """A broker, a supervised haproxy, and two clients that stay connected."""

    def __init__(self, binary):
        self.directory = Path(tempfile.mkdtemp(prefix="bindonce-pictures-"))
        self.binary, self.metrics = binary, free_port()
        self.ports = [free_port(), free_port()]
        self.config = self.directory / "haproxy.cfg"
        self.config.write_text(CONFIG.format(*self.ports))
        self.environment = {**os.environ, "BINDONCE_SOCKET": str(self.directory / "b.sock"), "TERM": "xterm-256color"}
        self.processes, self.clients = [], []
        self.start("serve", until=["ping"])
        self.start("run", "--name", "web", "--metrics", f"127.0.0.1:{self.metrics}", "--", "haproxy", "-f", str(self.config),
                   until=["ping", "--name", "web", "--serving"])

    def start(self, *arguments, until):
        self.processes.append(subprocess.Popen([self.binary, *arguments], env=self.environment,
                                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 20
        while subprocess.run([self.binary, *until], env=self.environment, capture_output=True).returncode:
            if time.monotonic() > deadline:
                sys.exit(f"{arguments[0]} did not come up")
            time.sleep(0.05)

    def connect(self):
        """Opens a client in the middle of a request, which keeps its generation draining."""
        client = socket.create_connection(("127.0.0.1", self.ports[0]))
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        self.clients.append(client)

    def reload(self):
        return subprocess.run([self.binary, "reload", "--name", "web"], env=self.environment, capture_output=True).returncode

    def play(self):
        """Half a minute of an ordinary day: reloads, a client that stays, a mistake."""
        time.sleep(6)
        assert self.reload() == 0
        time.sleep(6)
        self.connect()
        assert self.reload() == 0
        time.sleep(5)
        good = self.config.read_text()
        self.config.write_text(good + "bad\n")
        assert self.reload() == 1
        self.config.write_text(good)
        time.sleep(6)

    def end(self):
        for client in self.clients:
            client.close()
        for process in reversed(self.processes):
            process.terminate()
            process.wait(20)
        shutil.rmtree(self.directory)


def screen_of(stage):
    """Returns what `bindonce top` has drawn after two seconds in its own terminal."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(stage.binary, [stage.binary, "top"], stage.environment)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    end = time.monotonic() + 2
    while (left := end - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            stream.feed(os.read(fd, 65536))
    os.write(fd, b"q")
    os.waitpid(pid, 0)
    os.close(fd)
    return screen


COLOURS = {"default": "#d7dade", "green": "#5fbf7f", "red": "#ee6a5f", "brown": "#d9a441", "yellow": "#d9a441", "cyan": "#6cb6d9",
           "blue": "#6c9ad9", "magenta": "#c58fd9", "white": "#f4f4f4", "black": "#7d838c", "brightblack": "#7d838c"}


def svg(screen):
    width, height = 8.4, 18
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * width + 24:.0f} {LINES * height + 24}" role="img">',
           "<title>bindonce top: a service with its generations, listeners and events</title>",
           '<rect width="100%" height="100%" rx="8" fill="#16181d"/>',
           '<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="14">']
    for y in range(LINES):
        x = 0
        while x < COLUMNS:
            cell = screen.buffer[y][x]
            style = (cell.fg, cell.bold, cell.reverse)
            end = x
            while end < COLUMNS and (it := screen.buffer[y][end], (it.fg, it.bold, it.reverse) == style)[1]:
                end += 1
            text = "".join(screen.buffer[y][at].data for at in range(x, end))
            colour = COLOURS.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else COLOURS["default"])
            left, top = 12 + x * width, 12 + y * height
            if cell.reverse:
                out.append(f'<rect x="{left:.1f}" y="{top}" width="{(end - x) * width:.1f}" height="{height}" fill="{colour}"/>')
                colour = "#16181d"
            weight = ' font-weight="700"' if cell.bold else ""
            # Each word gets its own position: renderers treat several spaces differently.
            for word in re.finditer(r"\S+", text):
                at, length = left + word.start() * width, len(word[0]) * width
                out.append(f'<text x="{at:.1f}" y="{top + 13.5}" textLength="{length:.1f}" fill="{colour}"{weight}>{escape(word[0])}</text>')
            x = end
    return "\n".join([*out, "</g>", "</svg>", ""])


def main():
    stage = Stage(os.path.abspath(sys.argv[1]))
    try:
        stage.play()
        (IMAGES / "top.svg").write_text(svg(screen_of(stage)))
        subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,640",
                        f"--screenshot={IMAGES / 'status-page.png'}", f"http://127.0.0.1:{stage.metrics}/"],
                       check=True, capture_output=True, timeout=120)
    finally:
        stage.end()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
