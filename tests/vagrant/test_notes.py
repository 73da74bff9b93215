"""What vagrant/notes does on its nodes, on two hosts of a lab in place of them."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestnet.lab import Guest, Lab, Node
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


def _made(node: Node) -> str:
    done = node.run((sys.executable, str(NODE)), cwd=str(REPO), timeout=200)
    assert done.returncode == 0, done
    return str(done.stdout)


@pytest.mark.root
@pytest.mark.guest
def test_each_node_gets_its_guest_and_the_guests_reach_each_other(nodes: tuple[Node, ...]) -> None:
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(_made, nodes))
    assert "n1g1 has 192.0.2.129/26, 2001:db8:0:80::129/64" in said[0]
    guest = Guest(name="n1g1", node="n1", own=Path(nodes[0].own))
    for word, address in (("ping", "192.0.2.66"), ("ping6", "2001:db8:0:40::66")):
        tries = f"for i in 1 2 3 4 5 6; do {word} -c 1 -W 1 {address} && exit 0; done; exit 1"  # DAD takes its time
        status, output = guest.run(tries)
        assert status == 0, output
    # again changes nothing
    assert _made(nodes[0]) == said[0]
