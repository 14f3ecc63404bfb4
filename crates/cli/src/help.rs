//! What stands below the options in each command's `--help`: examples, exit codes, files.
//!
//! The manual pages have the same text (deploy/package makes them). One form for all, which
//! a test holds every command to: a heading is a line that ends in a colon; below it each
//! entry is indented by two spaces, its explanation stands in the same line after at least two
//! more, or in the next lines, indented by six.

/// `bindonce` itself.
pub(crate) const BINDONCE: &str = "\
Examples:
  bindonce run -- haproxy -f /etc/haproxy/haproxy.cfg
      haproxy under supervision, with a broker of its own if none answers
  bindonce reload
      A new generation; waits for the outcome
  bindonce status
      What is held, and who uses it
  bindonce doctor
      Why clients see 503 or hang; needs no broker

Environment:
  BINDONCE_SOCKET    The broker's control socket, unless --socket says it
  MULTIBINDER_SOCK   The same, for those who come from multibinder

Files:
  /run/bindonce/bindonce.sock
      The broker's control socket, for root and where the Debian package is installed
  /run/bindonce/SERVICE.d
      A service's control socket, its haproxys' admin sockets and its state
  /etc/bindonce/bindonce.toml
      The configuration of the packaged broker; see bindonce.toml(5)

Exit codes:
  0  Done
  1  It failed; the message says what, and what to do about it
  2  Wrong usage
  3  `doctor` found something";

/// `bindonce serve`.
pub(crate) const SERVE: &str = "\
Signals:
  SIGTERM, SIGINT  End; listeners are closed unless systemd or a consumer keeps them
  SIGHUP           Read rules and limits of --config again
  SIGUSR1          Upgrade to the binary that is installed now, in place
  SIGTSTP, SIGTTIN, SIGTTOU  Ignored: Ctrl-Z and a terminal's output never stop it

Examples:
  bindonce serve --listen web=0.0.0.0:80 --listen tls=[::]:443,backlog=4096
      Two listeners from the start; clients may ask for more
  bindonce serve --socket /run/bindonce/bindonce.sock --config /etc/bindonce/bindonce.toml
      As the systemd unit of the package does

Exit codes:
  0  Ended by a signal
  1  It could not start: the configuration, the control socket or a listener
  2  Wrong usage";

/// `bindonce run`.
pub(crate) const RUN: &str = "\
Signals:
  SIGHUP, SIGUSR2  Reload; the outcome is in the log
  SIGTERM, SIGINT  Retire every generation and end when they are drained; a second one ends at once
  SIGUSR1          For haproxy: the same as a first SIGTERM, as haproxy's own soft stop
  SIGTSTP, SIGTTIN, SIGTTOU  Ignored: Ctrl-Z and a terminal's output never stop it

Examples:
  bindonce run -- haproxy -f /etc/haproxy/haproxy.cfg
      The configuration stays as it is; a broker is started if none answers
  bindonce run --name edge --drain-timeout 1h -- haproxy -f /etc/haproxy/edge
      A second service, whose older generations may keep connections for an hour
  bindonce run --listen web=0.0.0.0:80 -- haproxy -f site.cfg
      For a configuration that says: bind fd@${web}
  bindonce run --listen web=0.0.0.0:80 -- ./server
      A program that takes its socket as from systemd, says READY=1, and drains on SIGTERM
  bindonce run --listen web=0.0.0.0:80 --variable NGINX='{fds:;};' --retire-signal SIGQUIT \\
      --ready-delay 500ms -- nginx

Exit codes:
  0  Ended by a signal, and drained
  1  The first generation never served, or the broker that was named is not there
  2  Wrong usage";

/// `bindonce reload`.
pub(crate) const RELOAD: &str = "\
Examples:
  bindonce reload
      A new generation of the service \"haproxy\"
  bindonce reload --name edge --timeout 1m && deploy-next

Exit codes:
  0  The new generation serves, and no older one accepts any more
  1  It failed, and what served before serves on; haproxy's own words say why
  2  Wrong usage";

/// `bindonce retire`.
pub(crate) const RETIRE: &str = "\
Examples:
  bindonce retire
      Ends the oldest generation of the service \"haproxy\" that drains
  bindonce retire --name edge 41

Exit codes:
  0  It is gone
  1  No such generation drains, or the supervisor does not answer
  2  Wrong usage";

/// `bindonce exec`.
pub(crate) const EXEC: &str = "\
Examples:
  bindonce exec --listen web=127.0.0.1:8080 -- ./server
      The socket is descriptor 3; LISTEN_FDS=1, LISTEN_FDNAMES=web, web=3
  bindonce exec --listen web -- ./server
      The same, of a listener that the broker holds already
  bindonce exec --listen web=127.0.0.1:8080,blocking -- ./simple-server
      For a program that waits in accept(2): sockets are non-blocking unless this is said

Exit codes:
  1  The broker refused, or the program could not be started
  2  Wrong usage
  other  The program's own";

/// `bindonce render`.
pub(crate) const RENDER: &str = "\
Examples:
  bindonce render /etc/haproxy/haproxy.cfg | diff /etc/haproxy/haproxy.cfg -
      What is changed for haproxy
  bindonce render --explain /etc/haproxy
      What becomes of each address in a directory of files
  bindonce render --explain -- /opt/haproxy/sbin/haproxy -L lb1 -f /etc/haproxy/haproxy.cfg
      The same as that haproxy would read it, with these options

Exit codes:
  0  Printed
  1  The configuration cannot be read; the message names the file and the line
  2  Wrong usage";

/// `bindonce check`.
pub(crate) const CHECK: &str = "\
Examples:
  bindonce check -- haproxy -f /etc/haproxy/haproxy.cfg
      Before a reload, or in a pipeline

Exit codes:
  0  haproxy takes it, and every address can be bound
  1  It does not; haproxy's own words, or the broker's, say why
  2  Wrong usage";

/// `bindonce check-config`.
pub(crate) const CHECK_CONFIG: &str = "\
Examples:
  bindonce check-config /etc/bindonce/bindonce.toml && systemctl reload bindonce

Exit codes:
  0  A broker would take it
  1  It would not; the message says where and why
  2  Wrong usage";

/// `bindonce list`.
pub(crate) const LIST: &str = "\
Examples:
  bindonce list
  bindonce list --json | jq -r '.listeners[].bound'

Exit codes:
  0  Printed, also when nothing is held
  1  No broker answers, or it does not allow this
  2  Wrong usage";

/// `bindonce bind`.
pub(crate) const BIND: &str = "\
Examples:
  bindonce bind web=0.0.0.0:80,backlog=4096
      Once more is no error: \"held already\"
  bindonce bind 127.0.0.1:8000-8010 unix@/run/app.sock,mode=0660
      All of them or none

Exit codes:
  0  All are held
  1  One is not, and none was bound; the message says who has the address
  2  Wrong usage";

/// `bindonce release`.
pub(crate) const RELEASE: &str = "\
Examples:
  bindonce release web 127.0.0.1:8000
      Both or none

Exit codes:
  0  Closed
  1  One is unknown or in use, and none was closed
  2  Wrong usage";

/// `bindonce events`.
pub(crate) const EVENTS: &str = "\
Examples:
  bindonce events
      The last thousand things that happened to the broker, and to each service
  bindonce events --name web --follow
      One service, and each further event as it happens, also over restarts
  bindonce events --json | jq 'select(.kind == \"reload-failed\")'
      One kind of event; docs/operations.md lists all kinds

Files:
  /run/bindonce/bindonce.sock.events
      The broker's events, kept for the next broker
  /run/bindonce/SERVICE.d/events.jsonl
      A service's events; read when its supervisor does not run

Exit codes:
  0  Done
  1  Somebody who is there could not be asked; what the others told is printed
  2  Wrong usage";

/// `bindonce status`.
pub(crate) const STATUS: &str = "\
Examples:
  bindonce status
  bindonce status --json | jq '.supervisors[].generations'
  bindonce status --watch
      Again every second, also while the broker or a supervisor is away
  bindonce status --watch --interval 10s >>status.log

Exit codes:
  0  Printed; with --watch, nobody reads any more
  1  No broker answers, or it does not allow this; what the supervisors tell is printed all the same
  2  Wrong usage";

/// `bindonce top`.
pub(crate) const TOP: &str = "\
Keys:
  j, k, arrows    Choose a service or a generation; PgUp, PgDn, g, G go far
  r               Reload the chosen service
  x, R            End the chosen generation that drains, after a question
  s               Sort the listeners: by name, queue or users
  +, -, 0         A shorter or longer time line, or one that fits
  Tab             The next pane: services, listeners, events
  ?, h            Help
  q, Esc, Ctrl-C  End

Examples:
  bindonce top
  bindonce top --interval 250ms
      Look four times a second; events are shown at once in any case

Environment:
  NO_COLOR                  If it is set, no colours
  LC_ALL, LC_CTYPE, LANG    Bars are drawn in ASCII unless the first that is set says UTF-8

Exit codes:
  0  Ended by a key or a signal, or the terminal is gone
  1  There is no terminal, or it cannot be used
  2  Wrong usage";

/// `bindonce ping`.
pub(crate) const PING: &str = "\
Examples:
  bindonce ping
      Whether the broker answers
  bindonce ping --name haproxy
      Whether the supervisor of the service answers, whatever its haproxy does: for liveness
  bindonce ping --name haproxy --serving
      Whether a generation of it serves too: for readiness

Exit codes:
  0  It answers
  1  It does not, or nothing serves
  2  Wrong usage";

/// `bindonce adopt`.
pub(crate) const ADOPT: &str = "\
Examples:
  bindonce adopt --dry-run --stats-socket /run/haproxy/admin.sock
      What would be taken, and what stays joinable
  bindonce adopt --stats-socket /run/haproxy/admin.sock
      The broker has the sockets; haproxy goes on accepting on them
  bindonce adopt --pid 812 web=0.0.0.0:80
      One listener of a program, under a name
  bindonce adopt --retire --pid 812
      Ends that haproxy, once another serves on the same sockets

Exit codes:
  0  Done, or with --dry-run: it could be done
  1  Not done, and what to do
  2  Wrong usage";

/// `bindonce demo`.
pub(crate) const DEMO: &str = "\
Examples:
  bindonce demo
      With the haproxy that is installed here; Ctrl-C ends it and all that it has started
  bindonce demo --haproxy /opt/haproxy-3.2/sbin/haproxy

Exit codes:
  0  Both ways were shown
  1  There is no haproxy here, or it could not be started, or a signal ended this
  2  Wrong usage";

/// `bindonce upgrade`.
pub(crate) const UPGRADE: &str = "\
Examples:
  bindonce upgrade
      After a new binary was installed: the broker
  bindonce upgrade --name haproxy
      The supervisor of a service

Exit codes:
  0  It runs the new binary
  1  It does not, and the one that ran runs on; the message says why
  2  Wrong usage";
