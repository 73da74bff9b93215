"""The hook under libvirt, on guests that run: whatever happens to a guest, libvirt or the host, the NIC works again
after it, or everything of a guest that is gone is gone."""

import os
import re
import secrets
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from guestnet.errors import TimedOutError
from guestnet.launcher import sealed
from tests.libvirt.conftest import Host, address, ping

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.guest_runs_on]

GUEST = "n1g2"
MAC = "52:54:00:00:f0:0c"
IFNAME = "gn52540000f00c"
OTHER_NODE = "198.51.100.2"
LAUNCHER = "/etc/libvirt/hooks/qemu.d/guestnet"
PARENTS = "/etc/guestnet/parents.yaml"
SAVED = "/run/lab/saved"
SECONDS = 20.0


def until(holds: Callable[[], Any]) -> Any:
    """What the function says once it is true; what happens behind libvirt's back happens in its own time."""
    deadline, never = time.monotonic() + SECONDS, threading.Event()
    while not (found := holds()):
        assert time.monotonic() < deadline
        never.wait(0.02)
    return found


def written_by(python: str, text: str) -> str:
    """The hook as the guestnet of that Python wrote it."""
    return sealed(re.sub("(?m)^python=.*", f"python='{python}'", text).encode()).decode()


@contextmanager
def logged(host: Host, last: str = "") -> Iterator[list[str]]:
    """What is logged on the node within the block, a line each, without the time; it is waited for ``last``."""
    begin = host.node.log.stat().st_size
    lines: list[str] = []
    yield lines

    def new() -> str:
        with open(host.node.log, "rb") as file:
            file.seek(begin)
            return file.read().decode()

    until(lambda: last in new())
    mark = secrets.token_hex(8)
    host.run("logger", mark)
    until(lambda: mark in new())
    for line in new().splitlines():
        found = re.fullmatch(r"<\d+>\w{3} [ \d]\d [\d:]{8} guestnet(?:\[\d+\])?: (.*)", line)
        lines += [found[1]] if found else []


def end(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """End a process of the node, and wait until it is gone."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, number)
        assert select.select([fd], [], [], SECONDS)[0]
    finally:
        os.close(fd)


def qemu_of(host: Host, guest: str) -> int:
    return int(host.run("cat", f"/run/libvirt/qemu/{guest}.pid"))


def start_libvirtd(host: Host) -> None:
    host.run("libvirtd", "-d", "-p", "/run/libvirtd.pid")
    until(lambda: host.node.run(["virsh", "-q", "list", "--all"]).returncode == 0)


def gone(host: Host, name: str = IFNAME) -> bool:
    """Whether a macvtap is gone, and every node in /dev that none of those left has."""
    links = host.links()
    nodes = {
        f"tap{link['ifindex']}" for link in links.values() if link.get("linkinfo", {}).get("info_kind") == "macvtap"
    }
    there = {node for node in host.run("ls", "/dev").split() if node.startswith("tap")}
    return name not in links and there == nodes


def state(host: Host, guest: str = GUEST) -> str:
    return host.virsh("domstate", guest).strip()


@pytest.fixture(scope="module")
def hooked(hosts: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    """Both hosts with the hook; afterwards both are as before, and every guest runs."""
    before = [host.state() for host in hosts]
    for host in hosts:
        host.guestnet("hook", "install", check=True)
    yield hosts
    for host in hosts:
        for name in ("n1g1", "n1g2") if host is hosts[0] else ():
            if state(host, name) != "running":
                host.virsh("start", name)
            host.guest(name).wait_ready()
        for name in host.virsh("list", "--all", "--name").split():
            host.guestnet("detach", name, "--all", check=True)
        host.guestnet("hook", "uninstall", check=True)
    for host, was in zip(hosts, before, strict=True):
        assert host.state()["links"] == was["links"]
        assert host.state()["nodes"] == was["nodes"]


@pytest.fixture(scope="module")
def n1(hooked: tuple[Host, Host]) -> Iterator[Host]:
    """The first host, whose guest has a NIC for good, and is saved as it runs with it: it need not boot each time."""
    host = hooked[0]
    host.guestnet("attach", GUEST, "--parent", "nic1", "--mac", MAC, check=True)
    wire(host)
    host.virsh("save", GUEST, SAVED)
    yield host
    host.run("rm", SAVED)


def wire(host: Host, guest: str = GUEST, mac: str = MAC) -> None:
    """Give the guest's NIC its address, once it has booted."""
    host.guest(guest).wait_ready()
    address(host.guest(guest), mac, "198.51.100.77/24")


def works(host: Host) -> bool:
    """Whether the guest reaches the other node, on a macvtap that is its own."""
    link = host.links()[IFNAME]
    uuid = host.virsh("domuuid", GUEST).strip()
    assert link["ifalias"] == f"guestnet:1:{uuid}:{GUEST}"
    assert (link["address"], link["link"], link["inet6_addr_gen_mode"]) == (MAC, "nic1", "none")
    return ping(host.guest(GUEST), OTHER_NODE)


@pytest.fixture
def guest(n1: Host) -> Host:
    """The host, with its guest running and its NIC at work."""
    if state(n1) != "running":
        n1.virsh("restore", SAVED)
    assert works(n1)
    return n1


# What happens to a guest


def test_a_guest_whose_link_is_gone_starts_on_a_new_one_and_takes_it_along_when_it_stops(guest: Host) -> None:
    with logged(guest) as lines:
        guest.virsh("shutdown", GUEST)
        until(lambda: state(guest) == "shut off")
        assert gone(guest)
        guest.virsh("start", GUEST)
        wire(guest)
        assert works(guest)
    assert lines == [
        f"{GUEST}: delete {IFNAME}",
        f"{GUEST}: NIC {MAC}: make macvtap {IFNAME} on nic1, mode bridge, MAC {MAC}",
    ]


def test_virsh_destroy_leaves_nothing(guest: Host) -> None:
    guest.virsh("destroy", GUEST)
    assert gone(guest)


@pytest.mark.parametrize("how", ["reboot", "reset"])
def test_a_guest_that_boots_anew_keeps_its_link(guest: Host, how: str) -> None:
    index, boot = guest.links()[IFNAME]["ifindex"], "cat /proc/sys/kernel/random/boot_id"
    before = guest.guest(GUEST).run(boot)
    guest.virsh(how, GUEST)

    def booted() -> bool:
        with suppress(TimedOutError):  # what is asked while it goes down is not answered
            return guest.guest(GUEST).run(boot, timeout=1.0) != before
        return False

    until(booted)
    wire(guest)
    assert works(guest)
    assert guest.links()[IFNAME]["ifindex"] == index


def test_a_managed_save_lets_go_of_the_link_and_the_restored_guest_goes_on_where_it_was(guest: Host) -> None:
    guest.virsh("managedsave", GUEST)
    assert gone(guest)
    guest.virsh("start", GUEST)
    assert works(guest)


def test_a_guest_that_is_undefined_while_it_runs_leaves_nothing(guest: Host) -> None:
    config = guest.config(GUEST)
    try:
        guest.virsh("undefine", GUEST)
        assert works(guest)
        guest.virsh("destroy", GUEST)
        assert gone(guest)
    finally:
        guest.virsh("define", "/dev/stdin", input=config)


def test_a_transient_guest_has_its_link_for_as_long_as_it_lives(guest: Host) -> None:
    config = guest.config(GUEST)
    guest.virsh("destroy", GUEST)
    guest.virsh("undefine", GUEST)
    try:
        guest.virsh("restore", SAVED)
        assert "Persistent:     no" in guest.virsh("dominfo", GUEST)
        assert works(guest)
        guest.virsh("destroy", GUEST)
        assert gone(guest)
    finally:
        guest.virsh("define", "/dev/stdin", input=config)


def test_a_start_that_fails_for_another_reason_leaves_nothing(guest: Host) -> None:
    config = guest.config(GUEST)
    broken = "<interface type='ethernet'><target dev='nope0' managed='no'/></interface></devices>"
    guest.virsh("destroy", GUEST)
    try:
        guest.virsh("define", "/dev/stdin", input=config.replace("</devices>", broken))
        with logged(guest) as lines:
            done = guest.node.run(["virsh", "start", GUEST])
        assert done.returncode != 0
        assert "managed='no' but specified dev doesn't exist" in done.stderr
        assert lines[0].startswith(f"{GUEST}: NIC {MAC}: make macvtap {IFNAME}")
        assert lines[-1] == f"{GUEST}: delete {IFNAME}"
        assert gone(guest)
    finally:
        guest.virsh("define", "/dev/stdin", input=config)


def test_a_parent_that_is_not_there_ends_the_start_with_a_message_that_says_so(guest: Host) -> None:
    config = guest.config(GUEST)
    guest.virsh("destroy", GUEST)
    try:
        guest.virsh("define", "/dev/stdin", input=config.replace('parent="nic1"', 'parent="nic7"'))
        with logged(guest) as lines:
            done = guest.node.run(["virsh", "start", GUEST])
        assert f"guestnet: {GUEST}: NIC {MAC}: there is no interface nic7 (did you mean nic1, nic0?)" in done.stderr
        assert lines == [f"{GUEST}: NIC {MAC} is refused: there is no interface nic7 (did you mean nic1, nic0?)"]
        assert gone(guest)
    finally:
        guest.virsh("define", "/dev/stdin", input=config)


# What happens to QEMU, libvirt and the host


def test_when_qemu_is_killed_its_link_goes(guest: Host) -> None:
    end(qemu_of(guest, GUEST))
    until(lambda: state(guest) == "shut off")
    assert gone(guest)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_libvirtd_finds_the_guest_at_work_and_calls_the_hook_from_then_on(
    guest: Host, how: signal.Signals
) -> None:
    index = guest.links()[IFNAME]["ifindex"]
    end(guest.node.libvirtd_pid() or 0, how)
    start_libvirtd(guest)
    until(lambda: state(guest) == "running")
    assert works(guest)
    assert guest.links()[IFNAME]["ifindex"] == index
    guest.virsh("destroy", GUEST)
    assert gone(guest)


def test_what_is_out_of_line_is_logged_when_libvirtd_is_restarted_and_the_guest_runs_on(guest: Host) -> None:
    with logged(guest, last="the NIC is dead") as lines:
        end(guest.node.libvirtd_pid() or 0)
        guest.run("ip", "link", "delete", IFNAME)
        start_libvirtd(guest)
    assert f"{GUEST}: NIC {MAC}: its macvtap {IFNAME} is gone, the NIC is dead: guestnet repair {GUEST}" in lines
    assert state(guest) == "running"
    guest.virsh("destroy", GUEST)


def test_when_libvirtd_and_qemu_are_killed_the_link_goes_as_libvirtd_starts(guest: Host) -> None:
    pid = qemu_of(guest, GUEST)
    end(guest.node.libvirtd_pid() or 0)
    end(pid)
    assert not gone(guest)
    start_libvirtd(guest)
    until(lambda: state(guest) == "shut off")
    until(lambda: gone(guest))


def test_after_a_reboot_of_the_host_the_guest_starts_on_what_its_xml_says(guest: Host) -> None:
    pids = [qemu_of(guest, name) for name in ("n1g1", GUEST)]
    for pid in (guest.node.libvirtd_pid() or 0, *pids):
        end(pid)
    guest.run("ip", "link", "delete", IFNAME)
    guest.run("ip", "link", "set", "nic1", "down")
    guest.run("sh", "-c", "rm -rf /run/libvirt/* /run/guestnet")
    start_libvirtd(guest)
    assert state(guest) == "shut off"
    guest.virsh("start", "n1g1")
    guest.virsh("start", GUEST)
    wire(guest)
    assert works(guest)


# Names that differ between hosts


@pytest.fixture
def renamed(guest: Host, hooked: tuple[Host, Host]) -> Iterator[Callable[[Host], None]]:
    """Renames nic1 of a host to `uplink` and writes that down for those who arrive; all is as before afterwards."""
    done = []

    def rename(host: Host) -> None:
        done.append(host)
        host.run("ip", "link", "set", "nic1", "down", "name", "uplink")
        host.run("ip", "link", "set", "uplink", "up")
        host.run("mkdir", "-p", "/etc/guestnet")
        host.node.run(["tee", PARENTS], input="parents:\n  nic1: uplink\n", check=True)

    yield rename
    for host in done:
        host.run("rm", "-r", "/etc/guestnet")
        host.run("ip", "link", "set", "uplink", "down", "name", "nic1")
        host.run("ip", "link", "set", "nic1", "up")


def test_a_guest_is_restored_on_the_parent_that_the_host_names_for_it(
    guest: Host, renamed: Callable[[Host], None]
) -> None:
    guest.virsh("managedsave", GUEST)
    renamed(guest)
    guest.virsh("start", GUEST)
    assert guest.links()[IFNAME]["link"] == "uplink"
    assert 'parent="uplink"' in guest.live(GUEST)
    assert ping(guest.guest(GUEST), OTHER_NODE)
    assert 'parent="nic1"' in guest.config(GUEST)  # libvirt shows the hook no configuration
    guest.virsh("destroy", GUEST)
    guest.virsh("start", GUEST)
    assert guest.links()[IFNAME]["link"] == "uplink"
    guest.virsh("destroy", GUEST)


def test_a_guest_that_migrates_is_put_on_the_parent_of_the_other_host(
    guest: Host, hooked: tuple[Host, Host], renamed: Callable[[Host], None]
) -> None:
    there = hooked[1]
    renamed(there)
    config = guest.config(GUEST)
    guest.guestnet("attach", GUEST, "--parent", "nic1", "--backend", "direct", "--mac", "52:54:00:00:d1:4e", check=True)
    uris = [host.node.uri for host in (guest, there)]
    words = ["virsh", "-c", uris[0], "migrate", "--live", GUEST, uris[1], "--migrateuri", f"tcp://{OTHER_NODE}"]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert gone(guest)
        assert ping(replace(guest.guest(GUEST), node="n2", own=there.node.own), "198.51.100.1")
        assert there.links()[IFNAME]["link"] == "uplink"
        live = there.live(GUEST)
        assert live.count('parent="uplink"') == 2
        assert "<source dev='uplink' mode='bridge'/>" in live
    finally:
        there.node.run(["virsh", "destroy", GUEST])
        guest.virsh("define", "/dev/stdin", input=config)
    until(lambda: gone(there))


# A guest that is not ours costs a shell


def test_python_is_not_started_for_a_guest_without_our_metadata(guest: Host) -> None:
    launcher = guest.run("cat", LAUNCHER)
    trap = '#!/bin/sh\necho "$4 $5" >>/run/tripped\nexit 0\n'
    guest.node.run(["tee", "/run/trap"], input=trap, check=True)
    guest.run("chmod", "755", "/run/trap")
    try:
        guest.node.run(["tee", LAUNCHER], input=written_by("/run/trap", launcher), check=True)
        guest.virsh("destroy", "n1g1")
        guest.virsh("start", "n1g1")
        guest.virsh("managedsave", "n1g1")
        guest.virsh("start", "n1g1")
        assert guest.node.run(["cat", "/run/tripped"]).stdout == ""
        guest.virsh("managedsave", GUEST)  # so that it is not the trap that does not work
        assert guest.run("cat", "/run/tripped").split("\n") == [f"{GUEST} release", ""]
    finally:
        guest.run("rm", "-f", "/run/trap", "/run/tripped")
        guest.guestnet("hook", "install", check=True)
        guest.virsh("managedsave-remove", GUEST)
    guest.run("ip", "link", "delete", IFNAME)


def test_a_python_that_is_gone_or_does_not_find_guestnet_ends_no_start_but_one_whose_link_is_not_there(
    guest: Host,
) -> None:
    launcher = guest.run("cat", LAUNCHER)
    guest.virsh("destroy", GUEST)
    guest.run(
        "ip", "link", "add", "link", "nic1", "name", IFNAME, "address", MAC, "up", "type", "macvtap", "mode", "bridge"
    )
    try:
        for python, why in (("/nonexistent", "/nonexistent is gone"), ("/bin/false", "the hook ended with status 1")):
            guest.node.run(["tee", LAUNCHER], input=written_by(python, launcher), check=True)
            with logged(guest) as lines:
                guest.virsh("start", GUEST)
            assert lines[0].startswith(f"{GUEST}: prepare was passed over, {why}")
            guest.virsh("destroy", GUEST)
        guest.run("ip", "link", "delete", IFNAME)
        said = guest.node.run(["virsh", "start", GUEST]).stderr
        assert f"guestnet: {GUEST}: prepare was passed over, {why}" in said
        assert f"there is no link {IFNAME}\n" in said
    finally:
        guest.node.run(["ip", "link", "delete", IFNAME])
        guest.guestnet("hook", "install", check=True)
