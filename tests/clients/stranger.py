"""The client of the boundary tests, which runs as another user: `broker.bind("web=:80")`."""
import ctypes, json, os, signal, socket, sys, time

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
        """Returns `ok`, or the error's code and message."""
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

def attempts(paths, pids):
    """Returns the forbidden things that this process can do to these files and processes."""
    done, libc = [], ctypes.CDLL(None, use_errno=True)
    def attempt(what, act):
        try:
            act()
            done.append(what)
        except OSError:
            pass
    def speak(path):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(path)
    for path in paths:
        beside = path + ".planted"
        attempt(f"connect to {path}", lambda: speak(path))
        attempt(f"read {path}", lambda: os.close(os.open(path, os.O_RDONLY)))
        attempt(f"write {path}", lambda: os.close(os.open(path, os.O_WRONLY)))
        attempt(f"plant {beside}", lambda: os.close(os.open(beside, os.O_WRONLY | os.O_CREAT, 0o600)))
        attempt(f"link {beside}", lambda: os.symlink("/", beside))
        attempt(f"move {path}", lambda: os.rename(path, beside))
        attempt(f"chmod {path}", lambda: os.chmod(path, 0o777))
        attempt(f"remove {path}", lambda: os.unlink(path))
    for pid in pids:
        attempt(f"signal {pid}", lambda: os.kill(pid, 0))
        attempt(f"stop {pid}", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGSTOP))
        attempt(f"take a descriptor of {pid}", lambda: descriptor(os.pidfd_open(pid), 0))
        for file in ("environ", "mem", "fd/0", "map_files", "root", "cwd"):
            # Some of these open without a permission check, and then say nothing.
            attempt(f"read {file} of {pid}", lambda: look(f"/proc/{pid}/{file}"))
    return done

def look(path):
    if os.path.basename(path) in ("root", "cwd", "0"):
        return os.readlink(path)
    if os.path.basename(path) == "map_files":
        return os.listdir(path)
    with open(path, "rb", buffering=0) as file:
        if not file.read(1):
            raise OSError("nothing in it")

def descriptor(process, number):
    """A copy of a descriptor of another process (pidfd_getfd(2))."""
    copy = ctypes.CDLL(None, use_errno=True).syscall(438, process, number, 0)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return copy

def all_of(pid):
    """Copies each descriptor of another process, by number: what code inside that process has."""
    process, copies = os.pidfd_open(pid), {}
    for number in map(int, os.listdir(f"/proc/{pid}/fd")):
        copies[number] = descriptor(process, number)
    return copies
