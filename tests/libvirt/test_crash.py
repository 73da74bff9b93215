"""kill -9 of attach and detach, at every step and at random moments: the same command again completes, or gc and repair
clean; no guest is harmed and no link of anybody else's is touched."""

import json
import os
import secrets
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.libvirt.conftest import Host, address, ping

pytestmark = [pytest.mark.root, pytest.mark.guest]

MOMENTS = 200 if os.environ.get("GUESTNET_TESTS_FULL") == "1" else 40
SEED = int(os.environ.get("GUESTNET_TESTS_SEED", "0")) or secrets.randbits(32)


@pytest.fixture
def bystander(n1: Host) -> Iterator[dict[str, Any]]:
    """A guest with a NIC that nobody has any business with; at the end it answers as at the beginning."""
    nic: dict[str, Any] = n1.json("attach", "n1g2", "--parent", "nic0")["nics"][0]
    guest = n1.guest("n1g2")
    address(guest, nic["mac"], "198.51.100.94/24")
    assert ping(guest, "198.51.100.2")
    link = n1.links()[nic["ifname"]]["ifindex"]
    yield nic
    assert n1.links()[nic["ifname"]]["ifindex"] == link
    assert ping(guest, "198.51.100.2")


def run(host: Host, *words: str) -> list[dict[str, Any]]:
    done = host.node.run([sys.executable, "-m", "tests.libvirt.crash", *words], timeout=900)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(story: dict[str, Any], nic: dict[str, Any]) -> None:
    """What must hold after each kill, whatever it hit."""
    links = story["left"]["links"]
    bystander = ["n1g2", nic["ifname"], True, True, []]
    for when in ("left", "collected", "seen", "at last"):
        if when in story:
            assert story[when]["others"] == [bystander], (when, story)
            assert story[when]["links"] == links, (when, story)
    if "again" in story:
        # a detach of all that finds nothing any more is no failure
        assert story["again"]["code"] == 0, story
        wanted = [] if story["verb"] == "detach" else [[True, True, []]]
        assert [row[1:] for row in story["seen"]["nics"]] == wanted, story
    else:
        assert story["gc"]["code"] == story["repair"]["code"] == 0, story
        named = {row[0] for row in story["collected"]["nics"] if row[1] or row[2]}
        assert set(story["collected"]["ours"]) - {nic["ifname"]} <= named, story
        assert [row for row in story["seen"]["nics"] if row[3]] == [], story
    assert story["detach"]["code"] == 0, story
    assert (story["gc at last"], story["at last"]["nics"]) == ({"code": 0, "steps": []}, []), story
    assert story["at last"]["ours"] == [nic["ifname"]], story
    if "hook" in story:
        if "again" in story:
            assert story["hook"] == {"ready": True, "files": ["/etc/libvirt/hooks/qemu.d/guestnet"]}, story
        assert story["hook at last"]["files"] == [], story


def test_a_kill_at_any_step_is_mended_by_the_same_command_or_by_gc_and_repair(
    n1: Host, bystander: dict[str, Any]
) -> None:
    before = n1.state()
    stories = run(n1, "steps", "n1g1", "nic0")
    for story in stories:
        check(story, bystander)
    killed = [(one["verb"], one["number"], one["phase"]) for one in stories if "killed" in one["told"]]
    whole = [("attach", number, phase) for number in range(8) for phase in ("begin", "inside", "end")]
    whole += [("detach", number, phase) for number in range(4) for phase in ("begin", "inside", "end")]
    whole += [("attach for good", 0, phase) for phase in ("begin", "_put", "_ask", "end")]
    # the check of a node that is there has no effect to be killed in
    assert set(whole) - {("attach", 1, "inside")} <= set(killed), killed
    assert n1.state() == before


def test_a_kill_at_any_moment_is_mended_by_the_same_command_or_by_gc_and_repair(
    n1: Host, bystander: dict[str, Any]
) -> None:
    before = n1.state()
    stories = run(n1, "moments", "n1g1", "nic0", str(MOMENTS), str(SEED))
    print(f"GUESTNET_TESTS_SEED={SEED}")
    for story in stories:
        check(story, bystander)
    assert len(stories) == MOMENTS
    assert sum("killed" in story["told"] for story in stories) > MOMENTS / 3
    assert n1.state() == before
