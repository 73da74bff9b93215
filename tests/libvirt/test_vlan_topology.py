"""A topology's guests and hosts with a VLAN in place of the file's parent, as `guestnet lab up --topology` has it."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from guestnet.lab import Lab
from guestnet.lab import topology as on_lab
from guestnet.topology import document
from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.kernel("8021q")]


def ttl(host: Host, guest: str, word: str, address: str) -> int:
    """The TTL of the answer that a guest gets from that address; 0 for none."""
    tries = f"for i in 1 2 3 4; do {word} -c 1 -W 2 {address} && exit 0; done; exit 1"
    found = re.search(r"ttl=(\d+)", host.guest(guest).run(tries)[1])
    return int(found[1]) if found else 0


def test_guests_of_a_topology_reach_each_other_across_the_nodes_on_a_vlan(lab: Lab, n1: Host, n2: Host) -> None:
    try:
        on_lab.up(lab, document.find("0.5-guest"), "0.5-guest", parents={"lan": "nic0.11"})
        for host in (n1, n2):
            links = host.links()
            assert links["nic0.11"]["linkinfo"]["info_data"]["id"] == 11
            on_it = [name for name, link in links.items() if link.get("link") == "nic0.11"]
            assert len(on_it) == 2, links
            assert "macvtap1" in on_it
        # by both hosts, each of them a router
        assert ttl(n1, "n1g1", "ping", "192.0.2.66") == 62
        assert ttl(n2, "n2g1", "ping6", "2001:db8:0:80::129") == 62
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: host.json("topology", "down", "0.5-guest"), (n1, n2)))
    assert not any("nic0.11" in host.links() for host in (n1, n2))
