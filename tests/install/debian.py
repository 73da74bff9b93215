"""A Debian as debootstrap makes it, kept as an archive, and systems made of it in namespaces of their own.

It has what the lab's hosts run, libvirt and QEMU, but no Python: what guestnet needs lies in apt's cache, so that
apt installs it, with no network, when guestnet's package asks for it.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guestnet.lab import cache
from guestnet.lab.programs import SYSTEM_PATH
from guestnet.lab.turn import turn
from tests.conftest import REPO

_FOR_THE_LAB = re.compile(r"^ {4}apt install --no-install-recommends (.+)$", re.MULTILINE)

[_line] = _FOR_THE_LAB.findall((REPO / "docs/install.md").read_text(encoding="utf-8"))
HOSTS = (*_line.split(), "bash-completion", "zsh")
"""What docs/install.md has a person install for the lab, and shells to complete in."""

ASKED_FOR = ("python3", "python3-libvirt", "fish")
"""What guestnet depends on, and a shell that depends on Python: apt has them at hand and not installed."""

_BUILD = """
set -e
export DEBIAN_FRONTEND=noninteractive
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
chroot "$1" apt-get -q update
chroot "$1" apt-get -q -y install --no-install-recommends {hosts}
chroot "$1" apt-get clean
chroot "$1" apt-get -q -y install --no-install-recommends --download-only {asked_for}
"""

_PRIVATE = ("unshare", "--mount", "--propagation=private")
"""What is mounted on the way is seen by nobody else."""

# nsenter(1) goes to the root of a mount namespace, as the lab does with its hosts: so that is what it has to be.
# The shell is process 1: with it all ends that was started there, and it takes in what its parents left.
_START = """
set -e
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/lock
mkdir -p old
ip link set lo up
pivot_root . old
umount -l old
echo up
sleep infinity &
wait
"""


@dataclass(frozen=True)
class System:
    """A running system: a process that has its namespaces, and the directory that is its root."""

    pid: int
    root: Path

    def inside(self, *words: str) -> list[str]:
        """The command line that calls a command there."""
        home = (f"PATH={SYSTEM_PATH}", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
        own = (f"--target={self.pid}", "--mount", "--net", "--uts", "--pid")
        return ["nsenter", *own, "--", "env", "-i", *home, *words]

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """What a command says there, and its status."""
        return subprocess.run(
            self.inside(*words), check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout
        )

    def must(self, *words: str, timeout: float = 120) -> str:
        """What a command says that has to succeed."""
        done = self.run(*words, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def system(directory: Path) -> Iterator[System]:
    """A system of its own in that empty directory, with what a host of guests has; it is gone after the block."""
    quietly("tar", "-C", str(directory), "--zstd", "-xf", str(archive()))
    with running(directory, "--net") as made:
        yield made


@contextmanager
def running(directory: Path, *more: str) -> Iterator[System]:
    """The system that is in that directory, with namespaces of its own; with those of unshare(1) that are named beside.
    At the end of the block it is gone, with all that runs in it."""
    own = ("--mount", "--uts", "--pid", *more, "--fork", "--kill-child", "--propagation=private")
    words = ("unshare", *own, "sh", "-c", _START, "sh", str(directory))
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
            yield System(int(children), directory)
        finally:
            process.kill()
            process.wait()
            quietly("rm", "-rf", "--one-file-system", str(directory))


def archive() -> Path:
    """The archive, made now if it is not there; a second caller waits for the first."""
    suite = release()
    key = hashlib.sha256(repr((suite, HOSTS, ASKED_FOR, _BUILD)).encode()).hexdigest()[:12]
    home = cache.directory("install")
    home.mkdir(parents=True, exist_ok=True)
    made = home / f"{suite}-{key}" / "root.tar.zst"
    with turn(home / ".lock", timeout=600, busy="another run is still making its Debian"):
        if not made.is_file():
            with cache.made(made.parent) as directory:
                make(directory, suite)
    return made


def release() -> str:
    """The release that this machine runs, by its name."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"]


def make(directory: Path, suite: str) -> None:
    """Make the archive."""
    root = directory / "root"
    bootstrap(root, suite)
    script = _BUILD.format(hosts=" ".join(HOSTS), asked_for=" ".join(ASKED_FOR))
    quietly(*_PRIVATE, "sh", "-c", script, "sh", str(root))
    quietly("tar", "-C", str(root), "--zstd", "-cf", str(directory / "root.tar.zst"), ".")
    quietly("rm", "-rf", "--one-file-system", str(root))


def bootstrap(root: Path, suite: str) -> None:
    """Make the smallest Debian there is, from where this machine's apt gets its packages, and let it do so too."""
    words = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {suite}")
    mirror = quietly(*words).split()[0]
    quietly(*_PRIVATE, "debootstrap", "--variant=minbase", suite, str(root), mirror)
    for name in ("sources.list", "sources.list.d", "trusted.gpg.d"):
        quietly("rm", "-rf", str(root / "etc/apt" / name))
        if Path("/etc/apt", name).exists():
            quietly("cp", "-a", f"/etc/apt/{name}", str(root / "etc/apt"))
    quietly("cp", "-a", "/etc/resolv.conf", str(root / "etc"))


def quietly(*words: str) -> str:
    """Run a program that has to succeed; what it says."""
    done = subprocess.run(
        words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-4000:]}"
    return done.stdout


def install(system: System, what: Path | str, *options: str) -> str:
    """Install a package, from a file as a person does; what it depends on comes out of apt's cache."""
    if isinstance(what, Path):
        shutil.copy(what, system.root / "root")
        what = f"/root/{what.name}"
    return system.must("apt-get", "-q", "-y", "install", "--no-install-recommends", *options, what)
