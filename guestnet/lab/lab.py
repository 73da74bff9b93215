"""A whole lab: up, down, and what it is made of."""

import errno
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guestnet import __version__
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError, TimedOutError, UsageError
from guestnet.lab import processes
from guestnet.lab.image import Image, cache_directory, image, kvm_works
from guestnet.lab.node import NETNS_DIRECTORY, Node
from guestnet.lab.programs import Progress, program, quiet
from guestnet.lab.turn import turn
from guestnet.undo import Undo

STATE_DIRECTORY = Path("/run/guestnet/lab")
LOCK_SECONDS = 90.0
"""How long to wait for another ``up`` or ``down`` of the same lab."""
END_SECONDS = 15.0
BOOT_SECONDS = 240.0
KVM_BOOT_SECONDS = 50.0
"""How long guests may take to boot, also inside another emulated machine; one that ended is found at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabPlan:
    """What was asked of ``up``, as lab.json keeps it; ``namespaces`` are the names it takes in /run/netns."""

    namespaces: tuple[str, ...]
    nodes: int
    guests: int
    nics: int
    vcpus: int
    kvm: bool
    kernel: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NicStatus:
    """A node's link to the switch; ``addresses`` are with prefix length, those the kernel made itself left out."""

    name: str
    mac: str
    up: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStatus:
    """A guest and its state in virsh's words; ``unknown`` when libvirtd is silent, ``undefined`` if it has none."""

    name: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node; ``libvirtd`` is the process id of its living libvirtd, ``nics`` and ``guests`` what is found there."""

    name: str
    netns: str
    up: bool
    libvirtd: int | None
    nics: tuple[NicStatus, ...]
    guests: tuple[GuestStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabStatus:
    """A lab as found now; ``ok`` when every part that was asked for lives."""

    name: str
    accel: str
    kernel: str
    switch: bool
    nodes: tuple[NodeStatus, ...]

    @property
    def ok(self) -> bool:
        """Whether the switch, every libvirtd, every NIC and every guest are there and running."""
        return self.switch and all(
            node.up
            and node.libvirtd is not None
            and all(nic.up for nic in node.nics)
            and all(guest.state == "running" for guest in node.guests)
            for node in self.nodes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A lab by its name, up or not; two of different names do not know of each other.

    Everything it makes is: the network namespaces ``gnlab-NAME-n1``… and ``gnlab-NAME-sw``, a tmpfs at
    /run/guestnet/lab/NAME with all its files in it, and the processes in the nodes' namespaces.
    """

    name: str = "lab"

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z0-9]{1,8}", self.name):
            raise UsageError(f"{self.name!r} is not a lab's name", hint="1 to 8 of the characters a-z and 0-9")

    @property
    def state(self) -> Path:
        """The lab's directory: a private tmpfs while it is up."""
        return STATE_DIRECTORY / self.name

    @property
    def switch(self) -> str:
        """The network namespace with the bridge ``switch`` that all nodes' NICs hang on, as ports ``n1-nic0``…"""
        return f"gnlab-{self.name}-sw"

    def plan(self) -> LabPlan:
        """What the lab was asked to be; NotFoundError where it is not up, NotPermittedError without root."""
        record = self._read_record()
        try:
            return LabPlan(**record | {"namespaces": tuple(record["namespaces"])})
        except (KeyError, TypeError):
            raise GuestnetError(
                f"the lab {self.name} was made by another version of guestnet", hint=self._command("down")
            ) from None

    def _read_record(self) -> dict[str, Any]:
        _must_be_root()
        path = self.state / "lab.json"
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            others = labs()
            up = f" (up: {', '.join(others)})" if others else ""
            hint = f"name it: --name {others[0]}" if others else self._command("up")
            raise NotFoundError(f"the lab {self.name} is not up{up}", hint=hint) from None
        except ValueError as error:
            raise GuestnetError(f"the lab's record {path} cannot be read: {error}", hint="ip netns list") from None
        return record

    def _command(self, verb: str) -> str:
        """The command line that does ``verb`` with this lab, for a hint."""
        return f"guestnet lab {verb}" if self.name == Lab().name else f"guestnet lab {verb} --name {self.name}"

    def nodes(self) -> tuple[Node, ...]:
        """The nodes the lab was asked for; NotFoundError where it is not up."""
        return self._nodes(self.plan())

    def node(self, name: str) -> Node:
        """The node of that name; NotFoundError where there is none or the lab is not up."""
        nodes = self.nodes()
        for node in nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in nodes)
        raise NotFoundError(f"the lab {self.name} has no node {name}", hint=f"its nodes are: {names}")

    def up(
        self,
        *,
        nodes: int = 2,
        guests: int = 1,
        nics: int = 1,
        vcpus: int = 1,
        progress: Progress = quiet,
    ) -> None:
        """Make the lab and wait until every guest has booted.

        ``guests`` is per node; ``nics`` links of each node to the switch: nic0, nic1…, of which nic0 has addresses.
        Raises UsageError for numbers out of range, NotPermittedError without root, NotFoundError for a missing program
        or kernel, ConflictError where a lab of that name is there already, TimedOutError where a guest does not boot.
        Whatever fails, all of it is taken down again; killed, it leaves what Lab.down takes away.
        """
        limits = (("nodes", nodes, 1, 50), ("guests", guests, 0, 20), ("nics", nics, 1, 16), ("vcpus", vcpus, 1, 8))
        for what, number, low, high in limits:
            if not low <= number <= high:
                raise UsageError(f"{what} must be {low} to {high}, not {number}")
        _must_be_root()
        for name, package in (("libvirtd", "libvirt-daemon"), ("virsh", "libvirt-clients"), ("ip", "iproute2")):
            program(name, package)
        program("qemu-system-x86_64", "qemu-system-x86")
        guest_image = image(progress)
        kvm = kvm_works(guest_image, progress)
        plan = LabPlan(
            namespaces=(self.switch, *(f"gnlab-{self.name}-n{number}" for number in range(1, nodes + 1))),
            nodes=nodes,
            guests=guests,
            nics=nics,
            vcpus=vcpus,
            kvm=kvm,
            kernel=guest_image.kernel_version,
            version=__version__,
        )
        with self._locked() as lock, Undo() as undo:
            self._must_be_absent(plan)
            undo.push(f"take down the lab {self.name}", self._down, lock)
            self._record(plan, lock)
            progress("linking the nodes to the switch")
            self._wire(plan, lock)
            self._populate(plan, guest_image, lock, progress)

    def down(self, *, progress: Progress = quiet) -> None:
        """Take away everything the lab is or was; without a lab of that name nothing happens.

        Goes on past what fails and raises one GuestnetError that tells of all of it. ConflictError when called from
        inside the lab, TimedOutError where another ``up`` or ``down`` of this lab holds its lock for too long.
        """
        _must_be_root()
        with self._locked() as lock:
            self._down(lock, progress)

    def status(self) -> LabStatus:
        """The lab as it is now, by looking at each part; NotFoundError where it is not up."""
        plan = self.plan()
        return LabStatus(
            name=self.name,
            accel="kvm" if plan.kvm else "tcg",
            kernel=plan.kernel,
            switch=(NETNS_DIRECTORY / self.switch).exists(),
            nodes=tuple(_node_status(node) for node in self._nodes(plan)),
        )

    def _nodes(self, plan: LabPlan) -> tuple[Node, ...]:
        return tuple(
            Node(
                lab=self.name,
                number=number,
                node_count=plan.nodes,
                guest_count=plan.guests,
                nic_count=plan.nics,
                state=self.state,
            )
            for number in range(1, plan.nodes + 1)
        )

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lab's lock and give its fd; the file is gone afterwards, whoever had it last.

        The file is outside the lab's tmpfs, which comes and goes under the lock. The programs that change the machine
        inherit the fd: when their caller is killed, whoever is next waits for them and meets no late effect.
        """
        path = STATE_DIRECTORY / f"{self.name}.lock"
        with ExitStack() as held:
            fd = self._take_lock(path, held)
            try:
                yield fd
            finally:
                path.unlink(missing_ok=True)
                _remove_empty(STATE_DIRECTORY, STATE_DIRECTORY.parent)

    def _take_lock(self, path: Path, held: ExitStack) -> int:
        """Lock ``path`` until ``held`` closes, making it and its directory, which the end of another lab may remove."""
        deadline = time.monotonic() + LOCK_SECONDS
        busy = f"another guestnet has been at work on the lab {self.name} for over {LOCK_SECONDS:g} s"
        while True:
            with ExitStack() as trial, suppress(FileNotFoundError):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = trial.enter_context(turn(path, timeout=deadline - time.monotonic(), busy=busy))
                if os.path.samestat(os.fstat(fd), path.stat()):
                    held.push(trial.pop_all())
                    return fd

    def _must_be_absent(self, plan: LabPlan) -> None:
        if self.state.exists():
            hint = f"{self._command('status')}; {self._command('down')}"
            raise ConflictError(f"the lab {self.name} is there already", hint=hint)
        for netns in plan.namespaces:
            if (NETNS_DIRECTORY / netns).exists():
                raise ConflictError(
                    f"there is a network namespace {netns}, of no lab that is known", hint=f"ip netns delete {netns}"
                )

    def _record(self, plan: LabPlan, lock: int) -> None:
        """Mount the lab's tmpfs and write lab.json, before anything that lab.json is needed to take down."""
        self.state.mkdir(mode=0o700)
        _run("mount", "-t", "tmpfs", "-o", "mode=0700", "guestnet-lab", str(self.state), lock=lock)
        # a namespace file can be bound only where the mount does not propagate into that namespace (mount(2), ELOOP)
        _run("mount", "--make-private", str(self.state), lock=lock)
        fd = os.open(self.state / ".lab.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(asdict(plan), file)
        os.rename(self.state / ".lab.json", self.state / "lab.json")

    def _wire(self, plan: LabPlan, lock: int) -> None:
        """Make the network namespaces, the bridge and the veth pairs, and give the nodes' nic0 addresses."""
        nodes = self._nodes(plan)
        for netns in plan.namespaces:
            _run("ip", "netns", "add", netns, lock=lock)
        bridge = ["link set lo up", "link add switch type bridge stp_state 0 forward_delay 0", "link set switch up"]
        for node in nodes:
            for number, nic in enumerate(node.nics):
                port = f"{node.name}-{nic}"
                peer = f"peer name {nic} address {node.nic_mac(number)} netns {node.netns}"
                bridge += [f"link add {port} type veth {peer}", f"link set {port} master switch up"]
        _run("ip", "-n", self.switch, "-batch", "-", lock=lock, input="\n".join(bridge))
        for node in nodes:
            lines = ["link set lo up", *(f"link set {nic} up" for nic in node.nics)]
            four, six = node.addresses
            lines += [f"address add {four} dev nic0", f"address add {six} dev nic0 nodad"]
            _run("ip", "-n", node.netns, "-batch", "-", lock=lock, input="\n".join(lines))

    def _populate(self, plan: LabPlan, guest_image: Image, lock: int, progress: Progress) -> None:
        """Bring all nodes and their guests to life, at the same time."""

        def live(node: Node) -> str:
            node.build(guest_image, kvm=plan.kvm, lock=lock)
            node.start_guests(vcpus=plan.vcpus, kvm=plan.kvm)
            _save_capabilities(node)
            return node.name

        nodes = self._nodes(plan)
        what = " with a guest each" if plan.guests == 1 else f" with {plan.guests} guests each" if plan.guests else ""
        progress(f"starting {len(nodes)} node{'s' if len(nodes) != 1 else ''}{what}")
        with ThreadPoolExecutor(max_workers=8) as pool:
            working = [pool.submit(live, node) for node in nodes]
            try:
                for done in as_completed(working):
                    progress(f"{done.result()} runs")
            except BaseException:
                for waiting in working:
                    waiting.cancel()
                raise
        deadline = time.monotonic() + BOOT_SECONDS
        for node in nodes:
            for guest in node.guests:
                try:
                    guest.wait_ready(timeout=KVM_BOOT_SECONDS if plan.kvm else max(0.5, deadline - time.monotonic()))
                except TimedOutError:
                    if not plan.kvm:
                        raise
                    # KVM on an emulated or nested SVM loses a guest's interrupt now and then, and the guest hangs
                    progress(f"{guest.name} has not booted within {KVM_BOOT_SECONDS:g} s under KVM: starting it anew")
                    node.virsh("destroy", guest.name)
                    node.virsh("start", guest.name)
                    guest.wait_ready(timeout=max(0.5, deadline - time.monotonic()))
                progress(f"{guest.name} has booted")

    def _down(self, lock: int, progress: Progress = quiet) -> None:
        """Take the lab away, with its lock held; one error tells of everything that stayed."""
        failures: list[str] = []
        device = self.state.stat().st_dev if os.path.ismount(self.state) else None
        try:
            names = [str(name) for name in self._read_record()["namespaces"]]
        except NotFoundError:  # without a record nothing beyond the tmpfs was made
            names = []
        networks = frozenset(
            (NETNS_DIRECTORY / name).stat().st_ino for name in names if os.path.ismount(NETNS_DIRECTORY / name)
        )
        homes = processes.Homes(device=device, networks=networks)
        if processes.lives(os.getpid(), homes):
            raise ConflictError(f"this runs inside the lab {self.name} itself", hint="run it outside")
        if names:
            progress("ending the lab's processes")
        for pid in processes.end_all(homes, deadline=time.monotonic() + END_SECONDS):
            failures.append(f"process {pid} has not ended")
        for name in names:
            if (NETNS_DIRECTORY / name).exists():
                failures += _delete_netns(name, lock)
        if device is not None and not failures:  # what failed is tried again by the next down, which needs the record
            failures += _attempt("umount", "-R", "-l", str(self.state), lock=lock)
        if not failures and self.state.exists():
            shutil.rmtree(self.state)
        if failures:
            raise GuestnetError(
                f"the lab {self.name} is not all gone: {'; '.join(failures)}", hint=self._command("down")
            )


def labs() -> list[str]:
    """The names of the labs that are up or half up, sorted."""
    try:
        return sorted(entry.name for entry in STATE_DIRECTORY.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def _must_be_root() -> None:
    if os.geteuid() != 0:
        raise NotPermittedError("a lab is made of namespaces, which takes root", hint="run it with sudo")


def _remove_empty(*directories: Path) -> None:
    """Remove these directories, in this order, up to the first that has something in it: it is another lab's."""
    for directory in directories:
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.ENOENT}:
                raise
            return


def _run(*command: str, lock: int | None = None, input: str | None = None) -> str:
    """What a program wrote to stdout; GuestnetError with what it said where it fails. It inherits the fd ``lock``."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    kept = () if lock is None else (lock,)
    done = subprocess.run(command, check=False, text=True, capture_output=True, pass_fds=kept, **given)
    if done.returncode != 0:
        raise GuestnetError(f"{' '.join(command)} failed: {' '.join(done.stderr.split())}")
    return str(done.stdout)


def _attempt(*command: str, lock: int) -> list[str]:
    """Run a program; one line about its failure, or none."""
    try:
        _run(*command, lock=lock)
    except GuestnetError as error:
        return [error.message]
    return []


def _links(netns: str, *words: str) -> list[str]:
    """The names of the links in a network namespace; ``words`` narrow them as for ip-link(8)."""
    return [
        link["ifname"] for link in json.loads(_run("ip", "-n", netns, "-json", "link", "show", *words) or "[]") if link
    ]


def _delete_netns(name: str, lock: int) -> list[str]:
    """Delete a network namespace, its links first; one line for each failure.

    A namespace without a name dies in the background, and until then its macvtaps keep their /dev/tapN: so each link is
    deleted by itself, which is done when the answer comes. A link may have gone with another, and some (lo, the
    fallback tunnels) cannot be deleted; what counts is that no macvtap and no veth remains.
    """
    if not os.path.ismount(NETNS_DIRECTORY / name):
        (NETNS_DIRECTORY / name).unlink(missing_ok=True)  # ip was killed between making the file and the bind
        return []
    failures = []
    try:
        for link in _links(name):
            if link != "lo":
                _attempt("ip", "-n", name, "link", "delete", link, lock=lock)
        stayed = [*_links(name, "type", "macvtap"), *_links(name, "type", "veth")]
        failures += [f"link {link} in {name} stayed" for link in stayed]
    except GuestnetError as error:
        failures.append(error.message)
    return failures + _attempt("ip", "netns", "delete", name, lock=lock)


def _save_capabilities(node: Node) -> None:
    """Keep what this node's libvirtd found out about QEMU for the next one, which checks that it is still true."""
    kept = cache_directory() / "capabilities"
    kept.mkdir(exist_ok=True)
    for found in (node.own / "cache-libvirt/qemu/capabilities").glob("*.xml"):
        content = found.read_bytes()
        if (kept / found.name).is_file() and (kept / found.name).read_bytes() == content:
            continue
        temporary = kept / f".{found.name}.{node.lab}-{node.name}"
        temporary.write_bytes(content)
        temporary.replace(kept / found.name)


def _node_status(node: Node) -> NodeStatus:
    """A node as it is now, dead parts told as such."""
    nics = []
    there = os.path.ismount(NETNS_DIRECTORY / node.netns)
    for link in json.loads(_run("ip", "-n", node.netns, "-json", "address", "show") or "[]") if there else []:
        if link["ifname"] in node.nics:
            found = (a for a in link["addr_info"] if a["scope"] == "global")
            addresses = tuple(f"{a['local']}/{a['prefixlen']}" for a in found)
            up = "UP" in link["flags"] and "LOWER_UP" in link["flags"]
            nics.append(NicStatus(name=link["ifname"], mac=link["address"], up=up, addresses=addresses))
    libvirtd = node.libvirtd_pid()
    states: dict[str, str] | None = None
    if libvirtd is not None:
        with suppress(GuestnetError):  # it lives and does not answer: its guests' states are unknown
            states = node.guest_states()
    return NodeStatus(
        name=node.name,
        netns=node.netns,
        up=there and os.path.ismount(node.own / "mnt"),
        libvirtd=libvirtd,
        nics=tuple(nics),
        guests=tuple(
            GuestStatus(name=guest.name, state="unknown" if states is None else states.get(guest.name, "undefined"))
            for guest in node.guests
        ),
    )
