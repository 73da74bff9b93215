"""What holds for all tests: nothing is left behind, nothing is skipped unseen in CI, and a network to make links in."""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guestnet.kernel import netns, tap
from guestnet.kernel.link import Links
from guestnet.lab import cache

REPO = Path(__file__).resolve().parents[1]

pytest_plugins = ["tests.vm.plugin"]

MAY_SKIP: dict[str, str] = {}
"""The reasons for which a test may be skipped where the environment says CI=true, and why that is no loss."""

# what a library opens when it is first used and keeps for good
_LIBRARY_FDS = re.compile(r"anon_inode:\[event(fd|poll)\]|/dev/(null|u?random)|/proc/\d+/(stat|maps)")
# other runs are at work on this machine: the namespaces and device nodes that come and go are theirs as well
_SHARED = os.environ.get("GUESTNET_TESTS_SHARE_THE_MACHINE") == "1"
_LEFT_BEHIND_AFTER = 3.0  # seconds the kernel gets to finish what it does after the answer, such as cleanup_net


# Skipped tests


def _forbid_skip(report: Any) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI") != "true":
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix(
        "Skipped: "
    )
    if reason not in MAY_SKIP:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, and not on the list of tests/conftest.py: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    outcome: Any = yield
    _forbid_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    outcome: Any = yield
    _forbid_skip(outcome.get_result())


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() != 0 and item.get_closest_marker("root") is not None:
        pytest.skip("needs root")


# Nothing is left behind


class Trace(NamedTuple):
    """What a test could leave on this machine or in this process."""

    links: frozenset[str]
    namespaces: frozenset[str]
    nodes: frozenset[str]
    fds: frozenset[tuple[str, str]]
    children: frozenset[str]
    mounts: frozenset[str]


def trace(*, live_nodes: bool = not _SHARED) -> Trace:
    """What there is now; without ``live_nodes`` only those device nodes that no macvtap has any more."""
    with Links() as links:
        names = frozenset(link.name for link in links.all())
    fds = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue  # the fd of the listing itself
        if not _LIBRARY_FDS.fullmatch(target):
            fds.add((entry, target))
    children: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends meanwhile
            children.update(Path(f"/proc/self/task/{task}/children").read_text(encoding="ascii").split())
    # the first namespace of a machine makes /run/netns a mount point for good (ip-netns(8))
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()}
    mounts.discard(str(netns.DIRECTORY))
    namespaces = set(netns.names())
    nodes = {name for name in os.listdir("/dev") if name.startswith(("tap", ".guestnet-"))}
    if not live_nodes:
        nodes = {name for name in nodes if not _is_alive(name)}
    if _SHARED:
        mounts = {path for path in mounts if not path.startswith(("/run/", f"{cache.directory('')}"))}
        namespaces = set()
    return Trace(
        links=names, namespaces=frozenset(namespaces), nodes=frozenset(nodes), fds=frozenset(fds),
        children=frozenset(children), mounts=frozenset(mounts),
    )  # fmt: skip


def _is_alive(node: str) -> bool:
    """Whether the kernel has a device of the node's number."""
    try:
        number = os.stat(f"/dev/{node}").st_rdev
    except FileNotFoundError:
        return True  # it went meanwhile
    return os.path.lexists(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")


def difference(before: Trace, after: Trace) -> dict[str, list[Any]]:
    """What is there once and not the other time, by its field; empty where all is equal."""
    pairs = zip(Trace._fields, before, after, strict=True)
    return {field: sorted(old ^ new) for field, old, new in pairs if old != new}


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Links, namespaces, device nodes, fds, children and mounts are the same before and after each test."""
    live_nodes = not _SHARED and request.node.get_closest_marker("guest_runs_on") is None
    before = trace(live_nodes=live_nodes)
    yield
    deadline = time.monotonic() + _LEFT_BEHIND_AFTER
    never = threading.Event()
    while (left := difference(before, trace(live_nodes=live_nodes))) and time.monotonic() < deadline:
        never.wait(0.02)
    assert left == {}


# A network to make links in


@dataclass(frozen=True)
class Answer:
    """How a guestnet process ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it said on stdout, as JSON."""
        return json.loads(self.out)


def as_user(user: int) -> list[str]:
    """What to put before a command: a user who reads all, as guestnet and its Python may lie below a closed /root."""
    read = "-all,+dac_read_search"
    return ["setpriv", f"--reuid={user}", "--clear-groups", f"--inh-caps={read}", f"--ambient-caps={read}", "--"]


def _run_guestnet(*words: str, netns: str | None = None, user: int | None = None) -> Answer:
    inside = ["nsenter", f"--net=/run/netns/{netns}", "--"] if netns is not None else []
    done = subprocess.run(
        [*inside, *(as_user(user) if user is not None else ()), sys.executable, "-m", "guestnet", *words],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def run_guestnet() -> Callable[..., Answer]:
    """Runs the command line as a process of its own, in a network namespace if ``netns`` names one."""
    return _run_guestnet


@dataclass(frozen=True)
class Namespace:
    """A network namespace of a test: its name, an fd of it, and its links."""

    name: str
    fd: int
    links: Links

    def ip(self, *words: str) -> str:
        """What ip(8) answers in it. Words may have blanks between them."""
        line = ["ip", "-n", self.name, *(part for word in words for part in word.split())]
        return subprocess.run(line, capture_output=True, text=True, timeout=20, check=True).stdout

    def shown(self, *words: str) -> list[dict[str, Any]]:
        """`ip -d -j link show` with these words, in ifindex order."""
        found = json.loads(self.ip("-d -j link show", *words) or "[]")
        return sorted((link for link in found if link), key=lambda link: int(link["ifindex"]))

    def call(self, function: Callable[[], Any]) -> Any:
        """What the function gives inside it."""
        return netns.call(self.fd, function)

    def read(self, path: str) -> str:
        """A file of /proc/sys/net as it is there."""
        return str(self.call(lambda: Path(path).read_text(encoding="utf-8"))).strip()

    def clear(self) -> None:
        """Delete its links now: the kernel takes its time with those of a namespace that goes.

        And their nodes, which in the /dev of a container are files that no kernel takes away.
        """
        links = [link for link in self.links.all() if link.kind]
        devices = [tap.device_of(link, namespace=self.fd) for link in links if link.kind == "macvtap"]
        for link in links:
            self.links.delete(link)
        for device in devices:
            tap.remove_node(device)


@pytest.fixture
def namespace() -> Iterator[Callable[[], Namespace]]:
    """Makes network namespaces, which go at the end of the test with all that is in them."""
    made: list[Namespace] = []
    with ExitStack() as stack:

        def make() -> Namespace:
            name = f"gntest-{secrets.token_hex(4)}"
            subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=True, timeout=20)
            fd = stack.enter_context(netns.opened(name))
            links = stack.enter_context(Links(fd))
            made.append(Namespace(name, fd, links))
            made[-1].ip("link set lo up")
            return made[-1]

        try:
            yield make
        finally:
            for one in reversed(made):
                one.clear()


@pytest.fixture
def parent(namespace: Callable[[], Namespace]) -> Namespace:
    """A namespace with the two ends of a cable in it, ``nic0`` and ``peer0``, both up."""
    made = namespace()
    made.ip("link add nic0 address 52:54:00:aa:00:01 type veth peer name peer0 address 52:54:00:aa:00:02")
    made.ip("link set nic0 up")
    made.ip("link set peer0 up")
    return made
