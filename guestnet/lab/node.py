"""One host of a lab: a network, a mount and a UTS namespace, and the libvirtd in them."""

import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestnet.errors import GuestnetError, NotFoundError, TimedOutError
from guestnet.lab import mounts
from guestnet.lab.guest import Guest, domain_xml
from guestnet.lab.image import Image, cache_directory
from guestnet.lab.processes import Homes, lives
from guestnet.lab.programs import SYSTEM_PATH, program

LIBVIRT_URI = "qemu:///system"
LIBVIRTD_SECONDS = 90.0
STATUS_SECONDS = 10.0
TRY_SECONDS = 0.01
"""Between two looks for a socket that nothing announces."""
NETNS_DIRECTORY = Path("/run/netns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host of the lab ``lab``, up or not; ``state`` is the lab's directory, ``number`` counts from 1."""

    lab: str
    number: int
    node_count: int
    guest_count: int
    nic_count: int
    state: Path

    @property
    def name(self) -> str:
        """Like ``n1``; it is the node's host name too."""
        return f"n{self.number}"

    @property
    def netns(self) -> str:
        """The name of the node's network namespace, as ip-netns(8) shows it."""
        return f"gnlab-{self.lab}-{self.name}"

    @property
    def own(self) -> Path:
        """The directory all the node's files lie in; ``run`` in it is the node's /run."""
        return self.state / self.name

    @property
    def log(self) -> Path:
        """What was logged on the node (syslog(3)), seen from outside it; the node sees it as /run/lab/log."""
        return self.own / "run/lab/log"

    @property
    def nics(self) -> tuple[str, ...]:
        """The node's links to the switch."""
        return tuple(f"nic{number}" for number in range(self.nic_count))

    @property
    def guests(self) -> tuple[Guest, ...]:
        """The guests the lab made here, running or not."""
        names = (f"{self.name}g{number}" for number in range(1, self.guest_count + 1))
        return tuple(Guest(name=name, node=self.name, own=self.own) for name in names)

    def guest(self, name: str) -> Guest:
        """The guest of that name; NotFoundError (with the names there are) where the node has none."""
        for guest in self.guests:
            if guest.name == name:
                return guest
        names = ", ".join(guest.name for guest in self.guests) or "none"
        raise NotFoundError(f"the node {self.name} has no guest {name}", hint=f"its guests are: {names}")

    def nic_mac(self, nic: int) -> str:
        """The MAC of the node's link ``nicK``: locally administered, the same each time the lab is made."""
        return f"02:6c:61:62:{self.number:02x}:{nic:02x}"

    @property
    def addresses(self) -> tuple[str, str]:
        """What ``nic0`` gets: IPv4 and IPv6 of the documentation ranges, with prefix length (RFC 5737, RFC 3849)."""
        return f"198.51.100.{self.number}/24", f"2001:db8:51::{self.number:x}/64"

    @property
    def uri(self) -> str:
        """The URI of the node's libvirt for a program outside the node: a unix socket is reached across namespaces."""
        return f"qemu+unix:///system?socket={self.own / 'run/libvirt/libvirt-sock'}"

    def argv(self, command: Sequence[str], *, cwd: str | None = None) -> list[str]:
        """The command line that runs ``command`` in the node's namespaces.

        The environment is the caller's, with HOME and PATH made sure of and libvirt's URI set to the node's own. The
        directory is ``cwd``, or the caller's where the node sees the same, else ``/``.
        """
        directory = cwd or os.getcwd()
        if cwd is None and directory.split("/")[1] in {"run", "dev", "sys"}:
            directory = "/"
        path = [*filter(None, os.environ.get("PATH", "").split(":"))]
        path += [entry for entry in SYSTEM_PATH.split(":") if entry not in path]
        return [
            *self.enter_argv(),
            *("env", "-C", directory, "-u", "XDG_RUNTIME_DIR", "-u", "DBUS_SESSION_BUS_ADDRESS"),
            *(f"PATH={':'.join(path)}", f"HOME={os.environ.get('HOME') or '/root'}"),
            *(f"LIBVIRT_DEFAULT_URI={LIBVIRT_URI}", f"GUESTNET_LAB_NODE={self.name}"),
            *command,
        ]

    def enter_argv(self) -> list[str]:
        """The beginning of a command line that enters the node's namespaces and changes nothing else (nsenter(1))."""
        return [
            *("nsenter", f"--net={NETNS_DIRECTORY / self.netns}", f"--uts={self.own / 'uts'}"),
            *(f"--mount={self.own / 'mnt'}", "--"),
        ]

    def run(
        self, command: Sequence[str], *, cwd: str | None = None, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command on the node and wait for it: subprocess.run, by default with text captured and no stdin.

        Raises NotFoundError where the node is not up, and what subprocess.run raises.
        """
        self.must_be_up()
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        if not {"stdout", "stderr", "capture_output"} & options.keys():
            options["capture_output"] = True
        options.setdefault("text", True)
        return subprocess.run(self.argv(command, cwd=cwd), check=check, **options)

    def must_be_up(self) -> None:
        """NotFoundError unless the node's namespaces are there to be entered."""
        if not (NETNS_DIRECTORY / self.netns).exists() or not os.path.ismount(self.own / "mnt"):
            raise NotFoundError(
                f"the node {self.name} of the lab {self.lab} is not up", hint="guestnet lab status; guestnet lab up"
            )

    def virsh(self, *words: str, input: str | bytes | None = None, timeout: float = 120.0) -> str:
        """What ``virsh`` on this node says; GuestnetError with libvirt's message where it refuses."""
        given: dict[str, Any] = {}
        if input is not None:
            given["input"] = input if isinstance(input, str) else input.decode()
        try:
            done = self.run((program("virsh", "libvirt-clients"), "-q", *words), timeout=timeout, cwd="/", **given)
        except subprocess.TimeoutExpired:
            raise GuestnetError(f"virsh {words[0]} on {self.name} did not end within {timeout:g} s") from None
        if done.returncode != 0:
            raise GuestnetError(f"virsh {words[0]} on {self.name} failed: {' '.join(done.stderr.split())}")
        return str(done.stdout)

    def libvirtd_pid(self) -> int | None:
        """The process id of the node's libvirtd, None where it does not run (the pid file alone is not believed)."""
        try:
            pid = int((self.own / "run/libvirtd.pid").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None
        homes = Homes(device=self.own.stat().st_dev, subtree=f"/{self.name}/run")
        return pid if lives(pid, homes) else None

    def guest_states(self) -> dict[str, str]:
        """State of each domain libvirt knows here, in virsh's words; GuestnetError where libvirtd is gone or silent."""
        lines = self.virsh("list", "--all", timeout=STATUS_SECONDS).splitlines()
        rows = [line.split(None, 2) for line in lines if line.strip()]
        return {name: state.strip() for _, name, state in rows}

    def build(self, image: Image, *, kvm: bool, lock: int) -> None:
        """Put up the node's mounts and start its libvirtd; its network namespace must be there.

        ``lock`` is inherited by the builder, so that whoever waits for the lab's lock also waits for a builder whose
        parent was killed. On failure the half-made node is left for Lab.down. The new namespaces are bound to files
        (unshare(1)), which keep them when no process is in them.

        A mount namespace can be bound only where its id is above that of the namespace it is bound in, and Linux 6.18
        gives each CPU a range of ids to hand out (kernel, mnt_ns_loop, ns_tree_gen_id): in a container the bind may
        fail with EINVAL on one CPU and work on another. So where it fails, each CPU gets a try.
        """
        machine_id = hashlib.sha256(f"guestnet lab {self.lab} {self.name}".encode()).hexdigest()[:32]
        hosts = (f"198.51.100.{number} n{number}\n" for number in range(1, self.node_count + 1))
        self.own.mkdir(mode=0o755)
        (self.own / "run").mkdir(mode=0o755)
        for name in ("mnt", "uts"):
            (self.own / name).touch(mode=0o600)
        words = {
            "own": str(self.own),
            "name": self.name,
            "image": str(image.directory),
            "files": {
                "/etc/machine-id": f"{machine_id}\n",
                "/etc/hostname": f"{self.name}\n",
                "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{''.join(hosts)}",
            },
            "capabilities": str(cache_directory() / "capabilities"),
            "libvirtd": program("libvirtd", "libvirt-daemon"),
            "kvm": kvm,
        }
        here = os.sched_getaffinity(0)
        done = self._run_builder(words, here, lock)
        for cpu in sorted(here):
            if done.returncode == 0 or os.path.ismount(self.own / "mnt"):
                break
            done = self._run_builder(words, {cpu}, lock)
        if done.returncode != 0:
            words_of_it = " ".join(self._build_log.read_text(encoding="utf-8", errors="replace").split())
            raise GuestnetError(f"the node {self.name} could not be built: {words_of_it or done.returncode}")
        self._wait_libvirtd()

    @property
    def _build_log(self) -> Path:
        return self.own / "build.log"

    def _run_builder(self, words: dict[str, Any], cpus: set[int], lock: int) -> subprocess.CompletedProcess[bytes]:
        """Make the node's namespaces on one of these CPUs, and run guestnet.lab.mounts in them on any."""
        command = (
            *_on_cpus(cpus),
            *("nsenter", f"--net={NETNS_DIRECTORY / self.netns}", "--"),
            *("unshare", f"--mount={self.own / 'mnt'}", f"--uts={self.own / 'uts'}", "--propagation", "private", "--"),
            *_on_cpus(os.sched_getaffinity(0)),
            *(sys.executable, "-I", "-S", str(Path(mounts.__file__)), json.dumps(words)),
        )
        null = subprocess.DEVNULL
        with open(self._build_log, "wb") as log:  # a file, not a pipe: a daemon that kept it open would hold us up
            return subprocess.run(command, check=False, stdin=null, stdout=log, stderr=log, pass_fds=(lock,), cwd="/")

    def _wait_libvirtd(self) -> None:
        """Wait until libvirtd takes connections: ``libvirtd -d`` returns before its socket is there (libvirt 9.0)."""
        deadline = time.monotonic() + LIBVIRTD_SECONDS
        pid = self.libvirtd_pid()
        if pid is None:
            raise self._libvirtd_ended()
        with ExitStack() as closing:
            try:
                alive = os.pidfd_open(pid)
            except ProcessLookupError:
                raise self._libvirtd_ended() from None
            closing.callback(os.close, alive)
            while not self._libvirtd_answers():
                if select.select([alive], [], [], TRY_SECONDS)[0]:
                    raise self._libvirtd_ended()
                if time.monotonic() >= deadline:
                    raise TimedOutError(
                        f"libvirtd on {self.name} took no connection within {LIBVIRTD_SECONDS:g} s",
                        hint=f"its log is {self.own / 'log-libvirt/libvirtd.log'}",
                    )

    def _libvirtd_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as trial:
            return trial.connect_ex(str(self.own / "run/libvirt/libvirt-sock")) == 0

    def _libvirtd_ended(self) -> GuestnetError:
        """What to raise for a libvirtd that ended: the last error in its log but for the one that says only that."""
        try:
            log = (self.own / "log-libvirt/libvirtd.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            log = ""
        errors = [line.split(" : ", 2)[-1] for line in log.splitlines() if ": error : " in line]
        reason = next((line for line in reversed(errors) if "Driver state" not in line), "its log says nothing")
        return GuestnetError(f"libvirtd on {self.name} ended at once: {reason}")

    def start_guests(self, *, vcpus: int, kvm: bool) -> None:
        """Define and start the lab's guests on this node; GuestnetError with libvirt's words where it refuses."""
        for guest in self.guests:
            guest.console.parent.mkdir(parents=True, exist_ok=True)
            self.virsh("define", "/dev/stdin", input=domain_xml(guest.name, vcpus=vcpus, kvm=kvm))
            self.virsh("start", guest.name)


def _on_cpus(cpus: set[int]) -> tuple[str, ...]:
    """The beginning of a command line that runs on these CPUs alone (taskset(1))."""
    return ("taskset", "-c", ",".join(map(str, sorted(cpus))))
