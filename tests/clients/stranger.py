"""What the tests of the boundary speak to the broker with, as another user: `broker.bind("web=:80")`."""
import json, os, socket, sys, time

class Broker:
    def __init__(self, path=sys.argv[1]):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.text = b""
        self.descriptors = []

    def send(self, method, *params):
        self.socket.sendall(json.dumps({"id": 1, "method": method, "params": params}).encode() + b"\n")

    def reply(self):
        while b"\n" not in self.text:
            data, rights, _, _ = socket.recv_fds(self.socket, 65536, 253)
            if not data:
                raise EOFError("the broker closed the connection")
            self.text, self.descriptors = self.text.lstrip(b" ") + data, self.descriptors + rights
        line, self.text = self.text.split(b"\n", 1)
        return json.loads(line)

    def call(self, method, *params):
        """`ok`, or the code of the error and what it says."""
        self.send(method, *params)
        reply = self.reply()
        return "ok" if "result" in reply else f"{reply['error']['code']} {reply['error']['message']}"

    def bind(self, *listen):
        return self.call("bind", *({"listen": text} for text in listen))

def become(uid, groups=()):
    os.setgroups(groups)
    os.setgid(uid)
    os.setuid(uid)

def say(*words):
    print(*words, flush=True)
