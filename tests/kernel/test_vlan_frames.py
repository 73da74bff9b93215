"""Frames of guests on VLANs, as they are on the wire."""

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from guestnet.errors import ConflictError
from guestnet.kernel.tap import Tap
from guestnet.model import Attachment, Kind, VlanProtocol
from tests.conftest import Namespace
from tests.kernel.vlans import NIC_MAC, PEER_MAC, Site, facts, site
from tests.wire import Frame, Wire, ethernet, send

pytestmark = [pytest.mark.root, pytest.mark.kernel("8021q", "macvtap", "veth")]

ALL = "ff:ff:ff:ff:ff:ff"
TEST = 0x88B5
Q, AD = 0x8100, 0x88A8
_FACTORY = Callable[[], Namespace]


@pytest.fixture
def host(namespace: _FACTORY) -> Site:
    return site(namespace, far=True)


@pytest.fixture
def wire(host: Site) -> Iterator[Wire]:
    with Wire("peer0", host.far.fd) as listener:
        yield listener


@contextmanager
def opened(host: Site, ifname: str) -> Iterator[int]:
    with Tap.open(ifname, namespace=host.here.fd, vnet_header=False) as tap:
        yield tap.fds[0]


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    """The frame with these tags, the outer one first."""
    return frame[:12] + b"".join(protocol.to_bytes(2) + vid.to_bytes(2) for protocol, vid in tags) + frame[12:]


def comes(fd: int, payload: bytes) -> list[bytes]:
    """What a guest reads up to the frame with that payload: the payloads of the frames of our ethertype."""
    found = []
    deadline = time.monotonic() + 20
    while payload not in found and select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
        frame = os.read(fd, 65536)
        if frame[12:14] == TEST.to_bytes(2):
            found.append(frame[14:].rstrip(b"\0"))
    assert payload in found, found
    return found


def by(mac: str) -> Callable[[Frame], bool]:
    return lambda frame: (frame.by, frame.ethertype) == (mac, TEST)


def passes(host: Site, wire: Wire, nic: Attachment, *tags: tuple[int, int]) -> None:
    """A frame of the guest is on the wire with these tags, and what comes with them reaches it."""
    with opened(host, nic.ifname) as fd:
        os.write(fd, ethernet(ALL, nic.mac, payload=b"out"))
        assert wire.wait(by(nic.mac)).tags == tags
        for to in (nic.mac, ALL):
            send(tagged(ethernet(to, PEER_MAC, payload=to.encode()), *tags), "peer0", host.far.fd)
            comes(fd, to.encode())


def wait_for_carrier(host: Site, name: str) -> None:
    deadline, never = time.monotonic() + 20, threading.Event()
    while not host.link(name).carrier and time.monotonic() < deadline:
        never.wait(0.02)
    assert host.link(name).carrier


@pytest.mark.parametrize(
    ("parent", "outer", "tags"),
    [
        ("nic0.11", None, ((Q, 11),)),
        ("nic0.100.11", None, ((Q, 100), (Q, 11))),
        ("nic0.100.11", VlanProtocol.DOT1AD, ((AD, 100), (Q, 11))),
    ],
    ids=["VLAN", "VLAN in VLAN", "VLAN in a provider's"],
)
def test_a_guests_frames_have_the_tags_of_its_parent_on_the_wire(
    host: Site, wire: Wire, parent: str, outer: VlanProtocol | None, tags: tuple[tuple[int, int], ...]
) -> None:
    (nic,) = host.attach(parent, outer=outer).nics
    passes(host, wire, nic, *tags)


def test_guests_on_two_vlans_hear_nothing_of_each_other(host: Site) -> None:
    first, second = host.attach("nic0.11", "nic0.12").nics
    with opened(host, first.ifname) as one, opened(host, second.ifname) as other:
        os.write(one, ethernet(ALL, first.mac, payload=b"from one"))
        for vid, word in ((12, b"for twelve"), (11, b"for eleven"), (12, b"end"), (11, b"end")):
            send(tagged(ethernet(ALL, PEER_MAC, payload=word), (Q, vid)), "peer0", host.far.fd)
        assert comes(one, b"end") == [b"for eleven", b"end"]
        assert comes(other, b"end") == [b"for twelve", b"end"]


def test_what_a_guest_tags_itself_stays_within_its_vlan(host: Site, wire: Wire) -> None:
    (nic,) = host.attach("nic0.11").nics
    with opened(host, nic.ifname) as fd:
        for own in ((Q, 12), (Q, 11), (AD, 12)):
            os.write(fd, tagged(ethernet(ALL, nic.mac), own))
            assert wire.wait(by(nic.mac)).tags == ((Q, 11), own)


def test_a_vlan_without_reorder_hdr_lets_a_guest_into_any_other_vlan(host: Site, wire: Wire) -> None:
    """Why such a VLAN is refused; its guest is made by hand here."""
    mac = "52:54:00:00:02:01"
    host.here.ip("link add link nic0 name v11 up type vlan id 11 reorder_hdr off")
    host.here.ip(f"link add mt0 link v11 address {mac} up type macvtap mode bridge")
    with opened(host, "mt0") as fd:
        os.write(fd, tagged(ethernet(ALL, mac), (Q, 12)))
        assert wire.wait(by(mac)).tags == ((Q, 12),)
    host.here.ip("link del mt0")
    with pytest.raises(ConflictError, match="REORDER_HDR"):
        host.attach("nic0.11")
    host.here.ip("link set v11 type vlan reorder_hdr on")
    (nic,) = host.attach("nic0.11").nics
    with opened(host, nic.ifname) as fd:
        os.write(fd, tagged(ethernet(ALL, nic.mac), (Q, 12)))
        assert wire.wait(by(nic.mac)).tags == ((Q, 11), (Q, 12))


def test_the_host_does_not_appear_in_the_vlan_of_its_guests(host: Site, wire: Wire) -> None:
    host.attach("nic0.11", "nic0.100.12")
    # one of the host's own, whose IPv6 speaks up by itself, to know when enough time has passed
    host.add(Kind.VLAN, "nic0.13", parent="nic0", vlan=13)
    heard: list[Frame] = []

    def solicits(frame: Frame) -> bool:
        heard.append(frame)
        return frame.vids == (13,) and frame.by == NIC_MAC and frame.to == "33:33:00:00:00:02"

    wire.wait(solicits)  # a router solicitation: the last that an interface sends when it comes up
    assert {frame.vids for frame in heard if frame.by == NIC_MAC} == {(13,)}
    assert {frame.vids for frame in heard} == {(13,)}


@pytest.mark.kernel("bonding")
@pytest.mark.parametrize("mode", ["active-backup", "802.3ad"])
def test_a_vlan_on_a_bond_passes(host: Site, wire: Wire, mode: str) -> None:
    host.here.ip(f"link add bond0 type bond miimon 20 mode {mode}")
    host.here.ip("link set nic0 down master bond0")
    host.here.ip("link set bond0 addrgenmode none up")
    wait_for_carrier(host, "bond0")
    with pytest.raises(ConflictError, match="nic0 is a port of bond0") as refused:
        host.attach("nic0.11")
    assert refused.value.hint == "use the bond itself: --parent bond0.11"
    (nic,) = host.attach("bond0.11").nics
    passes(host, wire, nic, (Q, 11))


@pytest.mark.kernel("bridge")
def test_a_vlan_on_a_bridge_passes_and_one_on_its_port_is_refused_for_what_it_takes_away(
    host: Site, wire: Wire
) -> None:
    host.here.ip("link add br0 type bridge")
    host.here.ip("link set br0 addrgenmode none up")
    host.here.ip("link set nic0 master br0")
    with pytest.raises(ConflictError, match=r"nic0 is a port of br0 \(bridge\), and VLAN 11 on it would") as refused:
        host.attach("nic0.11")
    assert refused.value.hint == "use the bridge itself: --parent br0.11"
    (nic,) = host.attach("br0.11").nics
    passes(host, wire, nic, (Q, 11))
    # the reason: with VLAN 11 on the port made by hand, the bridge hears no more of it
    host.here.ip("link add link nic0 name nic0.11 up type vlan id 11")
    with opened(host, nic.ifname) as fd:
        send(tagged(ethernet(ALL, PEER_MAC, payload=b"lost"), (Q, 11)), "peer0", host.far.fd)
        host.here.ip("link del nic0.11")
        send(tagged(ethernet(ALL, PEER_MAC, payload=b"back"), (Q, 11)), "peer0", host.far.fd)
        assert comes(fd, b"back") == [b"back"]
    host.here.ip("link add link nic0 name nic0.12 up type vlan id 12")
    (nic,) = host.attach("nic0.12", guest="vm2").nics
    passes(host, wire, nic, (Q, 12))


@pytest.mark.kernel("bridge")
def test_a_vlan_on_a_bridge_that_filters_passes_once_what_the_note_says_is_done(host: Site, wire: Wire) -> None:
    host.here.ip("link add br0 type bridge vlan_filtering 1")
    host.here.ip("link set br0 addrgenmode none up")
    host.here.ip("link set nic0 master br0")
    made = host.attach("br0.11")
    (nic,) = made.nics
    with opened(host, nic.ifname) as fd:
        os.write(fd, ethernet(ALL, nic.mac, payload=b"filtered"))
    note = facts(made).splitlines()[-1]
    assert note.startswith("br0 filters VLANs")
    for command in note.rpartition(": ")[2].split("; "):
        host.bridge(command.replace("PORT", "nic0").removeprefix("bridge "))
    passes(host, wire, nic, (Q, 11))
    assert not any(frame.payload.startswith(b"filtered") for frame in wire.heard())
