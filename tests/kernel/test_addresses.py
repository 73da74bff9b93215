"""Addresses, routes, sysctls, namespaces and pings on the real kernel, seen by ip(8) as well."""

import json
import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from guestnet import inet
from guestnet.errors import ConflictError, GuestnetError, NotFoundError
from guestnet.inet import Route
from guestnet.kernel import echo, netns, sysctl
from guestnet.kernel.address import Addresses
from guestnet.kernel.link import Links
from guestnet.kernel.route import Routes
from tests.conftest import Namespace

pytestmark = pytest.mark.root


@pytest.fixture
def pair(namespace: Callable[[], Namespace]) -> tuple[Namespace, Namespace]:
    """Two namespaces with the ends of one cable: ``nic0`` in each, both up."""
    one, other = namespace(), namespace()
    one.ip(f"link add nic0 type veth peer name nic0 netns {other.name}")
    for place in (one, other):
        place.ip("link set nic0 up")
    return one, other


def index(place: Namespace, name: str = "nic0") -> int:
    link = place.links.find(name)
    assert link is not None
    return link.index


def shown(place: Namespace, name: str = "nic0") -> set[str]:
    found = json.loads(place.ip(f"-j address show dev {name}"))[0]["addr_info"]
    return {f"{one['local']}/{one['prefixlen']}" for one in found if one["scope"] == "global"}


ADDRESSES = ("192.0.2.1/24", "192.0.2.9/32", "198.51.100.0/31", "2001:db8::1/64", "2001:db8::9/128")


def test_addresses_are_given_listed_and_taken_as_ip_has_them(pair: tuple[Namespace, Namespace]) -> None:
    place, _ = pair
    with Addresses(place.fd) as door:
        for text in ADDRESSES:
            door.add(index(place), inet.address(text), "nic0")
            door.add(index(place), inet.address(text), "nic0")
        assert shown(place) == set(ADDRESSES)
        mine = [one for one in door.all() if one.index == index(place) and one.by_hand]
        assert {str(one.address) for one in mine} == set(ADDRESSES)
        assert any(not one.by_hand and one.address.ip.is_link_local for one in door.all())
        for text in ADDRESSES:
            door.delete(index(place), inet.address(text), "nic0")
            door.delete(index(place), inet.address(text), "nic0")
        assert shown(place) == set()


def test_an_address_on_a_link_that_is_gone_is_told(pair: tuple[Namespace, Namespace]) -> None:
    with Addresses(pair[0].fd) as door:
        with pytest.raises(NotFoundError, match="nic9"):
            door.add(4711, inet.address("192.0.2.1/24"), "nic9")
        door.delete(4711, inet.address("192.0.2.1/24"), "nic9")


def test_an_address_that_the_other_end_has_is_a_duplicate(pair: tuple[Namespace, Namespace]) -> None:
    one, other = pair
    other.ip("address add 2001:db8::1/64 dev nic0 nodad")
    with Addresses(one.fd) as door:
        door.add(index(one), inet.address("2001:db8::1/64"), "nic0")
        states = set()
        while not (found := next(it for it in door.all() if it.by_hand and it.index == index(one))).duplicate:
            states.add(found.tentative)
        assert states == {True}


ROUTES = (
    *("198.51.100.7", "198.51.100.0/24 via 198.51.100.7", "default via 192.0.2.2"),
    *("203.0.113.0/24 via 10.9.9.9 onlink", "2001:db8:1::7", "2001:db8:1::/64 via 2001:db8:1::7"),
    "default via 2001:db8::2",
)
FOR_ALL_LINKS = ("net/ipv6/conf/all/forwarding", "net/ipv4/ip_forward", "net/ipv6/conf/all/disable_ipv6")


def test_routes_are_added_listed_and_taken_as_ip_has_them(pair: tuple[Namespace, Namespace]) -> None:
    place, _ = pair
    for text in ("192.0.2.1/24", "2001:db8::1/64"):
        place.ip(f"address add {text} dev nic0")
    routes = [one for text in ROUTES for one in Route.parse(text)]
    with Routes(place.fd) as door:
        before = door.all()
        for route in routes:
            door.add(index(place), route, "nic0")
        ours = door.all(ours=True)
        assert {(one.to, one.via, one.onlink, one.index) for one in ours} == {
            (one.to, one.via, one.onlink, index(place)) for one in routes
        }
        found = [*json.loads(place.ip("-j route show proto 71")), *json.loads(place.ip("-j -6 route show proto 71"))]
        assert {(one["dst"], one.get("gateway")) for one in found} == {
            ("198.51.100.7", None), ("198.51.100.0/24", "198.51.100.7"), ("default", "192.0.2.2"),
            ("203.0.113.0/24", "10.9.9.9"), ("2001:db8:1::7", None), ("2001:db8:1::/64", "2001:db8:1::7"),
            ("default", "2001:db8::2"),
        }  # fmt: skip
        for route in reversed(routes):
            door.delete(index(place), route, "nic0")
            door.delete(index(place), route, "nic0")
        assert door.all() == before


def test_a_route_that_is_there_already_or_whose_router_is_nobodys_is_refused(pair: tuple[Namespace, Namespace]) -> None:
    place, _ = pair
    place.ip("address add 192.0.2.1/24 dev nic0")
    place.ip("route add 198.51.100.0/24 dev nic0")
    with Routes(place.fd) as door:
        [route] = Route.parse("198.51.100.0/24 dev")
        with pytest.raises(ConflictError, match=r"198\.51\.100\.0/24"):
            door.add(index(place), route, "nic0")
        [route] = Route.parse("default via 203.0.113.1")
        with pytest.raises(GuestnetError, match=r"203\.0\.113\.1"):
            door.add(index(place), route, "nic0")
        door.delete(index(place), route, "nic0")
        assert len(json.loads(place.ip("-j route show 198.51.100.0/24"))) == 1


def test_a_sysctl_is_that_of_the_namespace_it_is_asked_for_in(pair: tuple[Namespace, Namespace]) -> None:
    one, other = pair
    name = "net/ipv4/conf/nic0/arp_ignore"
    sysctl.write(name, "1", namespace=one.fd)
    assert sysctl.read([name], namespace=one.fd) == {name: "1"}
    assert sysctl.read([name], namespace=other.fd) == {name: "0"}
    assert one.read(f"/proc/sys/{name}") == "1"


def test_a_sysctl_that_is_not_there_or_takes_no_such_value_is_told(pair: tuple[Namespace, Namespace]) -> None:
    place, _ = pair
    assert sysctl.read(["net/ipv4/nothing", "net/ipv4"], namespace=place.fd) == {
        "net/ipv4/nothing": None,
        "net/ipv4": None,
    }
    with pytest.raises(NotFoundError):
        sysctl.write("net/ipv4/nothing", "1", namespace=place.fd)
    with pytest.raises(GuestnetError, match="many"):
        sysctl.write("net/ipv4/conf/nic0/arp_ignore", "many", namespace=place.fd)


@pytest.mark.parametrize(
    "name", ["net/ipv6/conf/all/forwarding", "net/ipv4/ip_forward", "net/ipv6/conf/all/disable_ipv6"]
)
def test_all_that_changes_with_a_sysctl_is_known_before(pair: tuple[Namespace, Namespace], name: str) -> None:
    place, _ = pair
    paths = place.call(
        lambda: [
            os.path.join(where, file).removeprefix("/proc/sys/")
            for version in ("ipv4", "ipv6")
            for where, _, files in os.walk(f"/proc/sys/net/{version}/conf")
            for file in files
        ]
    )
    before = sysctl.read(paths, namespace=place.fd)
    known = {name, "net/ipv4/conf/all/forwarding", *sysctl.siblings(name, namespace=place.fd)}
    sysctl.write(name, "1", namespace=place.fd)
    after = sysctl.read(paths, namespace=place.fd)
    changed = {path for path in paths if before[path] != after[path]}
    assert changed
    assert changed <= known


def test_a_namespace_is_furnished_before_it_has_a_name() -> None:
    seen: list[bool] = []

    def furnish() -> None:
        seen.append(netns.exists("gntest-made"))
        with Links() as inside:
            inside.mark(inside.all()[0], "guestnet:1:topology:x")

    netns.make("gntest-made", furnish)
    try:
        assert seen == [False]
        assert "gntest-made" in netns.names()
        with netns.opened("gntest-made") as fd, Links(fd) as inside:
            assert [(link.name, link.alias) for link in inside.all()] == [("lo", "guestnet:1:topology:x")]
        done = subprocess.run(["ip", "netns", "exec", "gntest-made", "true"], check=False, timeout=20)
        assert done.returncode == 0
        with pytest.raises(ConflictError):
            netns.make("gntest-made", furnish)
    finally:
        netns.remove("gntest-made")
    assert "gntest-made" not in netns.names()
    netns.remove("gntest-made")


def test_a_namespace_whose_furnishing_fails_never_has_a_name() -> None:
    def fail() -> None:
        raise GuestnetError("no")

    with pytest.raises(GuestnetError, match="no"):
        netns.make("gntest-fails", fail)
    assert "gntest-fails" not in netns.names()


def test_the_empty_file_of_a_maker_that_was_killed_is_taken_only_on_demand() -> None:
    path = netns.DIRECTORY / "gntest-left"
    path.touch(mode=0o000)
    try:
        assert not netns.exists("gntest-left")
        with pytest.raises(ConflictError):
            netns.make("gntest-left", lambda: None)
        netns.make("gntest-left", lambda: None, over_leftover=True)
        assert netns.exists("gntest-left")
    finally:
        netns.remove("gntest-left")


def test_many_pings_are_answered_at_once_with_the_ttl_of_the_answer(pair: tuple[Namespace, Namespace]) -> None:
    one, other = pair
    for place, number in ((one, 1), (other, 2)):
        place.ip(f"address add 192.0.2.{number}/24 dev nic0")
        place.ip(f"address add 2001:db8::{number}/64 dev nic0 nodad")
    sysctl.write("net/ipv4/ip_default_ttl", "61", namespace=other.fd)
    answers = echo.ping(
        {
            text: echo.Probe(source=ip_address(source), target=ip_address(text), namespace=one.fd)
            for text, source in (("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1"),
                                 ("192.0.2.77", "192.0.2.1"), ("203.0.113.1", "192.0.2.1"))
        },
        timeout=1.0,
    )  # fmt: skip
    four, six = answers["192.0.2.2"], answers["2001:db8::2"]
    assert four is not None
    assert six is not None
    assert (four.ttl, six.ttl) == (61, 64)
    assert 0 < four.seconds < 1
    assert [text for text, answer in answers.items() if answer is None] == ["192.0.2.77", "203.0.113.1"]


def test_a_ping_from_an_address_that_is_not_there_leaves_from_no_other(pair: tuple[Namespace, Namespace]) -> None:
    one, other = pair
    for place, number in ((one, 1), (other, 2)):
        place.ip(f"address add 192.0.2.{number}/24 dev nic0")
    probe = echo.Probe(source=ip_address("192.0.2.9"), target=ip_address("192.0.2.2"), namespace=one.fd)
    assert echo.ping({"": probe}, timeout=0.5) == {"": None}
    one.ip("address add 192.0.2.9/24 dev nic0")
    assert echo.ping({"": probe})[""] is not None


def test_pings_to_more_targets_than_a_process_may_open_files(pair: tuple[Namespace, Namespace]) -> None:
    one, other = pair
    one.ip("address add 192.0.2.1/16 dev nic0")
    other.ip("address add 192.0.2.2/16 dev nic0")
    targets = [ip_address("192.0.3.0") + number for number in range(400)] + [ip_address("192.0.2.2")]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        source = ip_address("192.0.2.1")
        probes = {target: echo.Probe(source=source, target=target, namespace=one.fd) for target in targets}
        answers = echo.ping(probes, timeout=0.6)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [str(target) for target, answer in answers.items() if answer is not None] == ["192.0.2.2"]


def test_pings_of_two_namespaces_and_of_one_to_itself_do_not_mix(pair: tuple[Namespace, Namespace]) -> None:
    one, other = pair
    with ExitStack():
        for place, number in ((one, 1), (other, 2)):
            place.ip(f"address add 192.0.2.{number}/24 dev nic0")
        own, far = ip_address("192.0.2.1"), ip_address("192.0.2.2")
        answers = echo.ping(
            {
                (place.name, target): echo.Probe(source=source, target=target, namespace=place.fd)
                for place, source in ((one, own), (other, far))
                for target in (own, far)
            }
        )
        assert None not in answers.values()
