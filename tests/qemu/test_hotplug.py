"""guestnet qemu attach, detach, list: NICs of a QEMU that runs, by its QMP socket."""

import gc
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from guestnet.errors import ConflictError, GuestnetError, NotFoundError, TimedOutError
from guestnet.guest.qmp import GoneError, Monitor, RefusedError
from guestnet.kernel import tap
from guestnet.lab.image import Image
from guestnet.model import Mac, Request
from guestnet.plan import qemu as plan
from guestnet.plan.qemu import Vhost
from guestnet.qemu import Options, hotplug
from guestnet.qemu.hotplug import How
from tests.conftest import Namespace
from tests.qemu.conftest import GUESTNET, Bare, Host, bare, listens, until, wired

pytestmark = pytest.mark.root

MAC = "52:54:00:00:e2:01"
OTHER = "52:54:00:00:e2:02"
CYCLES = 50
SLACK_KB = 2048
"""What the memory of QEMU may differ by between ten cycles and ten others, thirty later: some 70 KiB a cycle."""


@pytest.fixture(scope="module")
def guest(shared_host: Host, guest_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A guest with four CPUs that has booted, and has no NIC. All its memory is there from the start."""
    made = Bare.at(tmp_path_factory.mktemp("bare"), guest_image, cpus=4)
    with shared_host.start(*made.words, "-mem-prealloc") as qemu:
        try:
            made.booted(qemu)
            yield made
        finally:
            qemu.kill()


@pytest.fixture(autouse=True)
def nothing_stays_plugged_in(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test that failed left in the guest that all share is no reason for the next to fail."""
    yield
    if "guest" in request.fixturenames:
        host, guest = request.getfixturevalue("shared_host"), request.getfixturevalue("guest")
        host.call(lambda: hotplug.detach(str(guest.qmp), (), How(), everything=True))


def state(host: Host, path: Path) -> dict[str, Any]:
    """All that a failed or finished attach must leave as it was: QEMU's NICs, netdevs and taps, and the links."""
    with Monitor(str(path)) as qemu:
        devices = sorted(one["name"] for one in qemu.execute("qom-list", path="/machine/peripheral"))
        network = qemu.execute("human-monitor-command", **{"command-line": "info network"})
        pid = qemu.pid
    return {"devices": devices, "network": network, "fds": taps_of(pid), "links": links_of(host)}


def links_of(host: Host) -> list[str]:
    return sorted(link.name for link in host.links.all())


def taps_of(pid: int) -> list[str]:
    """What a process has open of taps and vhost-net."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sorted(path for path in found if re.search("tap[0-9]|vhost", path))


def attach(host: Host, path: Path, *macs: str, how: How | None = None, **words: Any) -> hotplug.Outcome:
    """Attach NICs by the function, in the host's namespace: the first on nic0, the second on nic1."""
    requests = tuple(Request(parent=f"nic{number}", mac=Mac(mac), **words) for number, mac in enumerate(macs))
    found: hotplug.Outcome = host.call(lambda: hotplug.attach(str(path), requests, Options(), how or How()))
    return found


def detach(host: Host, path: Path, *names: str, timeout: float = 30.0) -> hotplug.Outcome:
    found: hotplug.Outcome = host.call(lambda: hotplug.detach(str(path), names, How(timeout=timeout)))
    return found


# A guest that answers


@pytest.mark.guest
@pytest.mark.parametrize("queues", [1, 4])
def test_a_nic_is_plugged_in_answers_and_is_taken_away(queues: int, shared_host: Host, guest: Bare) -> None:
    host, before = shared_host, state(shared_host, guest.qmp)
    words = ("--qmp", str(guest.qmp), "--parent", "nic0", "--mac", MAC, "--queues", str(queues))
    done = host.guestnet("qemu", "attach", *words, "--json", check=True).json
    assert (done["guest"], done["changed"]) == ("bare", True)
    (nic,) = done["nics"]
    name = f"gn{MAC.replace(':', '')}"
    expected = {"ifname": name, "parent": "nic0", "mode": "bridge", "mac": MAC, "queues": queues, "bus": "rp1"}
    assert nic.items() >= expected.items()
    guest.answers(MAC, "nic0", host)
    inside = guest.wait_nic(MAC)
    assert guest.run(f"ls -d /sys/class/net/{inside}/queues/rx-* | wc -l")[1].strip() == str(queues)
    again = host.guestnet("qemu", "attach", *words, "--json", check=True).json
    assert (again["changed"], again["nics"]) == (False, [nic])
    assert host.guestnet("qemu", "list", "--qmp", str(guest.qmp), "--json", check=True).json == [nic]
    table = host.guestnet("qemu", "list", "--qmp", str(guest.qmp), check=True).out
    assert table.split("\n")[1].split() == [
        name, "nic0", "bridge", MAC, "virtio", str(queues), "rp1", name, "yes",
    ]  # fmt: skip
    host.guestnet("qemu", "detach", name, "--qmp", str(guest.qmp), check=True)
    assert state(host, guest.qmp) == before
    until(lambda: not host.watchers())


@pytest.mark.guest
def test_two_nics_on_two_parents_beside_links_of_the_same_ifindex(
    namespace: Callable[[], Namespace], shared_host: Host, guest: Bare
) -> None:
    host, before = shared_host, state(shared_host, guest.qmp)
    rival = wired(namespace())
    host.ip("link add passing type bridge")
    (passed,) = (link.index for link in host.links.all() if link.name == "passing")
    host.ip("link delete passing")
    following = (passed + 1, passed + 2)  # the kernel gives each number of a namespace once
    for index in following:
        rival.ip(f"link add link nic0 name mt{index} index {index} type macvtap mode bridge")
    devices = [tap.device(f"mt{index}", namespace=rival.fd) for index in following]
    right = [device for device in devices if device.node() is tap.Node.RIGHT]  # both, unless others are at work here
    attach(host, guest.qmp, MAC, OTHER, mtu=1400)
    assert all(link.index >= 1 << 24 for link in host.ours().values()), "the collision did not come about"
    for mac, nic in ((MAC, "nic0"), (OTHER, "nic1")):
        guest.answers(mac, nic, host, mtu=1400)
    assert [device.node() for device in right] == [tap.Node.RIGHT] * len(right)
    detach(host, guest.qmp, MAC.upper(), f"gn{OTHER.replace(':', '')}")
    assert state(host, guest.qmp) == before


@pytest.mark.guest
def test_many_attaches_and_detaches_leave_fds_links_and_memory_level(shared_host: Host, guest: Bare) -> None:
    host, before = shared_host, state(shared_host, guest.qmp)
    with Monitor(str(guest.qmp)) as qemu:
        pid = qemu.pid

    def level() -> tuple[int, int, int]:
        gc.collect()
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir("/proc/self/fd")), memory_of(pid)

    levels = []
    for _ in range(CYCLES):
        attach(host, guest.qmp, MAC, queues=4)
        guest.wait_nic(MAC)
        detach(host, guest.qmp, MAC)
        levels.append(level())
    until(lambda: not host.watchers())
    assert state(host, guest.qmp) == before
    warm, last = ([statistics.median(one) for one in zip(*part, strict=True)] for part in (levels[10:20], levels[-10:]))
    assert last[:2] == warm[:2], levels
    assert abs(last[2] - warm[2]) < SLACK_KB, levels


def memory_of(pid: int) -> int:
    """What a QEMU has in memory of its own, in KiB (proc(5), smaps); the code it translates for the guest is not."""
    text = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8")
    mapped = re.findall(r"^[0-9a-f]+-[0-9a-f]+ ..(.)(?s:.*?)^Anonymous: +([0-9]+) kB", text, re.MULTILINE)
    return sum(int(size) for executable, size in mapped if executable != "x")


@pytest.mark.guest
def test_a_third_nic_has_no_port_left_and_is_refused_before_anything_is_made(shared_host: Host, guest: Bare) -> None:
    host = shared_host
    attach(host, guest.qmp, MAC, OTHER)
    full = state(host, guest.qmp)
    answer = host.guestnet("qemu", "attach", "--qmp", str(guest.qmp), "--parent", "nic0")
    assert answer.code == 5
    assert "no PCI port is free" in answer.err
    assert "pcie-root-port" in answer.err
    assert state(host, guest.qmp) == full
    detach(host, guest.qmp, MAC, OTHER)


@pytest.mark.guest
def test_a_guest_that_lets_go_late_is_finished_with_by_the_same_command(shared_host: Host, guest: Bare) -> None:
    host, before = shared_host, state(shared_host, guest.qmp)
    attach(host, guest.qmp, MAC)
    guest.wait_nic(MAC)
    with pytest.raises(TimedOutError):
        detach(host, guest.qmp, MAC, timeout=0.0)
    with Monitor(str(guest.qmp)) as qemu:
        until(lambda: not qemu.has(f"gn{MAC.replace(':', '')}"))
    assert host.ours()
    detach(host, guest.qmp, MAC)
    assert state(host, guest.qmp) == before


class LostError(GuestnetError):
    """An answer that did not come."""


COMMANDS = ("getfd 1", "getfd 2", "netdev_add 1", "device_add 1", "getfd 4", "netdev_add 2", "device_add 2")


@pytest.mark.guest
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_attach_that_fails_is_undone(
    command: str, moment: str, shared_host: Host, guest: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(shared_host, guest.qmp)
    name, number = command.split()
    left = [int(number)]
    execute = Monitor._execute

    async def failing(self: Monitor, which: str, arguments: dict[str, object]) -> Any:
        left[0] -= which == name
        hit = which == name and left[0] == 0
        if hit and moment == "before":
            raise LostError("before")
        result = await execute(self, which, arguments)
        if hit:
            raise LostError("after")
        return result

    monkeypatch.setattr(Monitor, "_execute", failing)
    with pytest.raises(LostError) as caught:
        attach(shared_host, guest.qmp, MAC, OTHER, queues=2)
    assert not getattr(caught.value, "__notes__", [])
    monkeypatch.undo()
    assert state(shared_host, guest.qmp) == before


@pytest.mark.guest
def test_a_nic_that_qemu_has_otherwise_than_it_was_asked_for_is_undone(
    shared_host: Host, guest: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(shared_host, guest.qmp)
    words_of = plan.device
    monkeypatch.setattr(plan, "device", lambda *words: {**words_of(*words), "mq": False})
    with pytest.raises(GuestnetError, match=r"has no NIC .* with 2 queues"):
        attach(shared_host, guest.qmp, MAC, queues=2)
    monkeypatch.undo()
    assert state(shared_host, guest.qmp) == before


MOMENTS = ("getfd 1", "getfd 2", "device_add 1", "end")
"""Where an attach is killed: with an fd sent, with one named, with a netdev made, with the NIC plugged in."""


@pytest.mark.guest
@pytest.mark.parametrize(("mac", "then"), [(MAC, "attach"), (MAC, "detach"), (None, "attach")])
def test_what_an_attach_that_was_killed_leaves_is_no_obstacle(
    mac: str | None, then: str, shared_host: Host, guest: Bare
) -> None:
    host, before = shared_host, state(shared_host, guest.qmp)
    requests = (Request(parent="nic0", mac=Mac(mac) if mac else None, queues=2),)

    def attached() -> hotplug.Outcome:
        found: hotplug.Outcome = host.call(lambda: hotplug.attach(str(guest.qmp), requests, Options(), How()))
        return found

    for moment in MOMENTS if mac else MOMENTS[:-1]:
        kill_at(moment, attached)
        if then == "attach":
            (nic,) = attached().nics
            assert {link.mac for link in host.ours().values()} == {nic.mac}
        host.call(lambda: hotplug.detach(str(guest.qmp), (), How(), everything=True))
        until(lambda: state(host, guest.qmp) == before)
        until(lambda: not host.watchers())


def kill_at(moment: str, attached: Callable[[], object]) -> None:
    """Attach in a process that is killed at that moment."""
    child = os.fork()
    if not child:
        command, _, number = moment.partition(" ")
        left = [int(number or 0)]
        execute: Any = Monitor._execute

        async def fatal(self: Monitor, which: str, arguments: dict[str, object]) -> Any:
            left[0] -= which == command
            if which == command and left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return await execute(self, which, arguments)

        setattr(Monitor, "_execute", fatal)  # noqa: B010 - in this process alone
        with suppress(BaseException):
            attached()
            os.kill(os.getpid(), signal.SIGKILL if moment == "end" else signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, moment


@pytest.mark.guest
def test_what_qemu_refuses_is_told_in_its_words_and_undone(shared_host: Host, guest: Bare) -> None:
    before = state(shared_host, guest.qmp)
    answer = shared_host.guestnet("qemu", "attach", "--qmp", str(guest.qmp), "--parent", "nic0", "--bus", "rp9")
    assert answer.code == 1
    assert "Bus 'rp9' not found" in answer.err
    assert state(shared_host, guest.qmp) == before


SIGNALLED = """
import os, signal
from guestnet.guest.qmp import Monitor
execute = Monitor._execute
async def ending(self, command, arguments):
    if command == "device_add":
        os.kill(os.getpid(), signal.SIGTERM)
    return await execute(self, command, arguments)
Monitor._execute = ending
from guestnet.cli import main
main()
"""


@pytest.mark.guest
def test_an_attach_that_a_signal_ends_in_its_middle_leaves_nothing(shared_host: Host, guest: Bare) -> None:
    before = state(shared_host, guest.qmp)
    words = ("qemu", "attach", "--qmp", str(guest.qmp), "--parent", "nic0", "--parent", "nic1")
    with shared_host.start(sys.executable, "-c", SIGNALLED, *words) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "ended by SIGTERM" in err
    assert "not undone" not in err
    assert state(shared_host, guest.qmp) == before


@pytest.mark.guest
def test_a_guest_that_is_paused_is_told_to_let_go_of_nothing(shared_host: Host, guest: Bare) -> None:
    attach(shared_host, guest.qmp, MAC)
    guest.wait_nic(MAC)
    with Monitor(str(guest.qmp)) as qemu:
        qemu.execute("stop")
    with pytest.raises(ConflictError, match="does not run"):
        detach(shared_host, guest.qmp, MAC)
    with Monitor(str(guest.qmp)) as qemu:
        qemu.execute("cont")
    detach(shared_host, guest.qmp, MAC)


@pytest.mark.guest
@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, (), "say which NIC, or --all"),
        (2, ("gn0", "--all"), "both given"),
        (3, ("gn525400000000",), "has no NIC gn525400000000"),
        (0, ("--all",), "unchanged"),
    ],
)
def test_what_cannot_be_detached_is_told(
    code: int, words: tuple[str, ...], said: str, shared_host: Host, guest: Bare
) -> None:
    answer = shared_host.guestnet("qemu", "detach", *words, "--qmp", str(guest.qmp))
    assert answer.code == code
    assert said in answer.out + answer.err


# QEMUs without a guest: firmware alone, which lets go of nothing


PORT = ("-device", "pcie-root-port,id=p0,chassis=1,slot=1")


def test_a_guest_that_does_not_let_go_keeps_all(host: Host, qemu: Callable[..., Path]) -> None:
    path = qemu(*PORT)
    attach(host, path, MAC)
    before = state(host, path)
    answer = host.guestnet("qemu", "detach", MAC, "--qmp", str(path), "--timeout", "0.5")
    assert answer.code == 6
    assert "within 0.5 s" in answer.err
    assert state(host, path) == before
    again = host.guestnet("qemu", "detach", MAC, "--qmp", str(path), "--timeout", "0.5")
    assert again.code == 6


def test_a_nic_that_is_taken_before_another_stays_takes_its_link_along(
    host: Host, qemu: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = qemu(*PORT, "-device", "pcie-root-port,id=p1,chassis=2,slot=2")
    attach(host, path, MAC, OTHER)
    unplug = Monitor.unplug

    def at_once(self: Monitor, device: str, timeout: float, waiting: Any = None) -> None:
        if device != f"gn{MAC.replace(':', '')}":
            unplug(self, device, timeout, waiting)

    monkeypatch.setattr(Monitor, "unplug", at_once)
    with pytest.raises(TimedOutError):
        detach(host, path, MAC, OTHER, timeout=0.2)
    assert [link.mac for link in host.ours().values()] == [OTHER]


def test_a_nic_that_run_gave_is_listed_and_cannot_be_taken_from_a_bus_without_hotplug(
    host: Host, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "qmp"
    words = ["-nodefaults", "-display", "none", "-accel", "tcg", "-machine", "q35", "-qmp"]
    words.append(f"unix:{path},server=on,wait=off")
    more = ("-device", "virtio-net-pci,id=other,mac=52:54:00:00:e2:77", "-device", "e1000,mac=52:54:00:00:e2:78")
    run = ("qemu", "run", "--parent", "nic0", "--mac", MAC, "--queues", "2")
    processes.append(host.start(*GUESTNET, *run, "--", "qemu-system-x86_64", *words, *more))
    until(lambda: listens(path))
    rows = host.guestnet("qemu", "list", "--qmp", str(path), "--json", check=True).json
    assert [(row["id"], row["mac"], row["model"], row["ifname"], row["queues"]) for row in rows] == [
        (f"gn{MAC.replace(':', '')}", MAC, "virtio", f"gn{MAC.replace(':', '')}", 2),
        ("other", "52:54:00:00:e2:77", "virtio", "", 1),
        ("", "52:54:00:00:e2:78", "e1000", "", 1),
    ]  # fmt: skip
    for name, said in ((MAC, "takes no hot-plug"), ("other", "on no macvtap of guestnet's")):
        answer = host.guestnet("qemu", "detach", name, "--qmp", str(path))
        assert answer.code == 5
        assert said in answer.err
    twice = host.guestnet("qemu", "attach", "--qmp", str(path), "--parent", "nic1", "--mac", MAC)
    assert twice.code == 5
    assert "has the NIC" in twice.err


@pytest.mark.parametrize("by_run", [False, True])
def test_what_was_plugged_in_goes_when_qemu_is_killed(
    by_run: bool, host: Host, qemu: Callable[..., Path], tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "qmp"
    if by_run:
        run = (*GUESTNET, "qemu", "run", "--parent", "nic0", "--", *bare("-qmp", f"unix:{path},server=on,wait=off"))
        processes.append(host.start(*run, *PORT))
        until(lambda: listens(path))
    else:
        qemu(*PORT)
    with Monitor(str(path)) as one:
        pid = one.pid
    # that it ends, and whoever reads what it says with it, though the watcher goes on
    host.guestnet("qemu", "attach", "--qmp", str(path), "--parent", "nic1", "--queues", "2", "--mac", MAC, check=True)
    (watcher,) = host.watchers()
    assert {os.readlink(f"/proc/{watcher}/fd/{fd}") for fd in range(3)} == {os.devnull}
    assert os.getsid(watcher) == watcher
    assert not taps_of(watcher)
    assert MAC in {link.mac for link in host.ours().values()}
    os.kill(pid, signal.SIGKILL)
    until(lambda: not host.ours())
    until(lambda: not host.watchers())


def test_a_machine_of_pci_alone_needs_no_port(host: Host, qemu: Callable[..., Path]) -> None:
    path = qemu(machine="pc")
    (nic,) = attach(host, path, MAC, model="e1000").nics
    assert (nic.model, nic.bus, nic.ifname) == ("e1000", "pci.0", f"gn{MAC.replace(':', '')}")


@pytest.mark.parametrize("words", [(), ("-device", "pcie-root-port,id=p0,chassis=1,slot=1,hotplug=off")])
def test_no_hot_pluggable_bus_is_refused_before_anything_is_made(
    words: tuple[str, ...], host: Host, qemu: Callable[..., Path]
) -> None:
    path = qemu(*words)
    before = state(host, path)
    with pytest.raises(ConflictError, match="no PCI port is free") as caught:
        attach(host, path, MAC)
    assert "pcie-root-port" in caught.value.hint
    assert state(host, path) == before


def test_a_qemu_that_has_not_started_its_guest_takes_a_nic_and_gives_none_back(
    host: Host, qemu: Callable[..., Path]
) -> None:
    path = qemu(*PORT, "-S")
    attach(host, path, MAC)
    with pytest.raises(ConflictError, match="has not been started"):
        detach(host, path, MAC)


def test_a_qemu_that_waits_for_a_migration_takes_none(host: Host, qemu: Callable[..., Path]) -> None:
    path = qemu(*PORT, "-incoming", "defer")
    with pytest.raises(ConflictError, match="incoming migration"):
        attach(host, path, MAC)


@pytest.mark.parametrize("command", ["getfd", "netdev_add", "device_add"])
def test_a_qemu_that_ends_in_the_middle_of_an_attach_leaves_no_link(
    command: str, host: Host, qemu: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = qemu(*PORT)
    before = links_of(host)
    execute = Monitor._execute

    async def fatal(self: Monitor, which: str, arguments: dict[str, object]) -> Any:
        if which == command:
            os.kill(self.pid, signal.SIGKILL)
        return await execute(self, which, arguments)

    monkeypatch.setattr(Monitor, "_execute", fatal)
    with pytest.raises(GoneError, match="has ended, or closed the connection, during") as caught:
        attach(host, path, MAC, queues=2)
    assert not getattr(caught.value, "__notes__", [])
    assert links_of(host) == before


def test_a_qemu_that_ends_while_a_nic_is_waited_for_is_told_of_and_leaves_no_link(
    host: Host, qemu: Callable[..., Path]
) -> None:
    path = qemu(*PORT)
    attach(host, path, MAC)
    (watcher,) = host.watchers()
    os.kill(watcher, signal.SIGKILL)  # detach does it by itself
    with Monitor(str(path)) as one:
        pid = one.pid

    def kill(_seconds: float) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(GoneError):
        host.call(lambda: hotplug.detach(str(path), (MAC,), How(waiting=kill)))
    assert not host.ours()


def test_too_few_fds_of_ours_or_of_qemus_are_told_and_undone(
    host: Host, qemu: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = qemu(*PORT)
    before = state(host, path)
    words = ("--qmp", str(path), "--parent", "nic0", "--queues", "4")
    with host.start("prlimit", "--nofile=24", *GUESTNET, "qemu", "attach", *words) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, "this process may have 24" in err) == (5, True), err
    with Monitor(str(path)) as one:
        pid, served = one.pid, len(os.listdir(f"/proc/{one.pid}/fd"))
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (served + 2, limit[1]))
    answer = host.guestnet("qemu", "attach", *words)
    assert (answer.code, f"process {pid}) may have {served + 2}" in answer.err) == (5, True), answer.err
    assert f"prlimit --pid {pid} --nofile=" in answer.err
    monkeypatch.setattr(hotplug, "_check_room", lambda *_: None)
    with pytest.raises(RefusedError, match="QEMU refuses getfd"):
        attach(host, path, MAC, queues=4)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    until(lambda: not host.watchers())
    assert state(host, path) == before
    monkeypatch.undo()
    host.guestnet("qemu", "attach", *words, check=True)


def test_dry_run_says_the_steps_and_takes_none(host: Host, qemu: Callable[..., Path]) -> None:
    path = qemu(*PORT)
    before = state(host, path)
    answer = host.guestnet("qemu", "attach", "--qmp", str(path), "--parent", "nic0", "--dry-run", check=True)
    assert "would make macvtap" in answer.out
    assert "into p0" in answer.out
    assert state(host, path) == before


@pytest.mark.kernel_without("vhost_net")
def test_vhost_is_refused_where_there_is_none_before_qemu_could_abort(host: Host, qemu: Callable[..., Path]) -> None:
    path = qemu(*PORT)
    before = state(host, path)
    requests = (Request(parent="nic0"),)
    with pytest.raises(NotFoundError, match="no /dev/vhost-net"):
        host.call(lambda: hotplug.attach(str(path), requests, Options(vhost=Vhost.ON), How()))
    assert state(host, path) == before
