"""What vagrant/notes does on its nodes, on two hosts of a lab in place of them."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from guestnet.lab import Lab, Node
from tests.conftest import REPO

NODE = REPO / "vagrant/notes/node.py"


@pytest.fixture
def nodes() -> Iterator[tuple[Node, ...]]:
    lab = Lab(name=f"v{os.getpid() % 1_000_000}")
    try:
        lab.up(nodes=2, guests=0)
        yield lab.nodes()
    finally:
        lab.down()


def _said(node: Node, *words: str) -> str:
    done = node.run((sys.executable, str(NODE), *words), cwd=str(REPO), timeout=200)
    assert done.returncode == 0, done
    return str(done.stdout)


@pytest.mark.root
@pytest.mark.guest
def test_each_node_gets_its_guest_and_the_guests_reach_each_other(nodes: tuple[Node, ...]) -> None:
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(_said, nodes))
    assert "n1g1 has 192.0.2.129/26, 2001:db8:0:80::129/64" in said[0]
    four, six = _said(nodes[0], "ping", "n1g1", "n2g1").splitlines()
    # both hosts have routed the answer
    assert four.startswith("n1g1: 64 bytes from 192.0.2.66: seq=0 ttl=62 ")
    assert six.startswith("n1g1: 64 bytes from 2001:db8:0:40::66: seq=0 ttl=62 ")
    # again changes nothing
    assert _said(nodes[0]) == said[0]
