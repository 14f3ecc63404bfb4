"""A server that takes its sockets as from systemd (sd_listen_fds(3)), says READY=1 (sd_notify(3)) and
drains on SIGTERM: it closes its listeners, serves what is connected, and exits.

    server.py FILE [ghost]

Every request is answered with the text of FILE, read at the start, as x-generation. With `ghost` the
listeners are closed and stay registered in the epoll set, as happens to programs that rely on
close() for that.
"""

import os
import selectors
import signal
import socket
import sys

tag = open(sys.argv[1]).read().strip()
ghost = "ghost" in sys.argv[2:]
if not tag.isdigit():
    sys.exit(f"server.py: {sys.argv[1]}:1: {tag!r} is no number")
assert os.environ["LISTEN_PID"] == str(os.getpid()), os.environ
count = int(os.environ["LISTEN_FDS"])
listeners = [socket.socket(fileno=number) for number in range(3, 3 + count)]
names = os.environ["LISTEN_FDNAMES"].split(":")
assert len(names) == count and os.environ[names[0]] == "3", os.environ

selector = selectors.EpollSelector()
waking, wake = os.pipe()
os.set_blocking(waking, False)
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
signal.signal(signal.SIGTERM, lambda *_: None)
selector.register(waking, selectors.EVENT_READ)
for listener in listeners:
    selector.register(listener, selectors.EVENT_READ)
connections = {}
serving = True


def tell(state):
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect("\0" + where[1:] if where[0] == "@" else where)
            manager.sendall(state)


def close(connection):
    selector.unregister(connection)
    del connections[connection]
    connection.close()


def stop():
    global serving
    serving = False
    for listener in listeners:
        if not ghost:
            selector.unregister(listener)
        listener.close()


def accept(listener):
    try:
        connection, _ = listener.accept()
    except OSError:
        return
    connection.setblocking(False)
    connections[connection] = b""
    selector.register(connection, selectors.EVENT_READ)


def read(connection):
    try:
        data = connection.recv(65536)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    connections[connection] += data
    if not data:
        close(connection)
    elif b"\r\n\r\n" in connections[connection]:
        head = f"HTTP/1.1 200 OK\r\nx-generation: {tag}\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"
        try:
            connection.sendall(head.encode() + b"ok\n")
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # The client has gone.
        close(connection)


tell(b"READY=1\nSTATUS=serving")
while serving or connections:
    for key, _ in selector.select():
        if key.fileobj == waking:
            if signal.SIGTERM in os.read(waking, 100) and serving:
                stop()
        elif key.fileobj in listeners:
            accept(key.fileobj)
        else:
            read(key.fileobj)
