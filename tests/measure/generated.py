"""Generated haproxy configurations: sections, conditions, variables, quotes, words that expand to
nothing, late global sections, defaults, several files, masters, and binds of every family.

haproxy accepts most of them. About one in eight is wild: some haproxy may refuse it.
"""

import itertools
import random

VARIABLES = {"SET": "8301", "HOST": "127.0.0.1", "LIST": "v6only interface lo", "SPACED": " name x ", "EMPTY": "",
             "LATE": "8302"}
NAMESPACE = "blue"
ADDRESS = "10.9.9.9"


class Generator:
    """One configuration, determined by its seed."""

    def __init__(self, seed, where, version, features, certificate, masters=True):
        self.version = tuple(int(number) for number in version.split(".")[:2])
        self.certificate = certificate
        self.quic = "QUIC" in features and certificate
        self.random = random.Random(seed)
        self.where = where
        self.wild = self.often(0.12)
        # Few configurations need more than 400 ports.
        self.ports = itertools.chain(self.random.sample(range(9000, 20000), 400), range(20000, 30000))
        self.sections = 0
        self.master = self.one(*[""] * 12, *["-W", "-Ws", "master-worker", "master-worker"] if masters else [""])
        self.peers_done = False

    def one(self, *choices):
        return self.random.choice(choices)

    def often(self, chance):
        return self.random.random() < chance

    def wildly(self, *choices):
        """Choices that only a wild configuration has."""
        return choices if self.wild else ()

    def since(self, major, minor, *choices):
        return choices if self.version >= (major, minor) else ()

    def variable(self):
        return self.one("SET", "HOST", "EMPTY", "NOT", "LATE", "EARLY", "HAPROXY_BRANCH", "HAPROXY_MWORKER",
                        "HAPROXY_LOCALPEER", "HAPROXY_CFGFILES", "HAPROXY_HTTP_LOG_FMT", "HAPROXY_TCP_LOG_FMT",
                        "HAPROXY_HTTPS_LOG_FMT", "HAPROXY_STARTUP_VERSION", "HAPROXY_TCP_CLF_LOG_FMT")

    def condition(self, depth=0):
        name = self.variable()
        # A log format contains quotes and parentheses: it cannot be an argument of a call.
        plain = name if name in VARIABLES or not name.endswith("_FMT") else "SET"
        simple = self.one(
            "0", "1", "010", "0x0", "-1", f"defined({name})", f"!defined({name})", f"defined( {name})",
            f'streq(\\"${plain}\\",8302)', f'streq("${plain}",3.2)', 'strneq("$EARLY",x)', r"streq(\"a,b\",\"a,b\")",
            "streq('a b',a\\ b)", 'streq("$EMPTY",)', "version_atleast(3.0)", "version_before(3.1)", "feature(OPENSSL)",
            "feature(QUIC)", "feature(NOTHING)", "openssl_version_atleast(1.1.1)", "openssl_version_before(3.0.0)", "!0",
            "defined(HOST)", 'streq("${.SECTION}",f1)', 'streq("${.LINE}",20)', 'streq("${HAPROXY_BRANCH-none}",none)',
            *self.since(2, 8, "enabled(EPOLL)", "enabled(POLL)", "enabled(SPLICE)", "enabled(GETADDRINFO)",
                        "enabled(REUSEPORT)", "enabled(FAST-FORWARD)", "strstr(abc,b)", 'strstr("$HAPROXY_BRANCH",3)'),
            *self.wildly("openssl_version_atleast(1.1)", "nonsense(1)", "1 1", "enabled(KQUEUE)", "enabled(NOTHING)"))
        if depth < 3 and self.often(0.3):
            other = self.condition(depth + 1)
            return self.one(f"{simple} && {other}", f"{simple} || {other}", f"!({other})", f"({simple}) && !{simple}")
        return simple

    def word(self, text):
        return self.one(text, text, text, f'"{text}"', f"'{text}'", text[:1] + f'"{text[1:]}"', text + '""')

    def port(self):
        return next(self.ports)

    def address(self):
        port, where = self.port(), self.where
        return self.one(
            f":{port}", f"*:{port}", f"127.0.0.1:{port}", f"{ADDRESS}:{port}", f"[::1]:{port}", f"::1:{port}",
            f":::{port}", f"[::]:{port}", f"ipv4@:{port}", f"ipv6@:{port}", f"ipv6@*:{port}", f"ip@127.0.0.2:{port}",
            f"tcp@127.0.0.1:{port}", f"tcp4@:{port}", f"tcp6@::1:{port}", f"stream+ipv4@127.0.0.1:{port}",
            f"localhost:{port}", f"[localhost]:{port}", f"ipv4@localhost:{port}", f"[127.0.0.1]:{port}",
            f":{port}-{port + 2}", f"127.0.0.1:{port}-+{port + 1}", f"*:{port},[::]:{port}", f"*:{port},127.0.0.1:{port}",
            f"{where}/{port}.sock", f"unix@{where}/u{port}.sock", f"uxst@{where}/x{port}.sock",
            f"{where}/../{where.name}/d{port}.sock", f"abns@n{port}", f"abns@n{port}/x",
            *self.since(3, 1, f"abnsz@z{port}", f"mptcp4@127.0.0.1:{port}", f"mptcp@:{port}", f"mptcp6@::1:{port}"),
            *self.wildly(f"127.1:{port}", f"udp@:{port}", f"abnsz@z{port}", f":{port},,:{port + 1}", f"nowhere@:{port}",
                         f"fd@{port}", ":0", f":{port + 1}-{port}", "abns@", f"{where}/nowhere/{port}.sock"))

    def bind_address(self):
        if self.often(0.25):
            port = self.port()
            return self.one(f'"127.0.0.1:${{PORT-{port}}}"', f'"$HOST:{port}"', f'"127.0.0.1:{port}${{EMPTY}}"',
                            f'"abns@${{HAPROXY_LOCALPEER}}{port}"',
                            f'"abns@b${{HAPROXY_BRANCH}}-{port}"', f'"abns@s${{.SECTION}}{port}"',
                            f'"abns@m${{HAPROXY_MWORKER-x}}{port}"', f'"abns@e${{EARLY-x}}{port}"',
                            f'"abns@l${{LATE-x}}{port}"', f'"abns@v${{HAPROXY_STARTUP_VERSION}}{port}"',
                            *self.wildly(f'127.0.0.1:"${{EARLY-{port}}}"', f'"127.0.0.1:${{LATE-{port}}}"', f'"127.0.0.1:{port}${{NOT}}"',
                                         f'"127.0.0.1:{port}${{NOT[*]}}"', '"127.0.0.1:${LATE}"', '"127.0.0.1:$SET"',
                                         f'127.0.0.1:{port}"$NOT"'))
        text = self.address()
        if self.often(0.12):
            text += "," + self.one(f"127.0.0.1:{self.port()}", f":{self.port()}", "", f"[::1]:{self.port()},")
        return self.word(text)

    def bind(self, peers=False):
        line = "bind "
        if self.wild and self.often(0.2):
            line += self.one('"${NOT[*]}" ', '"$NOT" ', '"$EMPTY" ', '"${EMPTY[*]}" ', "'' ")
        if self.quic and not peers and self.often(0.07):
            return f"    bind {self.one('quic4', 'quic6', 'quic4')}@:{self.port()} ssl crt {self.where}/site.pem alpn h3"
        line += f"127.0.0.1:{self.port()}" if peers else self.bind_address()
        while self.often(0.3):
            line += " " + self.one("name a", "maxconn 10", "backlog 20", "interface lo", "v6only", "v4v6", "transparent",
                                   "accept-proxy", "defer-accept", "tcp-ut 5s", "mode 600", '"${LIST[*]}"', "mss 1400",
                                   "nice 3", "level user", f"namespace {NAMESPACE}", "tfo", "mode 4755", "thread 1",
                                   f"ssl crt {self.where}/site.pem" if self.certificate else "nice 2",
                                   "interface nosuch0" if self.often(0.2) else "nice 1",
                                   *self.wildly("id 7", '"${NOT[*]}"', '"$NOT"', '"$EMPTY"', '"${SPACED[*]}"', '""', "foo"))
        return "    " + line + self.one("", "", "  ", " # comment", "\r", '#"x')

    def block(self, lines, depth=0):
        if depth > 4 or not self.often(0.35):
            return lines()
        out = [f".if {self.condition()}", *self.block(lines, depth + 1)]
        while self.often(0.3):
            out += [f".elif {self.condition()}", *self.block(lines, depth + 1)]
        if self.often(0.6):
            out += [".else", *self.block(lines, depth + 1)]
        return out + [".endif"]

    def setting(self):
        return "    " + self.one(
            "setenv EARLY x", "setenv LATE 8303", 'setenv EARLY "${EARLY-}y"', "presetenv EARLY 8304", "presetenv PORT 8305",
            "unsetenv LATE", "unsetenv EARLY HOST", "resetenv PATH HOST", "resetenv", "noepoll", "nopoll", "nosplice",
            "noreuseport", "nogetaddrinfo", "ssl-server-verify none", "maxconn 200", 'setenv LATE "${HAPROXY_BRANCH-8306}"',
            f"stats socket {self.where}/stats{self.port()}.sock", f"stats socket 127.0.0.1:{self.port()} level admin",
            f"stats socket ipv6@:{self.port()}", f"stats socket abns@stats{self.port()}", "maxconn 300",
            f"unix-bind prefix {self.where}/p mode 600" if self.wild else "unix-bind mode 600",
            *([] if self.peers_done else ["localpeer other"]),
            *self.wildly('setenv "${NOT[*]}" A B', "setenv EARLY"))

    def settings(self):
        lines = lambda: [self.setting() for _ in range(self.random.randrange(1, 3))]
        return ["global", *self.block(lines)]

    def defaults(self):
        name = self.one("", " d")
        return [f"defaults{name}", "    mode http", "    timeout connect 1s", "    timeout client 1s", "    timeout server 1s",
                *self.one([], [], [], ["    disabled"] if self.often(0.3) else [], ["    backlog 7"])]

    def proxy(self):
        self.sections += 1
        head = self.one("frontend", "listen", "frontend", "backend" if self.often(0.2) else "listen") + f" f{self.sections}"
        body = lambda: [self.bind() for _ in range(self.random.randrange(1, 3))]
        extra = self.one([], [], [], [], ["    disabled"], ["    enabled"],
                         ['    disabled "$NOT"'] if self.wild else [], ["    backlog 9"])
        return [head, *extra, *self.block(body), *(body() if self.often(0.6) else [])]

    def peers(self):
        """A peers section, whose local peer, if it has one, has a bind line or an address."""
        self.sections += 1
        self.peers_done = True
        local = self.one('"$HAPROXY_LOCALPEER"', '"$HAPROXY_LOCALPEER"', "other", '"${HAPROXY_LOCALPEER[*]}"')
        head = [f"peers p{self.sections}"]
        if self.often(0.4):
            return [*head, f"    peer {local} 127.0.0.1:{self.port()}", "    peer far 127.0.0.1:1"]
        default = [self.one("    default-bind v4v6", "    default-bind backlog 5")] if self.often(0.3) else []
        return [*head, *default, self.bind(peers=True), f"    server {local}", "    server far 127.0.0.1:1"]

    def log_forward(self):
        self.sections += 1
        port = self.port()
        address = self.one(f"127.0.0.1:{port}", f":{port}", f"udp4@:{port}", f"udp6@::1:{port}", f"[::1]:{port}",
                           f"{ADDRESS}:{port}", f"dgram+ipv4@:{port}", f"udp@localhost:{port}")
        lines = [f"    dgram-bind {self.word(address)}{self.one('', '', ' interface lo', ' transparent', ' name x')}"]
        if self.often(0.5):
            lines.append(f"    bind 127.0.0.1:{self.port()}")
        return [f"log-forward l{self.sections}", *lines, "    log 127.0.0.1:1 local0"]

    def part(self):
        return self.one(self.proxy, self.proxy, self.proxy, self.proxy, self.settings, self.defaults, self.peers,
                        self.log_forward)

    def files(self):
        """The texts of the files, mostly of one file."""
        texts = []
        for _ in range(self.one(1, 1, 1, 1, 2, 3)):
            first = ["    limited-quic"] if self.quic else []
            first += ["    master-worker"] if self.master == "master-worker" else []
            out = ["global", *first] if not texts else []
            out += self.settings() if self.often(0.6) else []
            out += self.defaults()
            for _ in range(self.random.randrange(1, 5)):
                part = self.part()
                out += self.block(part) if self.often(0.3) else part()
            if self.often(0.8):
                self.sections += 1
                out += [f"frontend f{self.sections}", "    enabled", self.bind()]
            texts.append("\n".join(out) + "\n")
        return texts

    def arguments(self):
        """More arguments for haproxy, mostly none."""
        out = [self.master] if self.master.startswith("-") else []
        if self.often(0.1):
            out += self.one(["-L", "other"], ["-de"], ["-dS"], ["-dR"], ["-dG"], ["-C", str(self.where)], ["-n", "500"],
                            *self.since(3, 2, ["-4"]))
        return out
