#!/usr/bin/env python3
"""A server in Python of which each start takes over from the one before, by libbindonce and ctypes.

    bindonce serve &
    python3 server.py web=127.0.0.1:8080 &
    curl http://127.0.0.1:8080/
    python3 server.py web=127.0.0.1:8080    # takes over from the first, which ends
"""

import ctypes
import errno
import os
import selectors
import socket
import sys
import time

INVALID, TIMED_OUT, SUPERSEDED = -1, -3, -6
NOTHING, SERVE, RETIRE = 0, 1, 2
RECALLED = 1
PAUSE = 0.1  # seconds without accepting, after the process has reached its limit of descriptors
DRAIN = 10  # seconds for what is connected, once a newer generation accepts

library = ctypes.CDLL("libbindonce.so.1")
library.bindonce_error.restype = ctypes.c_char_p
library.bindonce_number.restype = ctypes.c_uint64


class Refused(Exception):
    """What the library says, with its code."""


class Generation:
    """This process as one generation of a service."""

    def __init__(self, service):
        self.handle = ctypes.c_void_p()
        self.check(library.bindonce_join(None, service.encode(), ctypes.byref(self.handle)))
        self.number = library.bindonce_number(self.handle)

    def check(self, code):
        if code < 0:
            raise Refused(code, library.bindonce_error().decode())
        return code

    def claim(self, text):
        fd = ctypes.c_int()
        self.check(library.bindonce_claim(self.handle, text.encode(), ctypes.byref(fd)))
        return socket.socket(fileno=fd.value)

    def ready(self):
        """Whether it may accept already; else next() gives SERVE later."""
        code = library.bindonce_ready(self.handle, 0)
        return code != TIMED_OUT and self.check(code) == 0

    def fileno(self):
        return library.bindonce_fd(self.handle)

    def next(self):
        return library.bindonce_next(self.handle)

    def stopped(self):
        return self.check(library.bindonce_stopped(self.handle))

    def drained(self):
        library.bindonce_drained(self.handle)


class Server:
    """One thread, one selector: the listener, the library, and the clients with what they have sent."""

    def __init__(self, claim):
        self.claim = claim
        self.selector = selectors.DefaultSelector()
        self.generation = Generation("example")
        self.listener = self.generation.claim(claim)
        self.clients = {}
        self.selector.register(self.generation, selectors.EVENT_READ)
        self.accepts = False
        self.paused = False

    def accept(self):
        try:
            while True:
                client, _ = self.listener.accept()
                client.setblocking(False)
                self.clients[client] = b""
                self.selector.register(client, selectors.EVENT_READ)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in (errno.ECONNABORTED, errno.EPROTO):
                return  # one client's affair
            if not self.paused:
                print(f"clients wait: {error.strerror}", file=sys.stderr, flush=True)
            self.paused = True
            self.stop_accepting()

    def stop_accepting(self):
        if self.accepts:
            self.selector.unregister(self.listener)
            self.accepts = False

    def serve(self, client):
        try:
            more = client.recv(4096)
            self.clients[client] += more
            if b"\r\n\r\n" in self.clients[client]:
                number = self.generation.number
                body = f"generation {number}, pid {os.getpid()}\n"
                client.send((f"HTTP/1.1 200 OK\r\nX-Generation: {number}\r\nContent-Length: {len(body)}\r\n"
                             f"Connection: close\r\n\r\n{body}").encode())
            elif more and len(self.clients[client]) < 4096:
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # it has left
        self.selector.unregister(client)
        del self.clients[client]
        client.close()

    def run(self):
        serves, told, end = self.generation.ready(), False, None
        while end is None or (self.clients and time.monotonic() < end):
            if serves and not self.accepts:
                self.selector.register(self.listener, selectors.EVENT_READ)
                self.accepts = True
                if not told:
                    host, port = self.listener.getsockname()[:2]
                    print(f"generation {self.generation.number} accepts on {host}:{port}", flush=True)
                    told = True
            patience = 1 if end else PAUSE if serves and self.paused else None
            for key, _ in self.selector.select(patience):
                if key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj in self.clients:
                    self.serve(key.fileobj)
            happened = self.generation.next()
            if happened == SUPERSEDED:
                self.generation.check(happened)
            elif happened == SERVE:
                serves = True
            elif happened == RETIRE and end is None:
                self.stop_accepting()
                self.listener.close()
                serves = False
                if self.generation.stopped() == RECALLED:
                    self.listener = self.generation.claim(self.claim)
                    serves = True
                else:
                    end = time.monotonic() + DRAIN
        self.generation.drained()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: server.py [NAME=]ADDRESS")
    Server(sys.argv[1]).run()
