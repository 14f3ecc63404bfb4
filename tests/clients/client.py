#!/usr/bin/env python3
"""Claims listeners from bindonce: client.py SOCKET ADDRESS PORT..."""
import json, socket, sys
path, address, *ports = sys.argv[1:]
broker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
broker.settimeout(30)
broker.connect(path)
params = [{"address": address, "port": int(port)} for port in ports]
request = {"jsonrpc": "2.0", "id": 1, "method": "bind", "params": params}
broker.sendall(json.dumps(request).encode())
text, descriptors, listeners = b"", [], None
while listeners is None or len(descriptors) < len(listeners):
    data, rights, flags, _ = socket.recv_fds(broker, 65536, 253, socket.MSG_CMSG_CLOEXEC)
    if not data or flags & socket.MSG_CTRUNC:
        sys.exit("the reply is cut off")
    text, descriptors = text + data, descriptors + rights
    if listeners is None and b"\n" in text:  # The text is complete; spaces may follow.
        reply = json.loads(text)
        listeners = reply["result"]["listeners"] if "result" in reply else sys.exit(reply["error"]["message"])
print([(entry["bound"], socket.socket(fileno=fd)) for entry, fd in zip(listeners, descriptors)])
