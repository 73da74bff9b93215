"""Guests on VLANs: what they reach, what the wire carries, what stays and what goes."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from guestnet.kernel import netns
from guestnet.lab import Lab, demo
from tests.libvirt.conftest import Host, address, ping
from tests.wire import Frame, Wire

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.kernel("8021q")]

BROADCASTS = 20


@pytest.fixture
def peer(n2: Host) -> Iterator[Host]:
    """The other node with an address of its own in VLAN 11, on a VLAN link made by hand."""
    n2.run("ip", "link", "add", "link", "nic0", "name", "hand11", "type", "vlan", "id", "11")
    try:
        n2.run("ip", "address", "add", "203.0.113.2/24", "dev", "hand11")
        n2.run("ip", "address", "add", "2001:db8:11::2/64", "dev", "hand11", "nodad")
        n2.run("ip", "link", "set", "hand11", "up")
        yield n2
    finally:
        n2.run("ip", "link", "delete", "hand11")


@pytest.fixture
def wire(n2: Host) -> Iterator[Wire]:
    """What arrives at the other node's NIC."""
    with ExitStack() as stack:
        namespace = stack.enter_context(netns.opened(n2.node.netns))
        yield stack.enter_context(Wire("nic0", namespace))


def from_guest(mac: str) -> Callable[[Frame], bool]:
    return lambda frame: frame.by == mac


def vlans(host: Host) -> dict[str, tuple[str, int]]:
    """The VLANs of a host: their lower link and VLAN ID by name."""
    found = {}
    for name, link in host.links().items():
        if link.get("linkinfo", {}).get("info_kind") == "vlan":
            found[name] = (link["link"], link["linkinfo"]["info_data"]["id"])
    return found


@pytest.mark.parametrize("backend", ["macvtap", "direct"])
def test_a_running_guest_is_on_the_vlan_and_on_no_other(n1: Host, peer: Host, wire: Wire, backend: str) -> None:
    words = ("--backend", backend) if backend == "direct" else ("--mode", "bridge")
    nic = n1.json("attach", "n1g1", "--parent", "nic0.11", *words)["nics"][0]
    assert vlans(n1) == {"nic0.11": ("nic0", 11)}
    other = peer.json("attach", "n2g1", "--parent", "nic0.12")["nics"][0]
    first, second = n1.guest("n1g1"), peer.guest("n2g1")
    address(first, nic["mac"], "203.0.113.1/24", "2001:db8:11::1/64")
    deaf = address(second, other["mac"], "203.0.113.3/24")

    assert ping(first, "203.0.113.2")
    assert ping(first, "2001:db8:11::2")
    for word, to in (("-4", "203.0.113.1"), ("-6", "2001:db8:11::1")):
        peer.run("ping", word, "-c", "1", "-W", "10", to)
    heard = wire.heard()
    assert {frame.tags for frame in heard if from_guest(nic["mac"])(frame)} == {((0x8100, 11),)}
    # the host itself is not in the VLAN of its guest
    assert {frame.by for frame in heard if frame.vids == (11,)} == {nic["mac"]}

    assert received(second, deaf) == 0
    assert second.run("ping -c 2 -W 1 203.0.113.1")[0] != 0

    for host, guest in ((n1, "n1g1"), (peer, "n2g1")):
        host.json("detach", guest, "--all")
    assert vlans(n1) == {}
    assert vlans(peer) == {"hand11": ("nic0", 11)}


def test_a_broadcast_is_heard_on_its_vlan_alone(n1: Host, n2: Host) -> None:
    sender = n1.json("attach", "n1g1", "--parent", "nic0.11")["nics"][0]
    out = address(n1.guest("n1g1"), sender["mac"], "203.0.113.1/24")
    listener = n2.guest("n2g1")
    names = {}
    for vid in (11, 12):
        nic = n2.json("attach", "n2g1", "--parent", f"nic0.{vid}")["nics"][0]
        names[vid] = address(listener, nic["mac"])
    before = {vid: received(listener, name) for vid, name in names.items()}
    n1.guest("n1g1").run(f"arping -c {BROADCASTS} -w {BROADCASTS + 5} -I {out} 203.0.113.99", timeout=60)
    after = {vid: received(listener, name) for vid, name in names.items()}
    assert after[11] - before[11] >= BROADCASTS
    assert after[12] == before[12]


def received(guest: object, name: str) -> int:
    """The frames a guest's NIC has had from the wire."""
    status, output = guest.run(f"cat /sys/class/net/{name}/statistics/rx_packets")  # type: ignore[attr-defined]
    assert status == 0, output
    return int(output)


def test_two_guests_share_a_vlan_that_goes_with_the_last_of_them(n1: Host, bare_domain: Callable[..., str]) -> None:
    guests = [bare_domain(), bare_domain()]
    for guest in guests:
        n1.json("attach", guest, "--parent", "nic0.11")
    assert vlans(n1) == {"nic0.11": ("nic0", 11)}
    n1.virsh("destroy", guests[0])  # no system runs in it that could let go of a NIC
    n1.json("detach", guests[0], "--all")
    assert vlans(n1) == {"nic0.11": ("nic0", 11)}
    n1.virsh("destroy", guests[1])
    n1.virsh("undefine", guests[1])
    assert [step.split()[0] for step in n1.json("gc")["steps"]] == ["delete", "delete"]
    assert vlans(n1) == {}


def test_two_nics_of_one_guest_are_on_one_vlan(n1: Host, bare_domain: Callable[..., str]) -> None:
    guest = bare_domain(ports=2)
    made = n1.json("attach", guest, "--parent", "nic0.11", "--parent", "nic0.11")
    assert len({nic["ifname"] for nic in made["nics"]}) == 2
    assert vlans(n1) == {"nic0.11": ("nic0", 11)}
    assert {n1.links()[nic["ifname"]]["link"] for nic in made["nics"]} == {"nic0.11"}


def test_a_configured_nic_is_on_its_vlan_at_the_next_start(n1: Host, bare_domain: Callable[..., str]) -> None:
    guest = bare_domain(start=False)
    nic = n1.json("attach", guest, "--parent", "nic0.11", "--config")["nics"][0]
    n1.virsh("start", guest)
    link = n1.links()[nic["ifname"]]
    assert (link["link"], link["address"]) == ("nic0.11", nic["mac"])
    assert re.search(rf"\b{nic['ifname']}\b", n1.virsh("domiflist", guest))


def test_a_guest_takes_its_vlan_along_as_it_stops_has_it_as_it_starts_and_again_after_a_repair(
    n1: Host, peer: Host
) -> None:
    """It is saved and restored, by which libvirt calls the hook as at any end and start, and it need not boot."""
    nic = n1.json("attach", "n1g1", "--parent", "nic0.11", hook=True)["nics"][0]
    guest = n1.guest("n1g1")

    def on_vlan() -> bool:
        return vlans(n1) == {"nic0.11": ("nic0", 11)} and n1.links()[nic["ifname"]]["link"] == "nic0.11"

    try:
        address(guest, nic["mac"], "203.0.113.1/24")
        assert ping(guest, "203.0.113.2")

        n1.virsh("managedsave", "n1g1")
        assert vlans(n1) == {}
        n1.virsh("start", "n1g1")
        assert on_vlan()
        assert ping(guest, "203.0.113.2")

        n1.run("ip", "link", "delete", "nic0.11")
        assert "make VLAN 11 on nic0: nic0.11" in n1.json("repair", "n1g1")["steps"]
        assert on_vlan()
        address(guest, nic["mac"], "203.0.113.1/24")
        assert ping(guest, "203.0.113.2")
    finally:
        n1.guestnet("hook", "uninstall", check=True)


def test_a_guest_is_on_a_vlan_of_a_vlan(n1: Host, n2: Host, wire: Wire) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0.100.11", "--outer-protocol", "802.1ad")["nics"][0]
    assert vlans(n1) == {"nic0.100": ("nic0", 100), "nic0.100.11": ("nic0.100", 11)}
    name = address(n1.guest("n1g1"), nic["mac"], "203.0.113.1/24")
    n1.guest("n1g1").run(f"arping -c 1 -w 5 -I {name} 203.0.113.2")
    assert wire.wait(from_guest(nic["mac"])).tags == ((0x88A8, 100), (0x8100, 11))
    n1.json("detach", "n1g1", "--all")
    assert vlans(n1) == {}


def test_the_demo_shows_the_command_for_a_vlan_and_guests_that_reach_each_other(lab: Lab, n1: Host, n2: Host) -> None:
    """What `guestnet lab demo` shows once its lab is up; tests/docs runs all of it."""
    said: list[str] = []
    try:
        demo.show(lab.nodes(), said.append)
    finally:
        for host in (n1, n2):
            host.guestnet("hook", "uninstall", check=True)
    for host in (n1, n2):
        name = f"{host.node.name}g1"
        assert f"* on {host.node.name}: guestnet attach {name} --parent nic0.11 --mode bridge" in said
        assert vlans(host) == {"nic0.11": ("nic0", 11)}
    assert sum("bytes from" in line for line in said) == 4, said
    assert [line.split()[:3] for line in said if line.startswith("    nic0.11 ")] == [["nic0.11", "nic0", "11"]]
