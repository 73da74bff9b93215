"""Guests of a topology: those that do not run, are not there, or fail half way; and pictures beside what is so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.conftest import Host
from tests.topology.conftest import Hosts, python

pytestmark = [pytest.mark.root, pytest.mark.guest]

FAILING = """
import json, os, signal, sys
from guestnet.errors import GuestnetError
from guestnet.plan import steps as plan
from guestnet.topology import deploy, document, takedown

class MadeToFail(GuestnetError):
    pass

def options(watch=None):
    return deploy.Options(uri="qemu:///system", node="n1", watch=watch)

def at(number, act):
    seen = []
    def watch(when, step):
        if when == "end" and isinstance(step, plan.GuestStep):
            seen.append(step)
            if len(seen) == number:
                act()
    return watch

def fail():
    raise MadeToFail("made to fail")

topology = document.find("0.5-guest")
found = []
for number in range(1, 20):
    try:
        deploy.up(topology, options(at(number, fail)))
        break
    except MadeToFail as error:
        shown = deploy.status(topology, options())
        found.append([getattr(error, "__notes__", []), sorted({row.state.split(";")[0] for row in shown.rows})])
takedown.down(topology.name, options(), topology=topology)
child = os.fork()
if child == 0:
    deploy.up(topology, options(at(len(found), lambda: os.kill(os.getpid(), signal.SIGKILL))))
    os._exit(1)
_, status = os.waitpid(child, 0)
again = deploy.up(topology, options())
left = len(deploy.up(topology, options()).steps)
json.dump([found, os.WIFSIGNALED(status), sorted({row.state for row in again.rows}), left],
          sys.stdout)
takedown.down(topology.name, options(), topology=topology)
"""


@pytest.fixture
def stopped(hosts: Hosts) -> Iterator[Host]:
    """A host whose guest does not run during the test."""
    hosts.n1.virsh("destroy", "n1g1")
    yield hosts.n1
    hosts.n1.virsh("start", "n1g1")
    hosts.n1.guest("n1g1").wait_ready()


def test_what_fails_in_the_guest_is_undone_on_the_host_and_what_was_killed_there_is_mended(hosts: Hosts) -> None:
    failed, killed, states, steps = python(hosts.n1, FAILING)
    assert len(failed) >= 2
    assert failed == [[[], ["missing"]]] * len(failed)
    assert killed
    assert (states, steps) == (["up"], 0)


def test_a_failure_takes_from_a_guest_only_what_it_was_given(hosts: Hosts, tmp_path: Path) -> None:
    text = """
name: taken
nodes:
  n1:
    parents: {lan: nic0}
    endpoints:
      n1g1: {kind: guest, parent: lan}
      other: {kind: guest, guest: n1g1, parent: lan}
      a: {kind: netns, parent: lan, addresses: ["2001:db8:51::2/64"]}
"""
    path = tmp_path / "taken.yaml"
    path.write_text(text, encoding="utf-8")
    planned = hosts.n1.json("topology", "plan", str(path))
    first, second = (row["mac"] for row in planned["rows"] if row["kind"] == "guest")
    hosts.n1.json("attach", "n1g1", "--parent", "nic0", "--mac", first, "--config")
    try:
        answer = hosts.n1.guestnet("topology", "up", str(path), "--no-hook")
        assert (answer.code, "another on the wire has 2001:db8:51::2" in answer.err) == (5, True), answer
        assert "not undone" not in answer.err
        assert [(nic["mac"], nic["live"], nic["config"]) for nic in hosts.n1.json("list")] == [(first, False, True)]
        assert second not in hosts.n1.config("n1g1")
    finally:
        hosts.n1.json("detach", "n1g1", "--all")


def test_a_nic_that_the_file_says_no_more_is_taken_from_the_guest(hosts: Hosts, tmp_path: Path) -> None:
    text = """
name: fewer
nodes:
  n1:
    parents: {lan: nic0}
    endpoints:
      a: {kind: netns, parent: lan}
      n1g1: {kind: guest, parent: lan}
"""
    path = tmp_path / "fewer.yaml"
    path.write_text(text, encoding="utf-8")
    host = hosts.n1
    host.json("topology", "up", str(path), "--no-hook")
    assert [nic["guest"] for nic in host.json("list")] == ["n1g1"]
    path.write_text(text.replace("      n1g1: {kind: guest, parent: lan}\n", ""), encoding="utf-8")
    steps = host.json("topology", "plan", str(path))["steps"]
    assert any("n1g1" in step for step in steps), steps
    assert host.json("topology", "up", str(path), "--no-hook")["steps"] == steps
    assert host.json("list") == []
    assert host.json("topology", "up", str(path), "--no-hook")["steps"] == []
    host.json("topology", "down", "fewer")


def test_a_guest_that_does_not_run_has_its_nic_from_its_next_start_on(stopped: Host) -> None:
    made = stopped.json("topology", "up", "0.5-guest", "--no-hook")
    states = {row["name"]: row["state"] for row in made["rows"]}
    assert states == {"n1g1": "not running", "macvtap1": "up"}
    assert stopped.json("topology", "up", "0.5-guest", "--no-hook")["steps"] == []
    stopped.virsh("start", "n1g1")
    try:
        shown = stopped.json("topology", "status", "0.5-guest")
        assert {row["state"] for row in shown["rows"]} == {"up"}
        stopped.guest("n1g1").wait_ready()  # who has not booted lets go of nothing
        stopped.json("topology", "down", "0.5-guest")
    finally:
        stopped.virsh("destroy", "n1g1")
    assert stopped.json("list") == []


def test_a_guest_that_is_not_there_is_told_before_anything_is_done_and_is_no_error_to_look_at(hosts: Hosts) -> None:
    answer = hosts.n1.guestnet("topology", "up", "0.5-guest", "--node", "n2")
    assert (answer.code, "n2g1" in answer.err) == (3, True)
    answer = hosts.n1.guestnet("topology", "status", "0.5-guest", "--node", "n2", "--json")
    assert answer.code == 1
    states = {row["name"]: row["state"] for row in answer.json["rows"]}
    assert "n2g1" in states["n2g1"]
    assert states["macvtap1"].startswith("missing")
    text = hosts.n1.guestnet("topology", "graph", "0.5-guest", "--node", "n2", "--check").out
    assert "! there is no guest n2g1" in text
    assert "x n2/macvtap1 does not reach n1/n1g1 (192.0.2.129, 2001:db8:0:80::129)" in text


def test_a_picture_beside_what_is_here_marks_what_is_amiss(hosts: Hosts) -> None:
    hosts.n1.json("topology", "up", "0.1")
    assert "!" not in hosts.n1.guestnet("topology", "graph", "0.1", "--check").out
    hosts.n1.run("ip", "-n", "tap0", "link", "set", "dev", "macvtap0", "down")
    hosts.n1.run("ip", "netns", "exec", "tap1", "ip", "link", "set", "dev", "lo", "down")
    text = hosts.n1.guestnet("topology", "graph", "0.1", "--check").out
    assert "! down" in text
    assert "x n1/tap1 does not reach n1/tap0 (10.1.1.1, 2001:db8:1::1)" in text
    index = hosts.n1.run("ip", "netns", "exec", "tap1", "cat", "/sys/class/net/macvtap1/ifindex").strip()
    hosts.n1.run("ip", "netns", "delete", "tap1")
    hosts.n1.run("rm", f"/dev/tap{index}")  # in a private /dev no kernel takes it away
    assert "! missing" in hosts.n1.guestnet("topology", "graph", "0.1", "--check").out
    shown = hosts.n1.guestnet("graph").out
    assert "NS: tap0" in shown
    assert "! down" in shown


def test_the_table_of_a_status_is_for_people(hosts: Hosts) -> None:
    assert hosts.n1.guestnet("topology", "status").out == "no topology is up here\n"
    hosts.n1.json("topology", "up", "0.1")
    assert hosts.n1.guestnet("topology", "status").out.split() == ["TOPOLOGY", "0.1"]
    shown = hosts.n1.guestnet("topology", "status", "0.1", "--check")
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert lines[1].split()[:5] == ["tap0", "netns", "tap0", "macvtap0", "nic0"]
    assert [line.split()[3] for line in lines if line.startswith("n1/")] == ["64"] * 4
    again = hosts.n1.guestnet("topology", "up", "0.1")
    assert "unchanged, it is so already" in again.out
    gone = hosts.n1.guestnet("topology", "down", "0.1")
    assert gone.out.startswith("0.1: taken down")


def test_a_dry_run_changes_nothing(hosts: Hosts) -> None:
    for words in (("up", "0.5-guest", "--dry-run"), ("plan", "0.5-guest"), ("down", "0.5-guest", "--dry-run")):
        assert hosts.n1.guestnet("topology", *words).code == 0
    hosts.n1.json("topology", "up", "0.1")
    shown = hosts.n1.guestnet("topology", "down", "0.1", "--dry-run").out
    assert "would delete network namespace tap0" in shown
    assert hosts.n1.json("topology", "up", "0.1")["steps"] == []
