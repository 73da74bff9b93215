"""Who reaches whom in which mode: the table of docs/modes.md, the kernel, and what topologies foretell."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from guestnet.kernel import echo
from guestnet.model import Mode
from guestnet.plan.layout import Topology, Where
from guestnet.plan.reach import Reach
from guestnet.topology import document
from tests.conftest import REPO, Namespace

SHARED = (Mode.BRIDGE, Mode.VEPA, Mode.PRIVATE)
HOSTS = {"n1": "10.77.0.1", "n2": "10.77.0.2", "n3": "10.77.0.3"}
GUEST = "{name}: {{kind: netns, parent: lan, mode: {mode}, addresses: [10.77.1.{n}/24]}}"
SHIM = "{name}: {{kind: host, parent: lan, mode: {mode}, type: macvlan, addresses: [10.77.1.{n}/24]}}"
ENDPOINTS = [
    *(("n1", f"{mode}{number}", mode, GUEST) for mode in SHARED for number in (1, 2)),
    ("n1", "shim", Mode.BRIDGE, SHIM), ("n2", "far", Mode.BRIDGE, GUEST), ("n3", "passthru1", Mode.PASSTHRU, GUEST),
]  # fmt: skip

SAYS = {
    # whether the first of the two gets an answer from the other, and the other from the first: through a plain switch,
    # and through one that sends frames back
    "yes": ((True, True), (True, True)), "no": ((False, False), (False, False)),
    "hairpin": ((False, False), (True, True)), "hairpin, if the host begins": ((False, False), (False, True)),
}  # fmt: skip


def cells() -> Iterator[tuple[str, Mode, tuple[str, str]]]:
    """Each cell of the table by its row and column, and the two it is about."""
    for mode in (*SHARED, Mode.PASSTHRU):
        guest, host = f"{mode}1", "n3" if mode is Mode.PASSTHRU else "n1"
        yield "another node, by its address", mode, (guest, "n2")
        yield "a guest on another node", mode, (guest, "far")
        for other in SHARED if mode in SHARED else ():
            yield f"a guest on the same parent, in mode {other}", mode, (guest, f"{other}2")
        if mode in SHARED:
            yield "the host, by a link of its own", mode, (guest, "shim")
        yield "the host, by its address on the parent", mode, (guest, host)
        yield "another node and the host, by its address on the parent", mode, ("n2", host)


def table() -> dict[tuple[str, Mode], str]:
    """The cells of the page's table; those of two that cannot be on one parent are left out."""
    _, _, text = (REPO / "docs" / "modes.md").read_text(encoding="utf-8").partition("\n| a guest and … |")
    head, _, *lines = text.split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    modes = [Mode(word.strip("`")) for word in rows[0]]
    return {(row[0], mode): cell for row in rows[1:] for mode, cell in zip(modes, row[1:], strict=True) if cell != "-"}


def says() -> dict[tuple[str, str], str]:
    """What the page says of each two."""
    known = {(row, mode): two for row, mode, two in cells()}
    told = table()
    assert set(told) == set(known)
    return {known[cell]: word for cell, word in told.items()}


def topology() -> Topology:
    """The hosts and what is on them, as a file says it."""
    lines = ["name: reach", "nodes:"]
    for host in HOSTS:
        lines += [f"  {host}:", "    parents: {lan: nic0}", "    endpoints:"]
        lines += [
            "      " + what.format(name=name, mode=mode, n=n)
            for n, (where, name, mode, what) in enumerate(ENDPOINTS, 11) if where == host
        ]  # fmt: skip
    return document.parse("\n".join(lines).encode(), "reach.yaml")


@dataclass(frozen=True)
class Site:
    """The same for real: the switch, who is in which namespace, and the addresses of each."""

    switch: Namespace
    places: dict[str, Namespace] = field(default_factory=dict)
    addresses: dict[str, list[str]] = field(default_factory=dict)

    def set_hairpin(self, on: bool) -> None:
        """Let the switch send frames back out of the port they came from, or not."""
        for port in HOSTS:
            word = "on" if on else "off"
            line = ["ip", "netns", "exec", self.switch.name, "bridge", "link", "set", "dev", port, "hairpin", word]
            subprocess.run(line, check=True, timeout=20)

    def forget(self) -> None:
        """Nobody knows anybody's MAC any more."""
        for place in self.places.values():
            place.ip("neigh flush all")

    def ping(self, asked: set[tuple[str, str]], *, timeout: float) -> set[tuple[str, str]]:
        """Those of the pings, each by one and of another, that are answered."""
        probes: dict[tuple[str, str], echo.Probe] = {}
        for one, other in asked:
            own, its = next(
                (ip_address(own), ip_address(its)) for own in self.addresses[one] for its in self.addresses[other]
                if own.rpartition(".")[0] == its.rpartition(".")[0]
            )  # fmt: skip
            probes[one, other] = echo.Probe(source=own, target=its, namespace=self.places[one].fd)
        return {two for two, answer in echo.ping(probes, timeout=timeout).items() if answer is not None}


@pytest.fixture
def site(namespace: Callable[[], Namespace]) -> Site:
    made = Site(namespace())
    made.switch.ip("link add br0 up type bridge mcast_snooping 0")
    for node in topology().nodes:
        here = made.places[node.name] = namespace()
        made.addresses[node.name] = [HOSTS[node.name]]
        here.ip("link add nic0 type veth peer name", node.name, "netns", made.switch.name)
        made.switch.ip("link set", node.name, "master br0 up")
        here.ip("addr add", f"{HOSTS[node.name]}/24", "dev nic0")
        here.ip("link set nic0 up")
        for one in node.endpoints:
            place = made.places[one.name] = here if one.kind is Where.HOST else namespace()
            made.addresses[one.name] = [str(address.ip) for address in one.addresses]
            if place is not here:  # in the subnet of the hosts too; the host has its shim in a subnet of its own
                made.addresses[one.name].append(made.addresses[one.name][0].replace("10.77.1.", "10.77.0."))
            here.ip(f"link add link nic0 name {one.name} netns {place.name} type {one.type} mode {one.mode}")
            for address in made.addresses[one.name]:
                place.ip(f"addr add {address}/24 dev {one.name}")
            place.ip(f"link set {one.name} up")
    return made


@pytest.mark.root
@pytest.mark.kernel("bridge", "macvlan", "macvtap", "veth")
@pytest.mark.parametrize("hairpin", [False, True], ids=["a plain switch", "a switch that sends frames back"])
def test_the_table_of_modes_says_what_the_kernel_does(site: Site, hairpin: bool) -> None:
    site.set_hairpin(hairpin)
    for back in (False, True):
        asked = {(two[::-1] if back else two): SAYS[word][hairpin][back] for two, word in says().items()}
        site.forget()
        yes = {two for two, answered in asked.items() if answered}
        assert site.ping(yes, timeout=10) == yes
        assert site.ping(set(asked) - yes, timeout=1) == set()


@pytest.mark.root
@pytest.mark.kernel("bridge", "macvlan", "macvtap", "veth")
def test_mode_private_keeps_out_broadcasts_and_no_frame_that_a_switch_sends_back(site: Site) -> None:
    two = ("private1", "private2")
    site.set_hairpin(True)
    for one, other in (two, two[::-1]):
        mac = site.places[other].shown(f"dev {other}")[0]["address"]
        site.places[one].ip(f"neigh add {site.addresses[other][0]} lladdr {mac} dev {one}")
    assert site.ping({two}, timeout=10) == {two}


def test_topologies_foretell_what_the_table_of_modes_says() -> None:
    foretold = {
        (pair.source.name, pair.target.name): "no" if pair.problem else "hairpin" if pair.hairpin else "yes"
        for pair in Reach(topology=topology()).pairs()
    }
    # the hosts themselves are no endpoints
    told = {two: word for two, word in says().items() if not set(two) & set(HOSTS)}
    assert {two: foretold[two] for two in told} == told
    assert {two: foretold[two[::-1]] for two in told} == told


def test_nobody_else_is_on_the_parent_of_a_guest_in_mode_passthru(parent: Namespace) -> None:
    parent.ip("link add link nic0 name whole type macvtap mode passthru")
    for mode in Mode:
        with pytest.raises(subprocess.CalledProcessError):
            parent.ip(f"link add link nic0 name second type macvtap mode {mode}")
