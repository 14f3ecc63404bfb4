#!/usr/bin/env python3
"""The same as multibinder_client.rb, for machines without Ruby.

Usage: multibinder_client.py SOCKET ADDRESS PORT. Exits 0 if all of it holds.
"""
import array
import fcntl
import json
import os
import socket
import subprocess
import sys


def ask(broker, bind):
    """One sendmsg, one recvmsg, as the gem's client does it."""
    request = {"jsonrpc": "2.0", "method": "bind", "params": [bind]}
    broker.sendmsg([json.dumps(request).encode()])
    number = array.array("i", [0])
    text, control, flags, _ = broker.recvmsg(65536, socket.CMSG_SPACE(number.itemsize))
    if flags & socket.MSG_CTRUNC:
        sys.exit("more than one descriptor came")
    reply = json.loads(text)
    if reply.get("error"):
        if not isinstance(reply["error"]["message"], str):
            sys.exit("error.message is not a string: %r" % text)
        return reply, None
    number.frombytes(control[0][2])
    listener = socket.socket(fileno=number[1])
    descriptor_flags = fcntl.fcntl(listener, fcntl.F_GETFD)
    fcntl.fcntl(listener, fcntl.F_SETFD, descriptor_flags & ~fcntl.FD_CLOEXEC)
    return reply, listener


def inode(listener):
    return os.fstat(listener.fileno()).st_ino


path, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
broker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
broker.settimeout(30)
broker.connect(path)
bind = {"address": address, "port": port, "backlog": 10240}

reply, listener = ask(broker, bind)
if listener is None:
    sys.exit("refused: " + reply["error"]["message"])
if listener.getsockname()[:2] != (address, port):
    sys.exit("asked for %s:%d, got %r" % (address, port, listener.getsockname()))
if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
    sys.exit("the socket does not listen")

_, again = ask(broker, bind)
if again is None or inode(again) != inode(listener):
    sys.exit("a repeated bind gave another socket")

# An exec'd program inherits it: this is how the gem hands sockets to haproxy.
seen = subprocess.run(["test", "-e", "/proc/self/fd/%d" % listener.fileno()], close_fds=False)
if seen.returncode != 0:
    sys.exit("the descriptor does not survive exec")

reply, nothing = ask(broker, {"address": "203.0.113.1", "port": port})
if nothing is not None or not isinstance(reply["error"]["code"], int):
    sys.exit("an address of another machine was bound")

broker.close()
print("%s:%d inode %d" % (address, port, inode(listener)))
