//! The packages of the C library, on a separate Debian: the installed library can be linked and
//! run, and is removed without a trace.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{Scene, root, skip};

/// Runs in its own namespaces, on an overlay in memory: `$1` is a Debian, `$2` a directory with the
/// packages and the sources of a program. Prints one line per finding.
const INSIDE: &str = r#"
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/top
mount -t overlay overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/top
top=/mnt/top
mkdir -p "$top/shared"
mount --bind "$2" "$top/shared"
mount -t proc proc "$top/proc"
inside() { chroot "$top" env PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
files() { (cd "$top" && find usr etc -type d -printf '%p %m\n' -o -printf '%p %y %m %s %l\n' | grep -v '^etc/ld.so.cache' | LC_ALL=C sort); }
files >/mnt/before
inside dpkg -i /shared/libbindonce1.deb >/dev/null
echo "status: $(inside dpkg-query -W -f '${Status}' libbindonce1)"
echo "cached: $(inside ldconfig -p | grep -c 'libbindonce.so.1 ')"
# Its libc6-dev needs a compiler's worth of packages, which this Debian does without.
inside dpkg --force-depends -i /shared/libbindonce-dev.deb >/dev/null 2>&1
triplet=$(cd "$top/usr/lib" && echo *-linux-gnu)
flags=$(PKG_CONFIG_SYSROOT_DIR=$top PKG_CONFIG_LIBDIR=$top/usr/lib/$triplet/pkgconfig pkg-config --cflags --libs bindonce)
cc -Wall -Werror -o "$2/linked" "$2/program.c" $flags
echo "version: $(inside /shared/linked)"
inside dpkg --purge libbindonce-dev >/dev/null 2>&1
inside dpkg --purge libbindonce1 >/dev/null
echo "cached afterwards: $(inside ldconfig -p | grep -c 'libbindonce.so.1 ')"
inside /shared/linked >/dev/null 2>&1 && echo "it runs without its library"
files >/mnt/after
diff /mnt/before /mnt/after && echo "nothing is left"
"#;

const PROGRAM: &str = "#include <bindonce.h>\n#include <stdio.h>\nint main(void) { puts(bindonce_version()); return 0; }\n";

#[test]
fn the_library_is_installed_linked_with_and_removed_and_leaves_nothing() {
    for tool in ["dpkg-gensymbols", "pkg-config", "cc", "unshare"] {
        if Command::new(tool).arg("--version").output().is_err() {
            return skip(&format!("no {tool} here"));
        }
    }
    let debian = root().join("target/package/root");
    if !debian.join("usr/bin/dpkg").exists() {
        let why = fs::read_to_string(root().join("target/package/root.why"));
        return skip(why.as_deref().map_or("no Debian: tests/package makes it", str::trim));
    }
    let scene = Scene::new();
    let shared = scene.path("shared");
    fs::create_dir(&shared).expect("a directory");
    let built = Command::new(root().join("deploy/deb"))
        .args(["--library", "--fast", "--version", "0.1.0-7", "--out"])
        .arg(&shared)
        .output()
        .expect("deploy/deb");
    let text = said(&built);
    assert!(built.status.success(), "{text}");
    for (deb, name) in text.lines().zip(["libbindonce1", "libbindonce-dev"]) {
        assert!(deb.contains(&format!("/{name}_0.1.0-7_")), "{deb}");
        fs::rename(deb, shared.join(format!("{name}.deb"))).expect("rename");
    }
    let field = |deb: &str, name: &str| {
        let mut dpkg = Command::new("dpkg-deb");
        said(&dpkg.arg("-f").arg(shared.join(deb)).arg(name).output().expect("dpkg-deb"))
    };
    let depends = field("libbindonce1.deb", "Depends");
    assert!(depends.contains("libc6 (>= ") && depends.contains("libgcc-s1"), "{depends}");
    assert!(field("libbindonce-dev.deb", "Depends").contains("libbindonce1 (= 0.1.0-7)"));
    for deb in ["libbindonce1.deb", "libbindonce-dev.deb"] {
        assert_eq!(field(deb, "Multi-Arch").trim(), "same", "{deb}");
    }
    fs::write(shared.join("program.c"), PROGRAM).expect("write");

    let seen = Command::new("unshare")
        .args(["-mpf", "--kill-child", "sh", "-euc", INSIDE, "sh"])
        .args([&debian.canonicalize().expect("a path"), Path::new(&shared)])
        .output()
        .expect("unshare");
    let text = said(&seen);
    let expected = format!(
        "status: install ok installed\ncached: 1\nversion: {}\ncached afterwards: 0\nnothing is left\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(text, expected);
}

/// The output, errors last.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
