"""Many at once: no NIC is lost, nothing is left, nobody waits for ever, and who waits knows for whom."""

import json
import os
import random
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from subprocess import PIPE
from typing import Any

import pytest

from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest]

MANY = 32
RUNNING = 6
"""How many of them run, paused: a NIC is plugged into those."""

STORMS = 30 if os.environ.get("GUESTNET_TESTS_FULL") == "1" else 4

SECONDS = 100.0

CAME_OR_WENT = re.compile(
    r"many\d has no free PCI slot to hot-plug a NIC of model virtio"  # of the one it has, once it runs
    r"|many\d: .*(domain is (not|no longer) running|monitor)"  # libvirt's words of a QEMU that is gone, or going
    r"|the NIC \S+ of many\d is not in its XML after the work was done"
    r"|the macvtap gn\w+ of many\d is not on nic\d here after the work was done"
    r"|the interface gn\w+ is gone"
)
"""What an attach may fail with because its guest was started or stopped meanwhile."""

DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
  <devices><controller type='usb' model='none'/><controller type='pci' model='pcie-root'/>
  {ports}<memballoon model='none'/></devices></domain>"""


def until(condition: Callable[[], bool]) -> None:
    never = threading.Event()
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        never.wait(0.02)


def mac(number: int) -> str:
    return f"52:54:00:0c:00:{number:02x}"


def at_once(host: Host, *jobs: tuple[str, ...]) -> list[tuple[int, str]]:
    """Exit code and message of each job; all have ended, and none had to be ended."""
    done = host.node.run([sys.executable, "-m", "tests.libvirt.many", str(SECONDS)], input=json.dumps(jobs))
    assert done.returncode == 0, done.stderr
    told = [(code, message) for code, message, _ in json.loads(done.stdout)]
    assert -1 not in [code for code, _ in told], told
    return told


@pytest.fixture
def herd(n1: Host) -> Iterator[Callable[..., list[str]]]:
    """Makes guests that run no system: `herd(count, running=N, ports=P)`, the first N of them paused."""
    made: list[str] = []
    files = n1.node.own / "run"

    def virsh(*lines: str) -> None:
        n1.virsh(input="\n".join(lines))

    def make(count: int, *, running: int = 0, ports: int = 1) -> list[str]:
        names = [f"many{number}" for number in range(count)]
        made.extend(names)
        port = "<controller type='pci' model='pcie-root-port'/>"
        for name in names:
            (files / f"{name}.xml").write_text(DOMAIN.format(name=name, ports=port * ports))
        virsh(*(f"define /run/{name}.xml" for name in names), *(f"start {name} --paused" for name in names[:running]))
        assert set(names) <= set(n1.virsh("list", "--all", "--name").split())
        assert set(names[:running]) <= set(n1.virsh("list", "--name").split())
        return names

    yield make
    virsh(*(f"destroy {name}" for name in n1.virsh("list", "--name").split() if name in made))
    assert {code for code, _ in at_once(n1, *(("detach", name) for name in made))} <= {0}
    virsh(*(f"undefine {name}" for name in made))
    for name in made:
        (files / f"{name}.xml").unlink()


def check(host: Host, count: int) -> list[dict[str, Any]]:
    """There are that many NICs, each whole; their rows."""
    rows = [row for row in host.json("list") if row["guest"].startswith("many")]
    assert [(row["guest"], row["problems"]) for row in rows if row["problems"]] == []
    assert len({row["mac"] for row in rows}) == len(rows) == count
    assert {row["interface"] for row in rows} == {name for name in host.links() if name.startswith("gn")}
    return rows


def test_many_attach_at_once_to_as_many_guests_on_one_parent(n1: Host, herd: Callable[..., list[str]]) -> None:
    names = herd(MANY, running=RUNNING)
    assert at_once(n1, *(("attach", name, "nic0") for name in names)) == [(0, "")] * MANY
    rows = check(n1, MANY)
    assert {row["guest"]: row["live"] for row in rows} == {name: name in names[:RUNNING] for name in names}
    assert at_once(n1, *(("attach", name, "nic0") for name in names), *[("gc",)] * 4) == [(0, "")] * (MANY + 4)
    check(n1, MANY)


def test_many_attach_at_once_to_one_guest(n1: Host, herd: Callable[..., list[str]]) -> None:
    [name] = herd(1, running=1, ports=MANY + 1)
    assert at_once(n1, *(("attach", name, "nic0", mac(number)) for number in range(MANY))) == [(0, "")] * MANY
    rows = check(n1, MANY)
    assert len({row["pci"] for row in rows}) == MANY
    assert {(row["live"], row["config"]) for row in rows} == {(True, True)}
    for text in (n1.live(name), n1.config(name)):
        assert text.count("<guestnet:nic ") == MANY


def test_attach_against_detach_of_the_same_nic_leaves_it_whole_or_gone(n1: Host) -> None:
    before = n1.state()
    for _ in range(8):
        jobs = [("attach", "n1g1", "nic0", mac(1)), ("detach", "n1g1", mac(1)), ("gc",)]
        random.shuffle(jobs)
        told = dict(zip((job[0] for job in jobs), at_once(n1, *jobs), strict=True))
        assert told["attach"] == told["gc"] == (0, ""), told
        assert told["detach"][0] in (0, 3), told
        rows = n1.json("list", "n1g1")
        assert [(row["live"], row["config"], row["problems"]) for row in rows] in ([], [(True, True, [])]), told
        assert ("gn5254000c0001" in n1.links()) == bool(rows)
    n1.guestnet("detach", "n1g1", "--all", check=True)
    assert n1.state() == before


def test_a_storm_of_attach_detach_repair_and_gc_ends_with_every_nic_whole_or_gone(
    n1: Host, herd: Callable[..., list[str]]
) -> None:
    names = herd(8)
    seed = secrets.randbits(32)
    dice = random.Random(seed)  # noqa: S311
    for _ in range(STORMS):
        jobs = [
            dice.choice([("attach", name, "nic0"), ("attach", name, "nic1"), ("detach", name), ("repair", name)])
            for name in names * 3
        ]
        told = at_once(n1, *jobs, ("gc",), ("gc",))
        failed = [(job, *answer) for job, answer in zip(jobs, told, strict=False) if answer[0]]
        assert failed == [], seed
        rows = [row for row in n1.json("list") if row["guest"] in names]
        assert [row for row in rows if row["problems"]] == [], seed
        assert {row["interface"] for row in rows} == {name for name in n1.links() if name.startswith("gn")}, seed


def test_guests_start_and_stop_by_the_hook_while_others_attach_and_collect(
    n1: Host, herd: Callable[..., list[str]]
) -> None:
    """No start fails for want of a link, an attach only because its guest comes or goes, and nothing is left."""
    names = herd(6)
    dice = random.Random(seed := secrets.randbits(32))  # noqa: S311
    n1.guestnet("hook", "install", check=True)
    try:
        at_once(n1, *(("attach for good", name, "nic0") for name in names[::2]))
        for _ in range(STORMS):
            jobs: list[tuple[str, ...]] = []
            for name in names:
                jobs += [("start", name), ("stop", name), ("attach for good", name, dice.choice(["nic0", "nic1"]))]
            jobs += [("gc",), ("gc",)]
            dice.shuffle(jobs)
            told = list(zip(jobs, at_once(n1, *jobs), strict=True))
            failed = [answer for job, answer in told if job[0] == "attach for good" and answer[0]]
            assert [(code, why) for code, why in failed if code not in (1, 5) or not CAME_OR_WENT.match(why)] == [], (
                seed
            )
            assert [why for _, why in failed if "not undone" in why] == [], seed
            assert [answer for job, answer in told if job == ("gc",) and answer[0]] == [], seed
            # a start also fails where its QEMU is stopped meanwhile
            assert [answer for _, answer in told if "ook" in answer[1] or "doesn't exist" in answer[1]] == [], seed
            rows = [row for row in n1.json("list") if row["guest"] in names]
            assert [(row["guest"], row["problems"]) for row in rows if row["problems"]] == [], seed
            running = {row["interface"] for row in rows if row["live"]}
            assert {name for name in n1.links() if name.startswith("gn")} == running, seed
        at_once(n1, *(("stop", name) for name in names))
        assert [name for name in n1.links() if name.startswith("gn")] == []
    finally:
        n1.guestnet("hook", "uninstall", check=True)


def test_a_guest_that_does_not_let_go_keeps_nobody_from_another_guest(n1: Host) -> None:
    first = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    n1.virsh("suspend", "n1g1")
    command = [sys.executable, "-m", "guestnet"]
    detach = subprocess.Popen(
        n1.node.argv([*command, "detach", "n1g1", first["mac"], "--timeout", "100"]), stdout=PIPE, stderr=PIPE
    )
    waiting = None
    try:
        until((n1.node.own / f"run/guestnet/guest-{n1.virsh('domuuid', 'n1g1').strip()}.lock").exists)
        waiting = subprocess.Popen(
            n1.node.argv([*command, "set", "n1g1", first["mac"], "--link", "down"]), stdout=PIPE, stderr=PIPE, text=True
        )
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        told = f"waiting for another guestnet that is at work on the guest n1g1: process {detach.pid}, "
        assert line.startswith(told)
        assert f"guestnet detach n1g1 {first['mac']} --timeout 100, for " in line
        second = n1.json("attach", "n1g2", "--parent", "nic0")
        assert second["seconds"] < 10
        n1.guestnet("detach", "n1g2", second["nics"][0]["mac"], check=True)
        assert n1.json("gc")["links"][0]["why"] == "a NIC of n1g1 (live, config)"
        assert detach.poll() is None
    finally:
        n1.virsh("resume", "n1g1")
        ended = [process.communicate(timeout=60) for process in (detach, waiting) if process is not None]
    assert detach.returncode == 0, ended
    assert waiting.returncode == 3, ended  # the NIC is gone by then


BETWEEN = """
import subprocess, sys
from guestnet import attachment
from guestnet.model import Request

def watch(phase, step):
    if phase == "begin" and str(step).startswith("plug"):
        words = ["attach", "n1g2", "--parent", "nic1", "--no-hook"]
        subprocess.run([sys.executable, "-m", "guestnet", *words], check=True)
        raise KeyboardInterrupt

try:
    attachment.attach("n1g1", (Request(parent="nic1"),), attachment.Options(uri="qemu:///system", watch=watch))
except KeyboardInterrupt as error:
    print("notes:", getattr(error, "__notes__", []))
"""


def test_what_is_undone_takes_nothing_from_who_came_meanwhile(n1: Host) -> None:
    """The first attach brings the parent up, the second finds it so, and the first fails."""
    n1.run("ip", "link", "set", "nic1", "down")
    try:
        done = n1.run(sys.executable, "-c", BETWEEN)
        assert done.splitlines()[-1] == "notes: []"
        assert n1.json("list", "n1g1") == []
        [row] = n1.json("list", "n1g2")
        assert (row["live"], row["carrier"], row["problems"]) == (True, True, [])
        n1.guestnet("detach", "n1g2", "--all", check=True)
    finally:
        n1.run("ip", "link", "set", "nic1", "up")
