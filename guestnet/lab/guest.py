"""A tiny guest of a lab node: its domain XML, and commands run inside it through a serial port."""

import base64
import secrets
import select
import shlex
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guestnet import templates
from guestnet.errors import GuestnetError, NotFoundError, TimedOutError, UsageError
from guestnet.lab.image import COMMAND_LINE
from guestnet.lab.turn import turn

COMMAND_BYTES = 2900
"""The longest command: encoded it must fit the guest's 4096-byte tty buffer (Linux, n_tty)."""

PAUSE = "usleep 50000"
"""How a loop in the guest lets time pass between two looks: there busybox has nothing to subscribe with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest of a node, running or not; ``own`` is the node's directory as seen from outside it."""

    name: str
    node: str
    own: Path

    @property
    def console(self) -> Path:
        """The log of the guest's console, seen from outside the node."""
        return self.own / "log-libvirt/qemu" / f"{self.name}-console.log"

    @property
    def port(self) -> Path:
        """The unix socket of the serial port that the guest's agent listens on, seen from outside the node."""
        return self.own / "run/lab" / f"{self.name}.socket"

    def run(self, command: str, *, timeout: float = 30.0) -> tuple[int, str]:
        """Run a shell command inside the guest as root; gives its exit status and its output, stderr in it.

        Commands of several callers run one after the other. After ``timeout`` seconds (waiting for the others included)
        the command is killed in the guest and TimedOutError raised; NotFoundError where the guest does not run;
        UsageError for a command of more than 2900 bytes. What the command left running in the background goes on.
        """
        status, output = self._ask(command.encode(), deadline=time.monotonic() + timeout)
        return status, output.decode("utf-8", errors="replace")

    def wait_ready(self, *, timeout: float = 60.0) -> None:
        """Wait until the guest's agent answers: it has booted.

        TimedOutError (with the console's last line) if it does not; NotFoundError where the guest does not run.
        """
        begun = time.monotonic()
        deadline = begun + timeout
        while True:
            now = time.monotonic()
            patience = max(0.5, (now - begun) / 8)  # a slow guest is not asked again while it works on its answer
            try:
                self._ask(b":", deadline=min(deadline, now + patience))
                return
            except TimedOutError:
                if time.monotonic() >= deadline:
                    raise TimedOutError(
                        f"the guest {self.name} did not answer within {timeout:g} s; its console ends with: "
                        f"{self._last_words()!r}",
                        hint=f"virsh on node {self.node} shows its state; its console is in {self.console}",
                    ) from None

    def wait_nic(self, mac: str, *, timeout: float = 30.0) -> str:
        """Wait until the guest has a NIC with this MAC; gives the guest's name of it, like ``eth0``.

        TimedOutError where it does not come within ``timeout`` seconds.
        """
        wanted = shlex.quote(mac.lower())
        loop = (
            f"n={_turns(timeout)}; while [ $n -gt 0 ]; do for f in /sys/class/net/*/address; do read -r a <$f; "
            f'[ "$a" = {wanted} ] && basename ${{f%/address}} && exit 0; done 2>/dev/null; '
            f"n=$((n-1)); {PAUSE}; done; exit 1"
        )
        status, output = self.run(loop, timeout=timeout + 5)
        if status != 0:
            raise TimedOutError(f"the guest {self.name} saw no NIC with MAC {mac} within {timeout:g} s")
        return output.strip()

    def wait_no_nic(self, mac: str, *, timeout: float = 30.0) -> None:
        """Wait until the guest has no NIC with this MAC any more; TimedOutError where it stays."""
        wanted = shlex.quote(mac.lower())
        loop = (
            f"n={_turns(timeout)}; while [ $n -gt 0 ]; do "
            f"cat /sys/class/net/*/address 2>/dev/null | grep -qxF {wanted} || exit 0; "
            f"n=$((n-1)); {PAUSE}; done; exit 1"
        )
        if self.run(loop, timeout=timeout + 5)[0] != 0:
            raise TimedOutError(f"the guest {self.name} still has the NIC with MAC {mac} after {timeout:g} s")

    def _ask(self, command: bytes, *, deadline: float) -> tuple[int, bytes]:
        """Send one request to the agent (templates/lab/agent) and read its answer past whatever is stale."""
        if len(command) > COMMAND_BYTES:
            raise UsageError(f"the command for {self.name} is {len(command)} bytes long, more than {COMMAND_BYTES}")
        mark = secrets.token_hex(8).encode()
        with self._turn(deadline), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as port:
            seconds = max(0, int(deadline - time.monotonic())) + 2  # the guest kills it after we gave up, not before
            left = max(0.01, deadline - time.monotonic())
            # a QEMU that is slow to take the connections of earlier tries makes a blocking connect wait (unix(7));
            # one with a Python timeout fails at once with EAGAIN
            port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(int(left * 1e6), 10**6)))
            try:
                port.connect(str(self.port))
                port.settimeout(left)
                # the newline first ends what an interrupted request may have left in the guest's buffer
                port.sendall(b"\n%s %d %s\n" % (mark, seconds, base64.b64encode(command)))
                return self._answer(port, mark, deadline)
            except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
                raise NotFoundError(
                    f"the guest {self.name} does not run", hint=f"start it on {self.node}: virsh start {self.name}"
                ) from None
            except (TimeoutError, BlockingIOError):
                raise TimedOutError(f"the guest {self.name} did not answer in time") from None

    def _answer(self, port: socket.socket, mark: bytes, deadline: float) -> tuple[int, bytes]:
        data = b""
        while True:
            start = data.find(b"=" + mark)  # the = tells it from the tty's echo of the request, on until the agent runs
            line, newline, body = data[max(start, 0) :].partition(b"\n")
            if start >= 0 and newline:
                _, status, size = line.split()
                if len(body) >= int(size):
                    return int(status), body[: int(size)]
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([port], [], [], left)[0]:
                raise TimedOutError(f"the guest {self.name} did not answer in time")
            more = port.recv(65536)
            if not more:
                raise ConnectionResetError
            data += more

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        """Hold the guest's serial port for one request: QEMU serves one client at a time."""
        lock = self.port.with_suffix(".lock")
        busy = f"the guest {self.name} is busy with another command"
        try:
            with turn(lock, timeout=deadline - time.monotonic(), busy=busy):
                yield
        except FileNotFoundError:
            raise NotFoundError(f"the node {self.node} of the guest {self.name} is not up") from None

    def _last_words(self) -> str:
        try:
            lines = self.console.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _turns(timeout: float) -> int:
    """How many looks with a PAUSE between them fit into ``timeout`` seconds."""
    return max(1, int(timeout / 0.05))


def domain_xml(name: str, *, vcpus: int, kvm: bool) -> bytes:
    """The domain XML of a guest, of templates/lab/guest.xml; paths are those a node sees."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True)
    root = etree.fromstring(templates.read("lab/guest.xml"), parser)

    def at(path: str) -> etree._Element:
        element = root.find(path)
        if element is None:
            raise GuestnetError(f"the template lab/guest.xml has no {path}", hint="install guestnet again")
        return element

    root.set("type", "kvm" if kvm else "qemu")
    at("name").text = name
    at("vcpu").text = str(vcpus)
    at("os/kernel").text = "/run/lab/image/vmlinuz"
    at("os/initrd").text = "/run/lab/image/initramfs"
    at("os/cmdline").text = f"{COMMAND_LINE} guestnet.name={name}"
    at("devices/serial[@type='file']/source").set("path", f"/var/log/libvirt/qemu/{name}-console.log")
    at("devices/serial[@type='unix']/source").set("path", f"/run/lab/{name}.socket")
    return etree.tostring(root)
