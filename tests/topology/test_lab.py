"""`guestnet lab up --topology`: a lab as large as the file needs, brought up and pinged."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestnet.errors import UsageError
from guestnet.lab import Lab, labs
from guestnet.lab import topology as on_lab
from guestnet.topology import document
from tests.conftest import Answer

pytestmark = [pytest.mark.root, pytest.mark.guest]

NAME = f"fx{os.getpid() % 1_000_000}"


@pytest.fixture
def no_lab() -> Iterator[None]:
    yield
    Lab(name=NAME).down()


def test_a_lab_comes_up_with_a_topology_and_every_ping_is_answered(
    run_guestnet: Callable[..., Answer], no_lab: None
) -> None:
    answer = run_guestnet(
        "lab", "up", "--name", NAME, "--nics", "2", "--topology", "0.5", "--parent", "lan=nic1", "--json"
    )
    assert answer.code == 0, answer.err
    assert len(answer.json["pings"]) == 24
    assert {one["ttl"] for one in answer.json["pings"]} == {62, 63, 64}
    plan = Lab(name=NAME).plan()
    assert (plan.nodes, plan.guests) == (2, 0)
    for number in (1, 2):
        shown = json.loads(Lab(name=NAME).node(f"n{number}").run(["ip", "-j", "link", "show", "macvtap1"]).stdout)
        assert shown[0]["link"] == "nic1"


def test_a_parent_without_a_topology_is_nobodys(run_guestnet: Callable[..., Answer]) -> None:
    answer = run_guestnet("lab", "up", "--name", NAME, "--parent", "lan=nic0")
    assert (answer.code, "--topology" in answer.err) == (2, True)
    assert NAME not in labs()


def test_what_a_topology_says_wrong_of_a_network_is_shown_and_the_lab_stays_to_look_at(
    run_guestnet: Callable[..., Answer], no_lab: None, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        """
name: wrong
nodes:
  n1:
    parents: {lan: nic0, other: nic1}
    endpoints:
      a: {kind: netns, parent: lan, addresses: [192.0.2.1/24]}
      b: {kind: netns, parent: other, addresses: [192.0.2.2/24]}
""",
        encoding="utf-8",
    )
    answer = run_guestnet("lab", "up", "--name", NAME, "--nics", "2", "--topology", str(path), "--json")
    # the file holds the two for two networks; the lab has them on one switch, and so they do answer
    assert answer.code == 1
    assert [(one["ttl"], one["expected"]) for one in answer.json["pings"]] == [(64, None)] * 2
    assert NAME in labs()


@pytest.mark.parametrize(
    ("old", "new"), [("  n1:", "  web:"), ("kind: netns, parent", "kind: guest, guest: vm1, parent")]
)
def test_names_that_a_lab_has_not_are_told_before_anything_is_made(
    run_guestnet: Callable[..., Answer], tmp_path: Path, old: str, new: str
) -> None:
    text = """
name: x
nodes:
  n1: {parents: {lan: nic0}, endpoints: {a: {kind: netns, parent: lan}}}
"""
    path = tmp_path / "x.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    answer = run_guestnet("lab", "up", "--name", NAME, "--topology", str(path), "--json")
    assert answer.code == 2
    assert json.loads(answer.out)["error"]["hint"]
    assert NAME not in labs()


def test_a_lab_is_as_large_as_the_topology_needs() -> None:
    assert on_lab.sizes(document.find("0.1")) == (1, 0)
    assert on_lab.sizes(document.find("0.5-guest")) == (2, 1)
    with pytest.raises(UsageError):
        on_lab.sizes(document.parse(b"name: x\nnodes: {web: {parents: {lan: eth0}}}", "x"))
