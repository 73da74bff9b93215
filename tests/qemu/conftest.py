"""Guests under a bare QEMU, on cables between namespaces of the test."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guestnet.errors import NotFoundError
from guestnet.kernel import netns, tap
from guestnet.kernel.link import Links
from guestnet.lab.guest import Guest
from guestnet.lab.image import COMMAND_LINE, Image, image, kvm_works
from guestnet.model import Link, Owner
from tests.conftest import REPO, Answer, Namespace

BOOT_SECONDS = 240.0
NETWORKS = {"nic0": "198.51.100", "nic1": "203.0.113"}
"""The cables of a test by their near end: the host of the far end is .2, guests are .1, .3, …"""


@dataclass(frozen=True)
class Bare(Guest):
    """A guest under a QEMU that the test starts itself: what QEMU is told of it, and commands run inside."""

    image: Image
    cpus: int = 1
    qmp: Path = Path()

    @classmethod
    def at(cls, own: Path, made: Image, name: str = "bare", cpus: int = 1) -> "Bare":
        """A guest with its files below the directory ``own``."""
        for directory in ("run/lab", "log-libvirt/qemu"):
            (own / directory).mkdir(parents=True, exist_ok=True)
        return cls(name=name, node="none", own=own, image=made, cpus=cpus, qmp=own / f"{name}.qmp")

    @property
    def words(self) -> list[str]:
        """QEMU's command line but for the NICs: two free root ports, a QMP socket, the console and the agent's port."""
        ports = [word for n in (1, 2) for word in ("-device", f"pcie-root-port,id=rp{n},chassis={n},slot={n}")]
        accel = "kvm" if kvm_works(self.image) else "tcg"
        return [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
            "-accel", accel, "-smp", str(self.cpus), "-m", "128", "-kernel", str(self.image.kernel),
            "-initrd", str(self.image.initramfs), "-append", COMMAND_LINE, "-serial", f"file:{self.console}",
            "-serial", f"unix:{self.port},server=on,wait=off", "-qmp", f"unix:{self.qmp},server=on,wait=off",
            "-name", self.name, *ports,
        ]  # fmt: skip

    def booted(self, process: subprocess.Popen[str] | None = None) -> None:
        """Wait until the guest is up; AssertionError with the last words of who started it if that ends."""

        def is_there() -> bool:
            assert process is None or process.poll() is None, process.communicate()
            return listens(self.port)

        until(is_there, timeout=BOOT_SECONDS)
        try:
            self.wait_ready(timeout=BOOT_SECONDS)
        except NotFoundError:  # it has ended
            assert process is None, process.communicate(timeout=BOOT_SECONDS)
            raise

    def answers(self, mac: str, nic: str, far: "Host", *, host: int = 1, mtu: int | None = None, by: str = "") -> None:
        """Give the guest's NIC of that MAC an address on the cable ``nic``, and let the far end ping it, ``by`` a link
        of its own."""
        by = by or far_end(nic)
        name = self.wait_nic(mac)
        network = NETWORKS[nic]
        status, said = self.run(f"ip link set {name} up && ip addr add {network}.{host}/24 dev {name}")
        assert status == 0, said
        far.ip(f"neigh flush dev {by}")
        done = far.ping(f"{network}.{host}", by, *([] if mtu is None else ["-M", "do", "-s", str(mtu - 28)]))
        assert done.returncode == 0, done.stdout


def far_end(nic: str) -> str:
    """The other end of the cable of that name."""
    return nic.replace("nic", "peer")


class Host(Namespace):
    """A namespace with the near ends of the cables; the far ends are in it too, with addresses."""

    def ping(self, address: str, ifname: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Ping from here until an answer comes, for 20 seconds at most."""
        line = ["ip", "netns", "exec", self.name, "ping", "-c", "1", "-w", "20", "-I", ifname, *words, address]
        return subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in it."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        environment = {**os.environ, "PYTHONPATH": str(REPO)} | options.pop("env", {})
        line = ["nsenter", f"--net=/run/netns/{self.name}", "--", *words]
        return subprocess.Popen(line, text=True, env=environment, **options)

    def guestnet(self, *words: str, check: bool = False, **options: Any) -> Answer:
        """Run guestnet in it."""
        with self.start(*GUESTNET, *words, **options) as process:
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        answer = Answer(process.returncode, out, err)
        assert not check or answer.code == 0, answer
        return answer

    def ours(self) -> dict[str, Link]:
        """The macvtaps of QEMUs, by name."""
        return {link.name: link for link in self.links.all() if link.owner is Owner.QEMU}

    def holders(self, name: str) -> list[int]:
        """The processes that have a macvtap open."""
        device = tap.device(name, namespace=self.fd)
        return [holder.pid for holder in tap.holders(device).get(device.rdev, ())]

    def watchers(self) -> list[int]:
        """The processes that watch over macvtaps of this namespace."""
        return watchers_in(self.fd)


def watchers_in(namespace: int) -> list[int]:
    """The processes that watch over macvtaps of the namespace of that fd."""
    mine, found = os.fstat(namespace).st_ino, []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and b"guestnet.watcher" in (entry / "cmdline").read_bytes().split(b"\0"):
                found += [int(entry.name)] if os.stat(entry / "ns/net").st_ino == mine else []
        except OSError:
            continue  # it has ended meanwhile
    return found


def listens(path: Path) -> bool:
    """Whether somebody listens at a unix socket: for a moment it is bound and nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as one:
        try:
            one.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            return True  # and others wait to be served
    return True


def until(happened: Callable[[], bool], *, timeout: float = 30.0) -> None:
    """Wait until it has happened; AssertionError where it does not."""
    deadline = time.monotonic() + timeout
    never = threading.Event()
    while not happened():
        assert time.monotonic() < deadline, "it does not come about"
        never.wait(0.02)


GUESTNET = (sys.executable, "-m", "guestnet")


@pytest.fixture(scope="session")
def guest_image() -> Image:
    """The lab guests' kernel and initramfs."""
    return image()


@pytest.fixture
def host(namespace: Callable[[], Namespace]) -> Iterator[Host]:
    """A namespace with two cables; what has ended in it has been cleaned up after."""
    made = wired(namespace())
    yield made
    until(lambda: not made.watchers())


@pytest.fixture(scope="module")
def shared_host() -> Iterator[Host]:
    """A namespace with two cables, the same for all tests of a module."""
    name = f"gntest-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    try:
        with netns.opened(name) as fd, Links(fd) as links:
            made = wired(Namespace(name, fd, links))
            yield made
            made.clear()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=20)


def wired(made: Namespace) -> Host:
    """The namespace, with two cables put in."""
    made = Host(made.name, made.fd, made.links)
    for number, (nic, network) in enumerate(NETWORKS.items()):
        made.ip(f"link add {nic} address 52:54:00:aa:{number:02}:01 type veth peer name {far_end(nic)}")
        made.ip(f"link set {nic} up")
        made.ip(f"link set {far_end(nic)} up")
        made.ip(f"addr add {network}.2/24 dev {far_end(nic)}")
    return made


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended at the end of the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for one in started:
        one.terminate()  # `run` passes it on
    for one in started:
        try:
            one.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            one.kill()
            one.communicate(timeout=10)


@pytest.fixture
def qemu(host: Host, tmp_path: Path, processes: list[subprocess.Popen[str]]) -> Callable[..., Path]:
    """Starts a QEMU that runs its firmware; gives its QMP socket."""

    def start(*words: str, machine: str = "q35", at: Path | None = None) -> Path:
        path = at or tmp_path / "qmp"
        listen = ("-qmp", f"unix:{path},server=on,wait=off") if at is None else ()
        processes.append(host.start(*bare(*listen, *words, machine=machine)))
        until(lambda: listens(path))
        return path

    return start


def bare(*words: str, machine: str = "q35") -> tuple[str, ...]:
    """The command line of such a QEMU."""
    base = ("-nodefaults", "-display", "none", "-accel", "tcg", "-m", "16", "-machine", machine)
    return ("qemu-system-x86_64", *base, *words)
