"""The parts of topologies that decide: addresses and routes as words, ways on paper, plans from whatever is there."""

import json
from contextlib import suppress
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from guestnet import inet
from guestnet.errors import ConflictError, NotFoundError, UsageError
from guestnet.inet import Assigned, Entry, Route
from guestnet.model import GROUP, Kind, Link, Mac, Mode
from guestnet.plan import topology as plan
from guestnet.plan.host import Host
from guestnet.plan.layout import Topology, marked
from guestnet.plan.reach import Reach
from guestnet.plan.steps import AddLink, DeleteLink, SetMode
from guestnet.topology import document, source
from tests.unit.conftest import MACHINE_ID

REPO = Path(__file__).resolve().parents[2]
SHIPPED = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.5-guest", "vlan-macvlan", "vlan-macvtap")


def topology(text: str) -> Topology:
    return document.parse(text.encode(), "net.yaml")


# Words


NO_ADDRESSES = (
    *("", "x", "192.0.2.1", "192.0.2.1/33", "192.0.2.0/24", "192.0.2.255/24", "::/0", "ff02::1/64", "::1/128"),
    *("127.0.0.1/8", "fe80::1%lo/64", "2001:db8::/64"),
)


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_no_link_can_have_is_no_address(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        inet.address(text)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["192.0.2.1/24", "192.0.2.0/31", "192.0.2.9/32", "2001:db8::1/64", "2001:db8::/128"])
def test_an_address_is_read_as_it_is_written(text: str) -> None:
    assert str(inet.address(text)) == text


@pytest.mark.parametrize(
    ("text", "routes"),
    [
        ("default via 192.0.2.1", ["default via 192.0.2.1"]),
        ("default via 2001:db8::1 dev eth0", ["default via 2001:db8::1"]),
        ("default via 192.0.2.1 onlink", ["default via 192.0.2.1 onlink"]),
        ("default dev", ["default dev", "default dev"]),
        ("192.0.2.65", ["192.0.2.65/32 dev"]),
        ("2001:db8::/64 dev eth0", ["2001:db8::/64 dev"]),
    ],
)
def test_a_route_is_read_in_the_words_of_ip_route(text: str, routes: list[str]) -> None:
    assert [str(one) for one in Route.parse(text, "eth0", frozenset({4, 6}))] == routes


@pytest.mark.parametrize("text", ["", "default via", "default via x", "default foo", "192.0.2.1/24 dev eth0",
                                  "default dev eth1", "default onlink", "192.0.2.0/24 via 2001:db8::1",
                                  "default dev eth0 dev eth0", "default via 192.0.2.1 via 192.0.2.2"])  # fmt: skip
def test_what_is_no_route_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Route.parse(text, "eth0", frozenset({4}))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/nic0.11/arp_ignore", "net/ipv4/conf/nic0.11/arp_ignore"),
        ("net.ipv4.conf.nic0/11.arp_ignore", "net/ipv4/conf/nic0.11/arp_ignore"),
        ("net.ipv4.conf.{parent}.arp_ignore", "net/ipv4/conf/{parent}/arp_ignore"),
    ],
)
def test_a_sysctl_is_named_with_dots_or_slashes(text: str, name: str) -> None:
    assert inet.sysctl(text) == name


@pytest.mark.parametrize("text", ["", "net", "kernel.panic", "net.ipv4..x", "net/ipv4/../../x", "net.ipv4.a b"])
def test_what_is_no_sysctl_of_a_network_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        inet.sysctl(text)


# Files


def test_eight_topologies_came_with_guestnet() -> None:
    assert document.shipped() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_topology_is_called_like_its_file_and_all_in_it_reach_each_other(name: str) -> None:
    found = document.find(name)
    assert found.name == name
    assert found.about
    pairs = list(Reach(topology=found).pairs())
    assert {pair.address.version for pair in pairs} == {4, 6}
    assert [pair.problem for pair in pairs if pair.problem or pair.hairpin] == []


@pytest.mark.parametrize(
    ("name", "source_", "target", "there", "back"),
    [
        ("0.3", "n1/tap0", "192.0.2.65", ["n1/macvtap1", "n2/macvtap0"], 63),
        ("0.4", "n1/tap0", "192.0.2.65", ["n2/macvtap0"], 64),
        ("0.5", "n1/tap0", "192.0.2.66", ["n1/macvtap1", "n2/macvtap1", "n2/tap0"], 62),
        ("0.5-guest", "n2/n2g1", "2001:db8:0:80::129", ["n2/macvtap1", "n1/macvtap1", "n1/n1g1"], 62),
    ],
)
def test_the_way_on_paper_is_the_one_the_notes_mean(
    name: str, source_: str, target: str, there: list[str], back: int
) -> None:
    pairs = Reach(topology=document.find(name)).pairs()
    pair = next(one for one in pairs if one.source.title == source_ and str(one.address) == target)
    assert [hop.title for hop in pair.there.hops] == there
    assert pair.back.ttl == back


def test_a_ping_comes_from_the_address_in_its_targets_subnet() -> None:
    endpoints = "a: {kind: netns, parent: lan, addresses: [192.0.2.1/28, 198.51.100.1/28]}"
    endpoints += ", b: {kind: netns, parent: lan, addresses: [198.51.100.2/28]}"
    text = f"name: net\nnodes: {{n1: {{parents: {{lan: nic0}}, endpoints: {{{endpoints}}}}}}}"
    found = topology(text)
    (pair,) = (one for one in Reach(topology=found).pairs() if str(one.address) == "198.51.100.2")
    assert (pair.problem, str(pair.own)) == ("", "198.51.100.1")


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads((REPO / document.SCHEMA).read_text()) == json.loads(json.dumps(document.schema()))


def test_a_host_is_the_node_of_its_name_or_the_only_one() -> None:
    one, two = document.find("0.1"), document.find("0.3")
    assert one.node_here("anything.example.org").name == "n1"
    assert two.node_here("n2.example.org").name == "n2"
    with pytest.raises(NotFoundError):
        two.node_here("anything")


@given(some.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with suppress(UsageError):
        document.parse(data, "x")


_LEAVES = some.one_of(some.none(), some.booleans(), some.integers(), some.text(max_size=8), some.just("192.0.2.1/24"))
_KEYS = some.sampled_from(["name", "nodes", "n1", "parents", "endpoints", "a", "kind", "parent", "addresses", "routes"])
_VALUES = some.recursive(
    _LEAVES, lambda inside: some.lists(inside, max_size=3) | some.dictionaries(_KEYS, inside, max_size=4), max_leaves=20
)


@given(_VALUES)
def test_no_values_do_more_than_be_refused(value: object) -> None:
    with suppress(UsageError):
        document.parse(json.dumps(value).encode(), "x")


def test_a_file_that_is_too_large_is_refused_before_it_is_read_through() -> None:
    with pytest.raises(UsageError, match="larger"):
        source.load(b"#" * (source.BYTES_MAX + 1), "x")


def test_too_many_endpoints_are_refused() -> None:
    many = "".join(f"      e{number}: {{kind: netns, parent: lan}}\n" for number in range(document.ENDPOINTS_MAX + 1))
    with pytest.raises(UsageError, match="endpoints"):
        topology(f"name: x\nnodes:\n  n1:\n    parents: {{lan: nic0}}\n    endpoints:\n{many}")


# Plans

TEXT = """
name: net
nodes:
  n1:
    parents: {lan: nic0}
    endpoints:
      a: {kind: netns, parent: lan, mac: 52:54:00:00:00:01, addresses: [192.0.2.1/24], routes: [default via 192.0.2.2]}
      b:
        kind: host
        parent: lan
        mac: 52:54:00:00:00:02
        addresses: [192.0.2.2/24]
        sysctls: {"net.ipv4.conf.{parent}.arp_ignore": 1, "net.ipv4.conf.{link}.arp_ignore": 1}
"""
NIC = Link(index=2, name="nic0", mac="52:54:00:aa:00:01", mtu=1500, up=True, carrier=True)
LO = Link(index=1, name="lo", loopback=True, up=True, group=GROUP, alias="guestnet:1:topology:net", ethernet=False)
A = Link(
    index=9, name="a", kind="macvtap", mac="52:54:00:00:00:01", mtu=1500, up=True, mode=Mode.BRIDGE, parent=2,
    parent_netnsid=0, group=GROUP, alias="guestnet:1:topology:net:a",
)  # fmt: skip
B = Link(
    index=8, name="b", kind="macvtap", mac="52:54:00:00:00:02", mtu=1500, up=True, mode=Mode.BRIDGE, parent=2,
    group=GROUP, alias="guestnet:1:topology:net:b",
)  # fmt: skip
ROOM = plan.Contents(
    links=(LO, A), mark="guestnet:1:topology:net", host=0,
    addresses=(Assigned(index=9, address=ip_interface("192.0.2.1/24"), by_hand=True),),
    routes=(
        Entry(to=ip_network("0.0.0.0/0"), via=inet.ip("192.0.2.2"), index=9, onlink=False, ours=True),
        Entry(to=ip_network("192.0.2.0/24"), via=None, index=9, onlink=False, ours=False),
    ),
)  # fmt: skip
HERE = plan.Contents(links=(NIC, B), addresses=(Assigned(index=8, address=ip_interface("192.0.2.2/24"), by_hand=True),))
SYSCTLS = {
    (plan.HERE, "net/ipv4/conf/nic0/arp_ignore"): "1",
    (plan.HERE, "net/ipv4/conf/b/arp_ignore"): "1",
}


def made(
    here: plan.Contents = HERE,
    rooms: dict[str, plan.Contents] | None = None,
    sysctls: dict[tuple[str, str], str | None] | None = None,
    text: str = TEXT,
) -> plan.Plan:
    found = topology(text)
    host = Host(links=here.links)
    rooms = {"a": ROOM} if rooms is None else rooms
    values: dict[tuple[str, str], str | None] = {**SYSCTLS, **(sysctls or {})}
    seen = plan.Seen(host=host, rooms={plan.HERE: here, **rooms}, sysctls=values)
    node = found.nodes[0]
    links = plan.wanted(found, node, host, MACHINE_ID, {})
    return plan.up(found, links, plan.guests(found, node, MACHINE_ID, {}), seen)


def words(made: plan.Plan) -> list[str]:
    return [str(step) for step in made.steps]


def test_what_is_so_needs_no_step() -> None:
    assert made() == plan.Plan()


def test_an_empty_host_gets_everything_in_order() -> None:
    got = made(plan.Contents(links=(NIC,)), {}, {(plan.HERE, "net/ipv4/conf/nic0/arp_ignore"): "0"})
    assert words(got) == [
        "make network namespace a",
        "make macvtap a on nic0, mode bridge, MAC 52:54:00:00:00:01 in network namespace a",
        "check the device node of a in network namespace a",
        "mark a as guestnet:1:topology:net:a in network namespace a",
        "make macvtap b on nic0, mode bridge, MAC 52:54:00:00:00:02",
        "check the device node of b",
        "mark b as guestnet:1:topology:net:b",
        "set net.ipv4.conf.nic0.arp_ignore to 1 (it is 0)",
        "bring a up in network namespace a",
        "bring b up",
        "give a the address 192.0.2.1/24 in network namespace a",
        "give b the address 192.0.2.2/24",
        "add the route default via 192.0.2.2 dev a in network namespace a",
    ]
    assert got.notes == (
        "net.ipv4.conf.nic0.arp_ignore of this host becomes 1 (it is 0) until the topology is taken down",
    )


def changed(contents: plan.Contents, link: Link, **fields: object) -> plan.Contents:
    from dataclasses import replace

    links = tuple(replace(one, **fields) if one is link else one for one in contents.links)  # type: ignore[arg-type]
    return replace(contents, links=links)


@pytest.mark.parametrize(
    ("fields", "steps", "amiss"),
    [
        ({"up": False}, ["bring b up"], "down"),
        ({"mode": Mode.VEPA}, ["change b to mode bridge"], "in mode vepa"),
        ({"mac": "52:54:00:00:00:09"}, ["set the MAC of b to 52:54:00:00:00:02"], "MAC 52:54:00:00:00:09"),
        ({"alias": "", "up": False}, ["check the device node of b", "mark b as guestnet:1:topology:net:b",
                                      "bring b up"], "half made"),
        ({"alias": "guestnet:1:topology:net:old"}, ["mark b as guestnet:1:topology:net:b"], "marked otherwise"),
    ],
)  # fmt: skip
def test_what_differs_is_changed_in_place(fields: dict[str, object], steps: list[str], amiss: str) -> None:
    got = made(changed(HERE, B, **fields))
    assert words(got) == steps
    assert got.amiss["b"][0] == amiss


@pytest.mark.parametrize("fields", [{"kind": "macvlan"}, {"parent": 3}, {"mode": Mode.PASSTHRU}])
def test_what_cannot_be_changed_is_made_again(fields: dict[str, object]) -> None:
    got = made(changed(HERE, B, **fields))
    assert words(got)[:2] == ["delete b", "make macvtap b on nic0, mode bridge, MAC 52:54:00:00:00:02"]


@pytest.mark.parametrize("fields", [{"group": 0}, {"alias": "guestnet:1:host"}, {"alias": "guestnet:1:topology:x:b"},
                                    {"alias": "", "mac": "52:54:00:00:00:09"}])  # fmt: skip
def test_a_link_of_others_is_never_touched(fields: dict[str, object]) -> None:
    with pytest.raises(ConflictError) as caught:
        made(changed(HERE, B, **fields))
    assert caught.value.hint


@pytest.mark.parametrize("mark", ["", "guestnet:1:topology:other"])
def test_a_namespace_of_others_is_never_adopted(mark: str) -> None:
    from dataclasses import replace

    with pytest.raises(ConflictError, match="network namespace a already"):
        made(rooms={"a": replace(ROOM, mark=mark)})


def test_what_the_file_no_longer_says_is_taken_away_first() -> None:
    old = Link(index=7, name="old", kind="macvtap", parent=2, mode=Mode.BRIDGE, group=GROUP,
               alias="guestnet:1:topology:net:old")  # fmt: skip
    stray = plan.Contents(links=(LO, A), mark="guestnet:1:topology:net", host=0)
    foreign = plan.Contents(links=(LO,), mark="guestnet:1:topology:other", host=0)
    here = plan.Contents(links=(*HERE.links, old), addresses=HERE.addresses)
    got = made(here, {"a": ROOM, "gone": stray, "other": foreign})
    assert words(got) == ["delete old", "delete a in network namespace gone", "delete network namespace gone"]


def test_addresses_and_routes_that_the_file_does_not_have_go() -> None:
    from dataclasses import replace

    more = Assigned(index=9, address=ip_interface("192.0.2.77/24"), by_hand=True)
    own = Assigned(index=9, address=ip_interface("fe80::1/64"), by_hand=False)
    route = Entry(to=ip_network("198.51.100.0/24"), via=None, index=9, onlink=False, ours=True)
    other = Entry(to=ip_network("203.0.113.0/24"), via=None, index=9, onlink=False, ours=False)
    room = replace(ROOM, addresses=(*ROOM.addresses, more, own), routes=(*ROOM.routes, route, other))
    assert words(made(rooms={"a": room})) == [
        "take off a the address 192.0.2.77/24 in network namespace a",
        "take away the route 198.51.100.0/24 dev a in network namespace a",
    ]


def test_an_address_that_another_has_is_given_again() -> None:
    from dataclasses import replace

    twice = Assigned(index=9, address=ip_interface("192.0.2.1/24"), by_hand=True, duplicate=True)
    got = made(rooms={"a": replace(ROOM, addresses=(twice,))})
    assert words(got) == [
        "take off a the address 192.0.2.1/24 in network namespace a",
        "give a the address 192.0.2.1/24 in network namespace a",
    ]


@pytest.mark.parametrize("address", ["192.0.2.2/32", "192.0.2.77/25"])
def test_an_address_or_subnet_of_the_hosts_other_links_is_a_conflict(address: str) -> None:
    here = plan.Contents(links=HERE.links, addresses=(Assigned(index=2, address=ip_interface(address), by_hand=True),))
    with pytest.raises(ConflictError, match="nic0"):
        made(here)


def test_one_address_alone_beside_a_subnet_of_the_host_is_fine() -> None:
    here = plan.Contents(
        links=HERE.links, addresses=(Assigned(index=2, address=ip_interface("192.0.2.77/32"), by_hand=True),)
    )
    assert words(made(here)) == ["give b the address 192.0.2.2/24"]


def test_a_sysctl_that_the_kernel_has_not_is_not_found() -> None:
    with pytest.raises(NotFoundError, match=r"net\.ipv4\.conf\.nic0\.arp_ignore"):
        made(sysctls={(plan.HERE, "net/ipv4/conf/nic0/arp_ignore"): None})


def test_two_endpoints_that_want_a_sysctl_differently_are_a_contradiction() -> None:
    more = '      c: {kind: host, parent: lan, sysctls: {"net.ipv4.conf.{parent}.arp_ignore": 2}}\n'
    with pytest.raises(UsageError, match="want"):
        made(text=TEXT + more)


def test_taking_down_takes_what_is_marked_and_nothing_else() -> None:
    other = Link(index=7, name="x", kind="macvtap", parent=2, group=GROUP, alias="guestnet:1:topology:netx:a")
    rooms = {
        plan.HERE: plan.Contents(links=(*HERE.links, other)), "a": ROOM,
        "b": plan.Contents(links=(LO,), mark="guestnet:1:topology:netx"), "c": plan.Contents(links=(A,)),
    }  # fmt: skip
    steps = plan.down("net", plan.Seen(host=Host(links=rooms[plan.HERE].links), rooms=rooms))
    assert [str(step) for step in steps] == [
        "delete a in network namespace a", "delete network namespace a", "delete b"
    ]  # fmt: skip


def test_a_mark_names_topology_and_endpoint() -> None:
    assert marked("guestnet:1:topology:0.5:tap0") == ("0.5", "tap0")
    assert marked("guestnet:1:topology:0.5") == ("0.5", "")
    assert marked("guestnet:1:host") == ("", "")


def test_an_endpoint_without_mac_has_the_same_one_each_time_and_no_other_has_it() -> None:
    found = document.find("0.5")
    macs = [one.mac_of(found.name, MACHINE_ID) for one in found.endpoints]
    assert len(set(macs)) == len(macs)
    assert macs == [one.mac_of(found.name, MACHINE_ID) for one in document.find("0.5").endpoints]
    assert all(isinstance(mac, Mac) for mac in macs)


def test_a_guests_nic_is_asked_for_with_a_mac_by_which_it_is_found_again() -> None:
    found = document.find("0.5-guest")
    [nic] = plan.guests(found, found.nodes[0], MACHINE_ID, {"lan": "ens3"})
    assert (nic.guest, nic.request.parent) == ("n1g1", "ens3")
    assert nic.request.mac == found.nodes[0].endpoints[0].mac_of("0.5-guest", MACHINE_ID)


def test_a_parent_that_stands_in_carries_the_vlans_on_it() -> None:
    found = document.find("vlan-macvtap")
    node = found.nodes[0]
    assert node.parent_of("vlan11") == "nic0.11"
    assert node.parent_of("vlan11", {"lan": "ens3"}) == "ens3.11"
    assert node.parent_of("vlan11", {"vlan11": "trunk"}) == "trunk"
    with pytest.raises(NotFoundError, match="no parent lam"):
        plan.wanted(found, node, Host(links=(NIC,)), MACHINE_ID, {"lam": "ens3"})


def test_the_steps_of_a_vlan_come_once_for_all_on_it() -> None:
    text = """
name: net
nodes:
  n1:
    parents: {lan: nic0, v: {on: lan, vlan: 11}}
    endpoints:
      a: {kind: netns, parent: v, type: macvlan}
      b: {kind: netns, parent: v, type: macvlan}
"""
    got = made(plan.Contents(links=(NIC,)), {}, text=text)
    assert sum(1 for one in words(got) if one.startswith("make VLAN 11")) == 1
    assert not any(isinstance(step, plan.Within) and isinstance(step.step, DeleteLink | SetMode) for step in got.steps)
    new = [step.step.new for step in got.steps if isinstance(step, plan.Within) and isinstance(step.step, AddLink)]
    assert [one.kind for one in new] == [Kind.VLAN, Kind.MACVLAN, Kind.MACVLAN]
