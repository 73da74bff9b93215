"""What guestnet macvtap, macvlan and vlan refuse: each with its exit status, its words, and without any effect."""

from collections.abc import Callable
from typing import Any

import pytest

from guestnet.model import GROUP, guest_alias

pytestmark = pytest.mark.root

UUID = "01234567-89ab-cdef-0123-456789abcdef"
ADD = "macvtap add x --parent"
FAILED, USAGE, NOT_FOUND, CONFLICT = 1, 2, 3, 5

# the words, the exit status, what the message says, what the hint says
REFUSED = [
    # the parent
    (f"{ADD} nic9", NOT_FOUND, "there is no interface nic9", "nic0"),
    (f"{ADD} qqq", NOT_FOUND, "there is no interface qqq", "ip link"),
    (f"{ADD} lo", CONFLICT, "lo is the loopback interface", "NIC"),
    (f"{ADD} port0", CONFLICT, "port0 is a port of br0 (bridge)", "--parent br0"),
    (f"{ADD} tap0", CONFLICT, "tap0 is a macvtap itself", "--parent nic0"),
    (f"{ADD} nic0 --netns zzz", NOT_FOUND, "there is no network namespace zzz", "ip netns"),
    (f"{ADD} nic0 --netns a/b", USAGE, "'a/b' is not a network namespace name", "ip netns list"),
    ("macvtap add x", USAGE, "--parent", "--help"),
    # the name
    ("macvtap add abcdefghijklmnop --parent nic0", USAGE, "has 16 characters", "shorter"),
    ("macvtap add a/b --parent nic0", USAGE, "'a/b' is not an interface name", "letters"),
    ("macvtap add .. --parent nic0", USAGE, "'..' is not an interface name", "letters"),
    ("macvtap add tap0 --parent nic0 --mode vepa", CONFLICT, "the interface name tap0 is taken", "macvtap set tap0"),
    ("macvtap add nic0 --parent nic0", CONFLICT, "the interface name nic0 is taken", "another name"),
    ("macvtap add thecard --parent nic0", CONFLICT, "the interface name thecard is taken", "another name"),
    ("macvtap add x y x --parent nic0", USAGE, "x is asked for twice", "its own name"),
    ("macvtap add y tap0 --parent nic0", CONFLICT, "the interface name tap0 is taken", ""),
    # the VLAN
    (f"{ADD} nic0.0", USAGE, "'0' is not a VLAN ID", "1 to 4094"),
    (f"{ADD} nic0.4095", USAGE, "'4095' is not a VLAN ID", "1 to 4094"),
    (f"{ADD} nic0.x", NOT_FOUND, "there is no interface nic0.x", "nic0"),
    (f"{ADD} nic0.", NOT_FOUND, "there is no interface nic0.", "nic0"),
    (f"{ADD} .11", NOT_FOUND, "there is no interface .11", ""),
    ("vlan add nic0.0", USAGE, "'0' is not a VLAN ID", "1 to 4094"),
    ("vlan add nic0.", USAGE, "'' is not a VLAN ID", "1 to 4094"),
    ("vlan add .11", USAGE, "does not say which VLAN", "NIC.VID"),
    ("vlan add lab", USAGE, "does not say which VLAN", "--parent NIC --vlan VID"),
    ("vlan add --parent nic0", USAGE, "say which VLAN", "--vlan VID"),
    ("vlan add --parent nic0 --vlan 0", USAGE, "'0' is not a VLAN ID", "1 to 4094"),
    ("vlan add --parent nic0 --vlan 4095", USAGE, "'4095' is not a VLAN ID", "1 to 4094"),
    ("vlan add --parent nic0 --vlan x", USAGE, "'x' is not a VLAN ID", "1 to 4094"),
    ("vlan add --parent nic0 --vlan 1.5", USAGE, "'1.5' is not a VLAN ID", "1 to 4094"),
    ("vlan add nic9.11", NOT_FOUND, "there is no interface nic9", "nic0"),
    ("vlan add lo.11", CONFLICT, "lo is the loopback interface", ""),
    ("vlan add port0.11", CONFLICT, "port0 is a port of br0", "--parent br0.11"),
    ("vlan add tap0.11", CONFLICT, "tap0 is a macvtap itself, which hears frames for its own MAC", "--parent nic0.11"),
    ("vlan add lan0.11", CONFLICT, "lan0 is a macvlan itself, which hears frames for its own MAC", "--parent nic0.11"),
    ("vlan add whole0.11", CONFLICT, "whole0 is taken whole by pass0", "another parent"),
    (f"{ADD} whole0.11", CONFLICT, "whole0 is taken whole by pass0", "another parent"),
    (f"{ADD} nic0.011", USAGE, "'011' is not a VLAN ID", "1 to 4094"),
    ("vlan add nic0.11 --protocol 802.1x", USAGE, "'802.1x' is not a VLAN protocol", "802.1ad"),
    ("vlan add nic0.11 --outer-protocol 802.1ad", USAGE, "is for a parent that is a VLAN, and nic0 is none", "NIC.VID"),
    (f"{ADD} nic0 --outer-protocol 802.1ad", USAGE, "is for a parent that is a VLAN, and nic0 is none", "NIC.VID"),
    # the MAC
    (f"{ADD} nic0 --mac 01:00:5e:00:00:01", USAGE, "is a multicast address", "second hex digit"),
    (f"{ADD} nic0 --mac 00:00:00:00:00:00", USAGE, "is nobody's", "--mac"),
    (f"{ADD} nic0 --mac 52:54:00:00:01", USAGE, "is not a MAC address", "six bytes"),
    (f"{ADD} nic0 --mac 52:54:00:aa:00:01", CONFLICT, "is the MAC of nic0 itself", "--mac"),
    (f"{ADD} nic0 --mac 52:54:00:00:00:10", CONFLICT, "is the MAC of tap0 on nic0", "--mac"),
    ("macvtap add x y --parent nic0 --mac 52:54:00:00:00:99", USAGE, "one MAC cannot be for 2 links", "one by one"),
    # the mode
    (f"{ADD} nic0 --mode hairpin", USAGE, "'hairpin' is not a mode", "vepa"),
    (f"{ADD} nic0 --mode passthru", CONFLICT, "it is used by tap0", "mode bridge"),
    (f"{ADD} whole0", CONFLICT, "whole0 is taken whole by pass0", "another parent"),
    (f"{ADD} whole0 --mode passthru", CONFLICT, "whole0 is taken whole by pass0", "another parent"),
    ("macvlan add x --parent whole0", CONFLICT, "whole0 is taken whole by pass0", "another parent"),
    ("macvtap add x y --parent free0 --mode passthru", USAGE, "one link on its parent", "one name"),
    (f"{ADD} free0 --mode passthru --mac 52:54:00:00:00:99", CONFLICT, "ignored by the kernel", "--mac"),
    (f"{ADD} used0 --mode passthru", CONFLICT, "another network namespace", "mode bridge"),
    (f"{ADD} nic0 --mode source", USAGE, "mode source is for a macvlan", "bridge"),
    ("macvlan add x --parent nic0 --mode source", USAGE, "none is given", "--source-mac"),
    ("macvlan add x --parent nic0 --source-mac 52:54:00:00:00:99", USAGE, "is for mode source", "--mode source"),
    ("macvlan add x --parent nic0 --mode source --source-mac x", USAGE, "is not a MAC address", "six bytes"),
    # the MTU
    (f"{ADD} nic0 --mtu 1501", CONFLICT, "the MTU 1501 is more than that of nic0, 1500", "ip link set nic0 mtu 1501"),
    (f"{ADD} nic0 --mtu 67", USAGE, "67 is not an MTU", "68 to 65535"),
    (f"{ADD} nic0 --mtu 99999", USAGE, "99999 is not an MTU", "68 to 65535"),
    (f"{ADD} nic0 --mtu big", USAGE, "'big' is not an MTU", "number"),
    (f"{ADD} nic0 --multicast some", USAGE, "'some' is not", "one of all, filtered"),
    # set
    ("macvtap set tap0", USAGE, "nothing to set", "--mode"),
    ("macvtap set tap9 --up", NOT_FOUND, "there is no macvtap tap9", "tap0"),
    ("macvtap set nic0 --up", CONFLICT, "nic0 is no macvtap, it is a veth", "ip link set nic0"),
    ("macvtap set lan0 --up", CONFLICT, "lan0 is no macvtap, it is a macvlan", "macvlan list"),
    ("macvtap set guest0 --up", CONFLICT, "guest0 is a NIC of the guest web", "guestnet set web"),
    ("macvtap set foreign0 --up", CONFLICT, "was not made by guestnet", "--foreign"),
    ("macvtap set tap0 --mode passthru", CONFLICT, "from mode bridge to passthru", "--mode passthru"),
    ("macvtap set pass0 --mode bridge", CONFLICT, "from mode passthru to bridge", "--mode bridge"),
    ("macvtap set pass0 --mac 52:54:00:00:00:99", CONFLICT, "has the MAC of its parent", "parent's"),
    ("macvtap set tap0 --mode source", USAGE, "mode source is for a macvlan", "bridge"),
    ("macvtap set tap0 --mac 52:54:00:aa:00:01", CONFLICT, "is the MAC of nic0 itself", "--mac"),
    ("macvtap set tap0 --mac 52:54:00:00:00:11", CONFLICT, "is the MAC of guest0", "--mac"),
    ("macvtap set tap0 --mtu 1501", CONFLICT, "the MTU 1501 is more than that of nic0", "ip link set nic0"),
    ("macvtap set tap0 --netns zzz", NOT_FOUND, "there is no network namespace", "ip netns"),
    ("macvtap set tap0 --netns FAR", CONFLICT, "has a link tap0 already", "delete or rename"),
    ("macvlan set lan0 --source-mac 52:54:00:00:00:99", CONFLICT, "lan0 is in mode bridge", "--mode source"),
    ("macvlan set lan0 --mode source", USAGE, "none is given", "--source-mac"),
    # delete and list
    ("macvtap delete tap9", NOT_FOUND, "there is no macvtap tap9", "tap0"),
    ("macvtap delete guest0", CONFLICT, "guest0 is a NIC of the guest web", "guestnet detach web 52:54:00:00:00:11"),
    ("macvtap delete guest0 --foreign", CONFLICT, "guest0 is a NIC of the guest web", "guestnet detach web"),
    ("macvtap delete foreign0", CONFLICT, "foreign0 was not made by guestnet", "--foreign"),
    ("macvtap delete lan0 --foreign", CONFLICT, "lan0 is no macvtap, it is a macvlan", "macvlan list"),
    ("vlan delete tap0", CONFLICT, "tap0 is no vlan, it is a macvtap", "macvtap list"),
    ("vlan delete nic0.11", NOT_FOUND, "there is no vlan nic0.11", "vlan list"),
    ("macvtap delete nic0 --foreign", CONFLICT, "nic0 is no macvtap", "ip link set nic0"),
    ("macvtap list tap9", NOT_FOUND, "there is no macvtap tap9", "tap0"),
    ("macvtap list --netns zzz", NOT_FOUND, "there is no network namespace", "ip netns"),
    ("macvtap delete", USAGE, "NAME", "--help"),
    ("macvtap frobnicate", USAGE, "frobnicate", "--help"),
]


@pytest.fixture
def crowd(namespace: Callable[[], Any], parent: Any) -> tuple[Any, Any]:
    """A namespace with a link for every refusal, and a second one that has some of its links."""
    far = namespace()
    for line in (
        "link property add dev nic0 altname thecard",
        "link add port0 type veth peer name port1",
        "link add whole0 type veth peer name whole1",
        "link add free0 type veth peer name free1",
        "link add used0 type veth peer name used1",
        "link add br0 type bridge",
        "link set port0 master br0",
        f"link add tap0 link nic0 address 52:54:00:00:00:10 group {GROUP} type macvtap mode bridge",
        f"link add guest0 link nic0 address 52:54:00:00:00:11 group {GROUP} type macvtap mode bridge",
        f"link add lan0 link nic0 group {GROUP} type macvlan mode bridge",
        f"link add pass0 link whole0 group {GROUP} type macvtap mode passthru",
        "link add foreign0 link nic0 type macvtap mode bridge",
        "link set tap0 alias guestnet:1:host",
        "link set lan0 alias guestnet:1:host",
        "link set pass0 alias guestnet:1:host",
        f"link add mt0 link used0 netns {far.name} type macvtap mode bridge",
    ):
        parent.ip(line)
    parent.ip("link set guest0 alias", guest_alias(UUID, "web"))
    far.ip("link add tap0 type veth peer name tap1")
    return parent, far


def state(*networks: Any) -> list[Any]:
    """All that ip shows of the links."""
    return [network.shown() for network in networks]


@pytest.mark.parametrize(("line", "code", "message", "hint"), REFUSED, ids=lambda value: str(value)[:70])
def test_what_cannot_be_done_is_refused_before_anything_changes(
    run_guestnet: Callable[..., Any], crowd: tuple[Any, Any], line: str, code: int, message: str, hint: str
) -> None:
    here, far = crowd
    before = state(here, far)
    answer = run_guestnet(*line.replace("FAR", far.name).split(), "--json", netns=here.name)
    assert state(here, far) == before
    assert answer.code == code, answer
    error = answer.json["error"]
    assert (error["code"], message in error["message"], hint in error["hint"]) == (code, True, True), error


def test_a_guest_of_another_host_name_is_named_with_its_uuid_where_the_alias_has_no_name(
    run_guestnet: Callable[..., Any], crowd: tuple[Any, Any]
) -> None:
    here, _ = crowd
    here.ip(f"link set guest0 alias guestnet:1:{UUID}")
    answer = run_guestnet("macvtap", "delete", "guest0", netns=here.name)
    assert (answer.code, UUID in answer.err) == (5, True)
