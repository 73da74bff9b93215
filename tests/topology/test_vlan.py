"""Topologies and the host's own link on VLANs: on a kernel that has 802.1Q, wherever that runs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.libvirt.conftest import Host
from tests.topology.conftest import Hosts, wrong

pytestmark = [pytest.mark.root, pytest.mark.kernel("8021q")]

DRIVER = Path(__file__).with_name("driver.py")


class Driver:
    """The command line on a host, many commands by one process."""

    def __init__(self, host: Host, process: subprocess.Popen[str]) -> None:
        self.host = host
        self._process = process

    def begin(self, *words: str) -> None:
        """Give it a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join((*words, "--json\n")))
        self._process.stdin.flush()

    def end(self, status: int = 0) -> Any:
        """What the command answered."""
        assert self._process.stdout is not None
        got, said = json.loads(self._process.stdout.readline())
        assert got == status, said
        return json.loads(said)

    def __call__(self, *words: str, status: int = 0) -> Any:
        self.begin(*words)
        return self.end(status)


@contextmanager
def driver(host: Host) -> Iterator[Driver]:
    words = host.node.argv([sys.executable, str(DRIVER)])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Driver(host, process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def both(bare_hosts: Hosts) -> Iterator[tuple[Driver, Driver]]:
    with ExitStack() as stack:
        yield stack.enter_context(driver(bare_hosts.n1)), stack.enter_context(driver(bare_hosts.n2))


def each(both: tuple[Driver, Driver], *words: str) -> list[Any]:
    """The answers of both hosts to a command that both work on at once."""
    for one in both:
        one.begin(*words)
    return [one.end() for one in both]


def test_topologies_and_the_hosts_own_links_come_up_on_vlans_are_pinged_and_go_leaving_nothing(
    both: tuple[Driver, Driver],
) -> None:
    for name, vlan, mode in (("vlan-macvtap", "nic0.11", "vepa"), ("vlan-macvlan", "nic0.12", "bridge")):
        for made in each(both, "topology", "up", name):
            [row] = made["rows"]
            assert (row["state"], row["parent"], row["mode"]) == ("up", vlan, mode)
        assert [again["steps"] for again in each(both, "topology", "up", name)] == [[], []]
        for shown in each(both, "topology", "status", name, "--check"):
            assert [":" in one["address"] for one in shown["pings"]] == [False, True]
            assert wrong(shown["pings"]) == []
        for one in both:
            link = one.host.links()[vlan]
            assert (link["link"], link["ifalias"], link["inet6_addr_gen_mode"]) == ("nic0", "guestnet:1:vlan", "none")
            assert set(one.host.links()) == {"lo", "nic0", vlan}
        each(both, "topology", "down", name)
        assert [set(one.host.links()) for one in both] == [{"lo", "nic0"}] * 2
    # the hosts' own links, on a VLAN that goes with them
    for number, one in enumerate(both, 1):
        one("host", "add", "nic0.11", "--address", f"203.0.113.{number}/24")
        assert one.host.links()["nic0.11"]["ifalias"] == "guestnet:1:vlan"
    both[0].host.run("ping", "-c", "1", "-W", "10", "203.0.113.2")
    for one in both:
        one("host", "delete", "nic0.11")
        assert set(one.host.links()) == {"lo", "nic0"}
