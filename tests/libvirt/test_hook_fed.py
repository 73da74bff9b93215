"""The hook on a host, fed by hand: what guests may say of themselves, what others do at the same time, and how it comes
there and goes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from guestnet import launcher, templates
from guestnet.model import GROUP
from tests.libvirt.conftest import Host
from tests.libvirt.test_hook import LAUNCHER, gone, logged, until, written_by
from tests.unit.test_hook import BAD, GOOD, NAME, UUID, domain, ifname, interface, record

pytestmark = [pytest.mark.root, pytest.mark.guest]

ALIAS = f"guestnet:1:{UUID}:{NAME}"


class Fed:
    """The hook of a host, called as libvirt calls it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __call__(self, operation: str, *parts: str | bytes, name: str = NAME) -> subprocess.CompletedProcess[Any]:
        data = parts[0] if parts and isinstance(parts[0], bytes) else domain(*map(str, parts))
        words = [LAUNCHER, name, operation, "begin", "-"]
        return self.host.node.run(words, input=data, text=False, timeout=60)

    def up(self, *parts: str | bytes) -> None:
        done = self("prepare", *parts)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def down(self, *parts: str | bytes) -> None:
        done = self("release", *parts or (record(), interface()))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture
def n1(n1: Host) -> Iterator[Host]:
    n1.guestnet("hook", "install", check=True)
    yield n1
    n1.guestnet("hook", "uninstall", check=True)


@pytest.fixture
def hook(n1: Host) -> Iterator[Fed]:
    yield Fed(n1)
    for name in [name for name in n1.links() if name.startswith(("gn", "mv"))]:  # a test that failed shall fail alone
        n1.node.run(["ip", "link", "delete", name])


def links(host: Host) -> dict[str, Any]:
    """The links, without what passes by itself."""
    passing = ("stats64", "operstate")
    return {
        name: {key: value for key, value in link.items() if key not in passing} for name, link in host.links().items()
    }


def nic(mac: str = GOOD, **said: str | None) -> tuple[str, str]:
    return record(mac, **{"parent": "nic1", **said}), interface(mac)


# What guests say of themselves


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"parent": "lo"}, "lo is the loopback interface, there is no network behind it"),
        ({"parent": "/proc/1/root"}, "'/proc/1/root' is not the name of a parent"),
        ({"parent": "x" * 300}, "the name of the parent has 300 characters, the kernel takes 127"),
        ({"parent": "mv0"}, "mv0 is a macvtap itself, the kernel would use its parent"),
        ({"mode": "source"}, "mode source is for a macvlan of the host"),
        ({"mode": "x\ny"}, r"'x\\ny' is not a mode"),
        ({"ifname": "nic0"}, "its <interface> is of type ethernet on 'gn525400000002', the record says 'nic0'"),
        ({"mac": "02:6c:61:62:01:01"}, "there is no record of it"),
    ],
)  # fmt: skip
def test_odd_metadata_is_refused_with_one_line_and_the_other_nic_comes_up(
    hook: Fed, said: dict[str, str], why: str
) -> None:
    if "mv0" in said.values():
        hook.host.run("ip", "link", "add", "link", "nic1", "name", "mv0", "type", "macvtap")
    before = links(hook.host)
    odd = record(BAD, **{"parent": "nic1", **said}) if "mac" not in said else record(said["mac"], ifname="mine0")
    with logged(hook.host) as lines:
        done = hook("prepare", odd, *nic(GOOD), interface(BAD))
    assert done.returncode == 1  # libvirt would not find the other link
    assert done.stderr.decode().startswith(f"guestnet: {NAME}: NIC {BAD}: ")
    told = [line for line in lines if "refused" in line]
    assert len(told) == 1
    assert told[0].startswith(f"{NAME}: NIC {BAD} is refused: ")
    assert why.replace("\\\\", "\\") in told[0]
    with logged(hook.host) as lines:
        hook.down(*nic(GOOD))
    assert lines == [f"{NAME}: delete {ifname(GOOD)}"]
    assert links(hook.host) == before
    hook.host.node.run(["ip", "link", "delete", "mv0"])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (domain(*[record()] * 257, interface(BAD, target="mine0")), "its metadata is refused: it names 257 NICs"),
        (domain(record(), head='<!DOCTYPE d [<!ENTITY x "y">]>'), "prepare: the XML of vm1 has a DTD"),
        (domain(record(parent="x" * 3_000_000)), "characters, the kernel takes 127"),
        (domain(*[record()] * 40_000), "its metadata is refused: it names 40000 NICs"),
        (domain(record(BAD)) + b"<x>", "prepare: the XML of vm1 is not XML"),
    ],
    ids=["257 records", "DTD", "3 MB", "40000 records", "no XML"],
)
def test_metadata_that_nobody_needs_is_one_line_in_the_log_and_ends_no_start(hook: Fed, data: bytes, why: str) -> None:
    begun = time.monotonic()
    with logged(hook.host) as lines:
        done = hook("prepare", data)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert time.monotonic() - begun < 5
    assert len(lines) == 1
    assert lines[0].startswith(f"{NAME}: ")
    assert why in lines[0]
    assert len(lines[0]) < 700


def test_what_a_terminal_would_obey_is_not_in_the_log(hook: Fed) -> None:
    with logged(hook.host) as lines:
        hook("prepare", *nic(mode="\u009b2J"), name="vm\x1b[2J\n1")
    assert len(lines) == 1
    assert lines[0].startswith("vm\\x1b[2J\\n1: NIC ")


def test_a_guest_with_a_hundred_bad_nics_says_so_in_few_lines(hook: Fed) -> None:
    macs = [f"52:54:00:00:01:{number:02x}" for number in range(100)]
    with logged(hook.host) as lines:
        done = hook("prepare", *(record(mac, parent="lo") for mac in macs), *map(interface, macs))
    assert done.returncode == 1
    assert len(lines) == 17
    assert lines[-1] == f"{NAME}: 84 more NICs are refused"


# Links of others


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("link nic1 name {name} address {mac} up type macvtap mode bridge", 0),
        ("link nic1 name {name} address {mac} up type macvtap mode private", 1),
        ("link nic0 name {name} address {mac} up type macvtap mode bridge", 1),
        ("link nic1 name {name} address 52:54:00:00:00:09 up type macvtap mode bridge", 1),
        ("link nic1 name {name} address {mac} up type macvlan mode bridge", 1),
        ("name {name} type bridge", 1),
        (f"link nic1 name {{name}} address {{mac}} up group {GROUP} type macvtap mode bridge", 0),
    ],
    ids=["as on record", "mode", "parent", "MAC", "kind", "bridge", "half made"],
)
def test_a_link_that_has_the_name_and_is_not_ours_is_never_touched(hook: Fed, words: str, status: int) -> None:
    host = hook.host
    host.run("ip", "link", "add", *words.format(name=ifname(GOOD), mac=GOOD).split())
    until(lambda: host.links()[ifname(GOOD)]["operstate"] != "LOWERLAYERDOWN")
    before = links(host)
    done = hook("prepare", *nic())
    assert done.returncode == status
    if f"group {GROUP}" in words:  # what an attach left that was killed
        assert host.links()[ifname(GOOD)]["ifalias"] == ALIAS
        hook.down(*nic())
        assert ifname(GOOD) not in host.links()
        return
    assert (b"is taken by" in done.stderr) == bool(status)
    hook.down(*nic())
    assert links(host) == before
    host.run("ip", "link", "delete", ifname(GOOD))


def test_a_link_of_another_guest_or_of_the_host_stays_and_is_not_started_on(hook: Fed) -> None:
    host = hook.host
    host.json("macvtap", "add", ifname(GOOD), "--parent", "nic1", "--mac", GOOD)
    assert b"is taken by" in hook("prepare", *nic()).stderr
    host.run("ip", "link", "set", ifname(GOOD), "alias", f"guestnet:1:{UUID.replace('0', '1')}:vm2")
    assert b"of the guest vm2" in hook("prepare", *nic()).stderr
    assert b"there is no record of it" in hook("prepare", interface()).stderr  # nor by a record that is gone
    hook.down(*nic())
    assert ifname(GOOD) in host.links()
    host.run("ip", "link", "delete", ifname(GOOD))


def test_a_link_that_a_process_has_open_stays_and_is_not_given_to_a_second(hook: Fed) -> None:
    host = hook.host
    hook.up(*nic())
    index = host.links()[ifname(GOOD)]["ifindex"]
    holder = subprocess.Popen(
        host.node.argv(["sh", "-c", f"exec 3<>/dev/tap{index} && echo open && exec sleep 60"]), stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with logged(host) as lines:
            hook.down(*nic())
        assert lines == [f"{NAME}: {ifname(GOOD)} is kept, process {holder.pid} (sleep) has it open"]
        done = hook("prepare", *nic())
        assert done.returncode == 1
        assert f"process {holder.pid} (sleep) has {ifname(GOOD)} open already".encode() in done.stderr
    finally:
        holder.kill()
        holder.communicate()
    hook.down(*nic())
    assert gone(host, ifname(GOOD))


# At the same time


def test_many_guests_come_and_go_at_once(hook: Fed) -> None:
    before = links(hook.host)

    def come_and_go(number: int) -> None:
        mac = f"52:54:00:00:02:{number:02x}"
        uuid = f"{number:08x}" + UUID[8:]
        data = domain(*nic(mac), uuid=uuid)
        for _ in range(2):
            assert hook("prepare", data).returncode == 0
            assert hook.host.links()[ifname(mac)]["ifalias"].startswith(f"guestnet:1:{uuid}")
            assert hook("release", data).returncode == 0

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(8)))
    assert links(hook.host) == before
    assert gone(hook.host, "")


def test_a_guestnet_that_hangs_holds_up_no_start_for_good(hook: Fed) -> None:
    host = hook.host
    code = "import sys, guestnet.hook as hook; hook.LOCK_SECONDS = 0.3; sys.exit(hook.main(sys.argv[1:]))"
    hold = "import os, signal; from guestnet.kernel import lock\nwith lock.held(): print(flush=True); signal.pause()"
    holder = subprocess.Popen(host.node.argv([sys.executable, "-c", hold]), stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        for operation, done in (("prepare", "make macvtap"), ("release", "delete")):
            with logged(host) as lines:
                words = [sys.executable, "-I", "-c", code, NAME, operation, "begin", "-"]
                assert host.node.run(words, input=domain(*nic()), text=False, timeout=60).returncode == 0
            assert f"process {holder.pid}, {sys.executable} -c import os" in lines[0]
            assert lines[0].endswith("going on without the lock")
            assert done in lines[1]
    finally:
        holder.kill()
        holder.communicate()
    assert gone(host, ifname(GOOD))


def test_a_hook_that_is_killed_at_any_moment_leaves_nothing_that_the_next_does_not_mend(hook: Fed) -> None:
    host, chance = hook.host, random.Random(4)  # noqa: S311
    before = links(host)
    words = host.node.argv([sys.executable, "-I", "-m", "guestnet.hook", NAME, "prepare", "begin", "-"])
    for _ in range(15):
        with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as killed:
            assert killed.stdin is not None
            killed.stdin.write(domain(*nic(GOOD), *nic(BAD)))
            killed.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                killed.wait(0.05 + 0.15 * chance.random())
            killed.kill()
        hook.up(*nic(GOOD), *nic(BAD))
        there = host.links()
        assert [there[ifname(mac)]["ifalias"] for mac in (GOOD, BAD)] == [ALIAS, ALIAS]
        hook.down(*nic(GOOD), *nic(BAD))
        assert links(host) == before
    assert gone(host, ifname(GOOD))


# How it comes there and goes


def status(host: Host) -> dict[str, Any]:
    found = host.json("hook", "status")
    assert isinstance(found, dict)
    return found


def test_install_is_told_by_status_and_is_nothing_the_second_time(n1: Host) -> None:
    now = status(n1)
    assert (now["path"], now["state"], now["ready"], now["python"]) == (LAUNCHER, "current", True, launcher.python())
    assert (now["libvirt"], now["directories"], now["others"]) == (now["libvirt"], True, [])
    assert re.fullmatch(r"\d+\.\d+\.\d+", now["libvirt"])
    assert now["daemons"] == [{"pid": n1.node.libvirtd_pid(), "program": "libvirtd", "told": True}]
    assert n1.run("stat", "-c", "%a %U %G", LAUNCHER).split() == ["755", "root", "root"]
    assert n1.json("hook", "install")["changed"] is False
    assert n1.run("ls", "/etc/libvirt/hooks").split() == ["qemu.d"]
    assert "knows of it" in n1.guestnet("hook", "status").out
    assert n1.json("hook", "uninstall")["changed"] is True
    assert n1.json("hook", "uninstall")["changed"] is False
    assert n1.run("ls", "/etc/libvirt/hooks").split() == []
    assert status(n1)["state"] == "missing"


@pytest.mark.parametrize("how", ["mode", "python", "version"])
def test_a_hook_that_is_not_as_it_should_be_is_renewed(n1: Host, how: str) -> None:
    right = n1.run("cat", LAUNCHER)
    match how:
        case "mode":
            n1.run("chmod", "644", LAUNCHER)
        case "python":
            n1.node.run(["tee", LAUNCHER], input=written_by("/gone/python", right), check=True)
            assert (status(n1)["python"], status(n1)["python_there"]) == ("/gone/python", False)
        case "version":
            text = launcher.sealed(right.replace("# guestnet hook 1", "# guestnet hook 9").encode() + b"# more\n")
            n1.node.run(["tee", LAUNCHER], input=text.decode(), check=True)
    assert (status(n1)["state"], status(n1)["ready"]) == ("outdated", False)
    assert "renews it" in n1.guestnet("hook", "status").out
    n1.guestnet("hook", "install", check=True)
    assert (n1.run("cat", LAUNCHER), status(n1)["ready"]) == (right, True)


@pytest.mark.parametrize("what", ["file", "changed", "unsummed", "link", "directory"])
def test_what_is_somebody_elses_is_neither_overwritten_nor_taken_away(n1: Host, what: str) -> None:
    right = n1.run("cat", LAUNCHER)
    n1.run("rm", LAUNCHER)
    make = {
        "changed": "cat >{0}; echo logger more >>{0}; chmod 755 {0}",
        "unsummed": "sed /sha256/d >{0}; chmod 755 {0}",
        "file": "echo '#!/bin/sh' >{0}; chmod 755 {0}",
        "link": "ln -s /bin/true {0}",
        "directory": "mkdir {0}",
    }
    n1.node.run(["sh", "-c", make[what].format(LAUNCHER)], input=right, check=True)
    before = n1.run("ls", "-l", "/etc/libvirt/hooks/qemu.d")
    for verb in ("install", "uninstall"):
        done = n1.guestnet("hook", verb)
        assert (done.code, "is not guestnet's" in done.err) == (5, True)
    assert n1.run("ls", "-l", "/etc/libvirt/hooks/qemu.d") == before
    assert status(n1)["state"] == "foreign"
    n1.run("rm", "-r", LAUNCHER)


INSTALL_OLD = """
import sys
from guestnet import launcher
from guestnet.errors import GuestnetError
try:
    launcher.install(libvirt="6.4.0")
    launcher.tell()
except GuestnetError as error:
    print(error.message, error.hint, sep="\\n")
"""


def test_an_old_libvirt_gets_its_one_hook_and_one_of_another_is_not_overwritten(n1: Host) -> None:
    n1.guestnet("hook", "uninstall", check=True)
    single = "/etc/libvirt/hooks/qemu"
    assert n1.run(sys.executable, "-c", INSTALL_OLD) == ""
    assert (status(n1)["path"], status(n1)["ready"]) == (single, True)
    n1.guestnet("hook", "uninstall", check=True)
    n1.run("sh", "-c", f"printf '#!/bin/sh\\nexit 0\\n' >{single}; chmod 755 {single}")
    told, hint = n1.run(sys.executable, "-c", INSTALL_OLD).splitlines()
    assert told == f"{single} is not guestnet's, and libvirt before 6.5 calls no other hook"
    line = hint.partition(": ")[2]
    assert line == f'{LAUNCHER} "$@" || exit 1'
    n1.run("sh", "-c", f"printf '#!/bin/sh\\n%s\\n' '{line}' >{single}")
    assert n1.run(sys.executable, "-c", INSTALL_OLD) == ""
    assert status(n1)["others"] == [single]
    words = [single, NAME, "prepare", "begin", "-"]
    assert n1.node.run(words, input=domain(*nic()), text=False).returncode == 0
    assert ifname(GOOD) in n1.links()
    Fed(n1).down(*nic())
    n1.run("rm", single)


SLOW = "/etc/libvirt/hooks/daemon.d/slow"


def test_libvirtd_knows_of_the_hook_when_install_is_done_even_if_it_did_not_hear_the_first_time(
    n1: Host, bare_domain: Callable[..., str]
) -> None:
    name = bare_domain(start=False, extra=interface())
    xml = n1.config(name)
    ours = f'<metadata><g:attachments xmlns:g="urn:guestnet:domain:1">{nic()[0]}</g:attachments></metadata>'
    n1.virsh("define", "/dev/stdin", input=xml.replace("<memory", ours + "<memory", 1))
    n1.guestnet("hook", "uninstall", check=True)
    n1.run("mkdir", "/etc/libvirt/hooks/daemon.d")
    n1.node.run(["tee", SLOW], input="#!/bin/sh\n[ -e /run/slow ] || { : >/run/slow; sleep 1; }\n", check=True)
    n1.run("chmod", "755", SLOW)
    pid = n1.node.libvirtd_pid()
    assert pid is not None
    os.kill(pid, signal.SIGHUP)
    until(lambda: n1.node.run(["test", "-e", "/run/slow"]).returncode == 0)
    # it found no hook, and is deaf to SIGHUP until its own hook ends (daemonReloadHandler)
    n1.guestnet("hook", "install", check=True)
    n1.virsh("start", name)
    n1.virsh("destroy", name)
    assert gone(n1, ifname(GOOD))
    n1.run("rm", "-r", "/etc/libvirt/hooks/daemon.d", "/run/slow")


def test_a_libvirtd_that_does_not_answer_is_told_of_and_is_asked_again_by_the_next_install(n1: Host) -> None:
    n1.guestnet("hook", "uninstall", check=True)
    pid = n1.node.libvirtd_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        code = "from guestnet import launcher\nlauncher.install()\nlauncher.tell(timeout=0.3)"
        done = n1.node.run([sys.executable, "-c", code])
        assert f"libvirtd (process {pid}) has not looked for its hooks in time" in done.stderr
        assert (status(n1)["ready"], status(n1)["daemons"][0]["told"]) == (False, False)
        assert "has not looked for it: guestnet hook install" in n1.guestnet("hook", "status").out
    finally:
        os.kill(pid, signal.SIGCONT)
    assert f"libvirtd (process {pid}) has looked for it" in n1.guestnet("hook", "install").out
    assert status(n1)["ready"]
    assert n1.run("ls", "/etc/libvirt/hooks").split() == ["qemu.d"]


def test_what_an_install_left_that_was_killed_is_taken_away_with_the_hook(n1: Host) -> None:
    ours = launcher.sealed(templates.read("hook/told")).decode()
    for left, text, stays in (("guestnet", ours, False), ("guestnet", ours + "logger more\n", True)):
        n1.run("mkdir", "/etc/libvirt/hooks/daemon.d")
        n1.node.run(["tee", f"/etc/libvirt/hooks/daemon.d/{left}"], input=text, check=True)
        n1.guestnet("hook", "uninstall", check=True)
        assert n1.run("ls", "/etc/libvirt/hooks").split() == ["daemon.d"] * stays
        n1.guestnet("hook", "install", check=True)
    n1.run("rm", "-r", "/etc/libvirt/hooks/daemon.d")


def test_a_child_that_libvirtd_has_forked_and_not_made_qemu_of_yet_gets_no_signal(n1: Host) -> None:
    n1.run("cp", "/bin/dash", "/run/libvirtd")
    words = ["/run/libvirtd", "-c", "/run/libvirtd -c 'echo forked; sleep 60; :' & wait"]
    with subprocess.Popen(n1.node.argv(words), stdout=subprocess.PIPE, start_new_session=True) as fork:
        assert fork.stdout is not None
        assert fork.stdout.readline() == b"forked\n"
        [child] = Path(f"/proc/{fork.pid}/task/{fork.pid}/children").read_text().split()
        pids = {daemon["pid"] for daemon in status(n1)["daemons"]}
        os.killpg(fork.pid, signal.SIGKILL)
    assert pids == {n1.node.libvirtd_pid(), fork.pid}
    assert int(child) not in pids
    n1.run("rm", "/run/libvirtd")


def test_a_user_who_is_not_root_is_told_so(n1: Host) -> None:
    for verb in ("install", "uninstall", "status"):
        done = n1.node.run(
            ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "guestnet", "hook", verb]
        )
        assert (done.returncode, "needs root" in done.stderr) == (4, True), done


def test_reconnect_never_fails_and_changes_nothing(hook: Fed) -> None:
    before = links(hook.host)
    cases = ((domain(*nic()), "is gone, the NIC is dead"), (b"", "is not XML"), (domain(*[record()] * 300), "300 NICs"))
    for data, why in cases:
        with logged(hook.host) as lines:
            done = subprocess.run(
                hook.host.node.argv([sys.executable, "-I", "-m", "guestnet.hook", NAME, "reconnect", "begin", "-"]),
                input=data, capture_output=True, check=False,
            )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert why in lines[0]
    assert links(hook.host) == before
