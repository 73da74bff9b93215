"""The `ip` commands people pass on for macvtaps and macvlans, line by line, beside guestnet's: the same links come out.

Two hosts do the same work, one with ip(8) and one with guestnet. A word in {} stands for a namespace of the side.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import Answer, Namespace

RunGuestnet = Callable[..., Answer]
MAC = "1a:46:0b:ca:bc:7b"


@dataclass(frozen=True)
class Line:
    """What is typed on the one side and on the other; ``inside`` names the namespace, where it is not the host."""

    ip: str
    guestnet: str
    inside: str = "host"


def macvtap(name: str, nic: str, netns: str) -> list[Line]:
    """The lines that make a macvtap in mode bridge and bring it up in a namespace of its own."""
    return [
        Line(
            f"link add link {nic} name {name} type macvtap mode bridge",
            f"macvtap add {name} --parent {nic} --mode bridge --multicast filtered --down",
        ),
        Line(f"link set {name} netns {{{netns}}}", f"macvtap set {name} --netns {{{netns}}}"),
        Line(f"link set {name} up", f"macvtap set {name} --up", netns),
    ]


ON_VLAN = [
    Line("link add link ens3 name ens3.11 type vlan id 11", "vlan add ens3.11 --down"),
    Line(
        "link add link ens3.11 name macvtap0 type macvtap",
        "macvtap add macvtap0 --parent ens3.11 --mode vepa --multicast filtered --down",
    ),
    Line("link set macvtap0 netns {net1}", "macvtap set macvtap0 --netns {net1}"),
    Line("link add link ens3 name ens3.12 type vlan id 12", "vlan add ens3.12 --down"),
    Line(
        "link add macvlan0 link ens3.12 type macvlan mode bridge",
        "macvlan add macvlan0 --parent ens3.12 --mode bridge --down",
    ),
    Line("link set macvlan0 netns {net1}", "macvlan set macvlan0 --netns {net1}"),
]
TOPOLOGIES = {
    "make, show, change, delete": [
        Line(
            "link add link eth0 name macvtap0 type macvtap mode bridge",
            "macvtap add macvtap0 --parent eth0 --multicast filtered --down",
        ),
        Line(f"link set macvtap0 address {MAC} up", f"macvtap set macvtap0 --mac {MAC} --up"),
        Line("link delete macvtap0", "macvtap delete macvtap0"),
    ],
    "0.1, two namespaces": [*macvtap("macvtap0", "enp0s3", "tap0"), *macvtap("macvtap1", "enp0s3", "tap1")],
    "0.2, one in a namespace and one on the host": [
        *macvtap("macvtap0", "enp0s3", "tap0"),
        Line(
            "link add link enp0s3 name macvtap1 type macvtap mode bridge",
            "macvtap add macvtap1 --parent enp0s3 --multicast filtered --down",
        ),
        Line("link set macvtap1 up", "macvtap set macvtap1 --up"),
    ],
    "0.3 to 0.5, with a MAC of its own": [
        *macvtap("macvtap0", "eth0", "tap0")[:2],
        Line(f"link set macvtap0 address {MAC} up", f"macvtap set macvtap0 --mac {MAC} --up", "tap0"),
        Line(
            "link add link eth0 name macvtap1 type macvtap mode bridge",
            "macvtap add macvtap1 --parent eth0 --multicast filtered --down",
        ),
        Line("link set macvtap1 up", "macvtap set macvtap1 --up"),
    ],
}


@dataclass
class Side:
    """One of the two hosts: its namespaces by the word that stands for them."""

    places: dict[str, Namespace] = field(default_factory=dict)

    def words(self, text: str) -> list[str]:
        return text.format(**{word: place.name for word, place in self.places.items()}).split()

    def links(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What `ip -d -j link` says of each link that both sides have to agree on, by place and name."""
        found = {}
        for word, place in self.places.items():
            for link in place.shown():
                info = link.get("linkinfo", {})
                found[word, link["ifname"]] = {
                    "mac": link.get("address"), "flags": sorted(link["flags"]), "mtu": link["mtu"],
                    "kind": info.get("info_kind"), "lower": link.get("link"), "data": info.get("info_data"),
                }  # fmt: skip
        return found


def run_both(lines: list[Line], nic: str, namespace: Callable[[], Namespace], run_guestnet: RunGuestnet) -> None:
    by_ip, by_guestnet = Side(), Side()
    for side in (by_ip, by_guestnet):
        for word in ("host", "net1", "tap0", "tap1"):
            side.places[word] = namespace()
        side.places["host"].ip(f"link add {nic} address 52:54:00:12:34:56 type veth peer name far")
        for name in (nic, "far"):
            side.places["host"].ip(f"link set {name} addrgenmode none up")
    for line in lines:
        before = set(by_ip.links())
        by_ip.places[line.inside].ip(*by_ip.words(line.ip))
        after = by_ip.links()
        new = next(iter(set(after) - before), None)
        words = by_guestnet.words(line.guestnet)
        if " add " in line.ip and new is not None and after[new]["kind"] != "vlan":
            words += ["--mac", after[new]["mac"]]  # the kernel draws one
        answer = run_guestnet(*words, netns=by_guestnet.places[line.inside].name)
        assert answer.code == 0, answer
        far = ("host", "far")
        ours = {key: value for key, value in by_guestnet.links().items() if key != far}
        assert ours == {key: value for key, value in after.items() if key != far}, line


@pytest.mark.kernel("8021q")
def test_each_line_on_vlans_and_its_twin_give_the_same_link(
    namespace: Callable[[], Namespace], run_guestnet: RunGuestnet
) -> None:
    run_both(ON_VLAN, "ens3", namespace, run_guestnet)


@pytest.mark.parametrize("section", TOPOLOGIES)
def test_each_line_on_topologies_and_its_twin_give_the_same_link(
    section: str, namespace: Callable[[], Namespace], run_guestnet: RunGuestnet
) -> None:
    nic = "enp0s3" if section.startswith(("0.1", "0.2")) else "eth0"
    run_both(TOPOLOGIES[section], nic, namespace, run_guestnet)
