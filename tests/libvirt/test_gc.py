"""guestnet gc: what nobody uses goes, all else stays, and of each it is said why."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import PIPE
from typing import Any

import pytest

from guestnet.lab import Lab
from guestnet.model import GROUP
from tests.conftest import Answer
from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest]

GONE = "99999999-9999-4999-8999-999999999999"

HOLD_LOCK = """
import sys
from guestnet.kernel import lock
with lock.guest(sys.argv[1], "n1g1"):
    print("held", flush=True)
    sys.stdin.read()
"""


def verdicts(host: Host, *words: str) -> dict[str, tuple[bool, str]]:
    return {row["name"]: (row["orphan"], row["why"]) for row in host.json("gc", *words)["links"]}


def add_link(host: Host, name: str, alias: str, *, group: int = GROUP, mac: str = "52:54:00:00:00:f0") -> None:
    """A macvtap as guestnet makes it, made with ip(8)."""
    words = ("link", "nic0", "name", name, "address", mac, "group", str(group), "type", "macvtap", "mode", "bridge")
    host.run("ip", "link", "add", *words)
    host.run("ip", "link", "set", name, "alias", alias)


@contextmanager
def process(host: Host, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process on the node that has said a line and ends with the block."""
    with subprocess.Popen(host.node.argv(command), stdin=PIPE, stdout=PIPE) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline()
            yield running
        finally:
            running.communicate(b"\n")


def holding(host: Host, ifname: str) -> Any:
    tap = f"/dev/tap{host.links()[ifname]['ifindex']}"
    return process(host, "sh", "-c", f"exec 3<>{tap}; echo open; read -r line")


def test_without_any_link_of_ours_there_is_nothing_to_ask_libvirt(n1: Host) -> None:
    assert n1.guestnet("gc", "--connect", "qemu+unix:///system?socket=/nosuch", check=True).out == (
        "there is no link of guestnet's\n"
    )


def test_the_links_of_guests_stay_whether_they_run_or_not(n1: Host, bare_domain: Callable[..., str]) -> None:
    stopped = bare_domain(start=False)
    transient = bare_domain(transient=True)
    nics = {name: n1.json("attach", name, "--parent", "nic0")["nics"][0] for name in ("n1g1", stopped, transient)}
    n1.run(sys.executable, "-m", "guestnet", "macvtap", "add", "own0", "--parent", "nic0")
    try:
        before = n1.state()
        assert verdicts(n1) == {
            nics["n1g1"]["ifname"]: (False, "a NIC of n1g1 (live, config)"),
            nics[stopped]["ifname"]: (False, f"a NIC of {stopped} (config)"),
            nics[transient]["ifname"]: (False, f"a NIC of {transient} (live)"),
            "own0": (False, "the host's own"),
        }
        assert n1.state() == before
    finally:
        n1.run("ip", "link", "delete", "own0")


def test_links_that_are_not_ours_are_not_even_looked_at(n1: Host) -> None:
    add_link(n1, "gn5254000000f0", f"guestnet:1:{GONE}:vm9", group=0)
    try:
        assert verdicts(n1) == {}
    finally:
        n1.run("ip", "link", "delete", "gn5254000000f0")


def test_what_virsh_detached_behind_our_back_is_collected(n1: Host) -> None:
    first, second = n1.json("attach", "n1g1", "--parent", "nic0", "--parent", "nic1")["nics"]
    n1.virsh("detach-interface", "n1g1", "ethernet", "--mac", first["mac"], "--live", "--config")
    n1.guest("n1g1").wait_no_nic(first["mac"])
    dry = n1.guestnet("gc", "--dry-run", check=True).out.splitlines()
    assert dry[0].split() == ["LINK", "GUEST", "ORPHAN", "WHY"]
    assert dry[1].split(None, 3) == [first["ifname"], "n1g1", "yes", "no <interface> of its guest n1g1 names it"]
    assert dry[-1] == f"would delete {first['ifname']}"
    assert first["ifname"] in n1.links()
    assert n1.guestnet("gc", check=True).out.splitlines()[-1] == f"{first['ifname']}: deleted"
    assert first["ifname"] not in n1.links()
    assert second["ifname"] in n1.links()
    assert n1.json("gc")["steps"] == []


def test_the_links_of_a_guest_that_is_gone_are_collected(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(start=False)
    nic = n1.json("attach", name, "--parent", "nic0")["nics"][0]
    n1.virsh("undefine", name)
    elsewhere = ("--connect", "qemu:///system?socket=/run/libvirt/libvirt-sock")
    refused = n1.guestnet("gc", *elsewhere)  # n1g1 has no link, so this could be any libvirt
    assert (refused.code, "libvirt knows none of these guests" in refused.err) == (1, True), refused
    assert verdicts(n1) == {nic["ifname"]: (True, f"its guest {name} is gone")}
    assert nic["ifname"] not in n1.links()


def test_a_link_that_a_process_holds_stays_and_the_process_is_named(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(start=False)
    nic = n1.json("attach", name, "--parent", "nic0")["nics"][0]
    n1.virsh("undefine", name)
    with holding(n1, nic["ifname"]) as holder:
        assert verdicts(n1) == {nic["ifname"]: (False, f"held open by process {holder.pid} (sh)")}
        assert nic["ifname"] in n1.links()
    assert verdicts(n1)[nic["ifname"]][0]


def test_a_link_of_a_guest_that_another_guestnet_is_at_work_on_stays(n1: Host) -> None:
    uuid = n1.virsh("domuuid", "n1g1").strip()
    add_link(n1, "gn5254000000f0", f"guestnet:1:{uuid}:n1g1")
    with process(n1, sys.executable, "-c", HOLD_LOCK, uuid) as holder:
        orphan, why = verdicts(n1)["gn5254000000f0"]
        assert (orphan, why.startswith("another guestnet is at work on it: process ")) == (False, True)
        assert f"process {holder.pid}, {sys.executable}" in why
    assert verdicts(n1) == {"gn5254000000f0": (True, "no <interface> of its guest n1g1 names it")}
    assert "gn5254000000f0" not in n1.links()


def test_a_link_whose_maker_was_killed_before_it_said_for_whom_is_collected(n1: Host) -> None:
    add_link(n1, "gn5254000000f0", "")
    assert verdicts(n1) == {"gn5254000000f0": (True, "made by a guestnet that was ended before it could say for whom")}
    assert "gn5254000000f0" not in n1.links()


@pytest.mark.parametrize(
    ("alias", "why"),
    [
        ("mine", "not marked as guestnet marks a macvtap: 'mine'"),
        ("guestnet:1:vlan", "not marked as guestnet marks a macvtap: 'guestnet:1:vlan'"),
        (f"guestnet:1:{'../' * 9}etc/pass1:vm", f"'{'../' * 9}etc/pass1' is not the UUID of a guest"),
    ],
)
def test_a_link_with_a_mark_that_is_not_ours_stays(n1: Host, alias: str, why: str) -> None:
    add_link(n1, "gn5254000000f0", alias)
    try:
        orphan, said = verdicts(n1)["gn5254000000f0"]
        assert (orphan, said.startswith(why)) == (False, True), said
    finally:
        n1.run("ip", "link", "delete", "gn5254000000f0")


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_while_libvirt_cannot_be_asked_nothing_is_collected(n1: Host, words: tuple[str, ...]) -> None:
    add_link(n1, "gn5254000000f0", f"guestnet:1:{GONE}:vm9")
    try:
        done = n1.guestnet("gc", "--connect", "qemu+unix:///system?socket=/nosuch", *words)
        assert done.code == 1
        assert "nothing is collected, since the guests are not known: libvirt at " in done.err
        assert "gn5254000000f0" in n1.links()
    finally:
        n1.run("ip", "link", "delete", "gn5254000000f0")


def test_what_a_bare_qemu_left_is_collected_while_libvirt_cannot_be_asked(n1: Host) -> None:
    nowhere = ("--connect", "qemu+unix:///system?socket=/nosuch")
    add_link(n1, "gn5254000000f0", f"guestnet:1:{GONE}:vm9")
    add_link(n1, "gn5254000000f1", "guestnet:1:qemu:web", mac="52:54:00:00:00:f1")
    add_link(n1, "gn5254000000f2", "guestnet:1:qemu:db", mac="52:54:00:00:00:f2")
    try:
        with holding(n1, "gn5254000000f2"):
            dry = n1.guestnet("gc", "--dry-run", *nowhere)
            assert (dry.code, "would delete gn5254000000f1" in dry.err) == (1, True), dry
            done = n1.guestnet("gc", *nowhere)
            assert done.code == 1
            assert "nothing is collected, since the guests are not known: libvirt at " in done.err
            assert "gn5254000000f1: deleted" in done.err
            ours = {"gn5254000000f0", "gn5254000000f1", "gn5254000000f2"}
            assert n1.links().keys() & ours == {"gn5254000000f0", "gn5254000000f2"}
        n1.run("ip", "link", "delete", "gn5254000000f0")
        assert verdicts(n1, *nowhere) == {"gn5254000000f2": (True, "no process holds it open any more")}
    finally:
        for name in n1.links().keys() & {"gn5254000000f0", "gn5254000000f1", "gn5254000000f2"}:
            n1.run("ip", "link", "delete", name)


def test_a_libvirt_that_knows_no_guest_is_not_believed_unless_that_is_said(lab: Lab) -> None:
    empty = Lab(name=f"e{lab.name}")
    try:
        empty.up(nodes=1, guests=0, nics=1)
        host = Host(empty.node("n1"))
        add_link(host, "gn5254000000f0", f"guestnet:1:{GONE}:vm9")
        done = host.guestnet("gc")
        assert (done.code, "libvirt knows no guest at all, yet 1 of the links" in done.err) == (1, True), done
        assert "hint: virsh list --all" in done.err
        assert "gn5254000000f0" in host.links()
        host.guestnet("gc", "--yes", check=True)
        assert "gn5254000000f0" not in host.links()
    finally:
        empty.down()


def test_who_may_not_see_the_holders_may_not_judge(run_guestnet: Callable[..., Answer]) -> None:
    done = run_guestnet("gc", "--dry-run", "--json", user=65534)
    assert (done.code, json.loads(done.out)["error"]["hint"]) == (4, "run this with sudo")
