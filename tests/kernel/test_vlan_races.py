"""VLANs that come and go between the look at them and the work on them."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from guestnet.errors import ConflictError, GuestnetError, NotFoundError
from guestnet.kernel.link import Links
from guestnet.model import GROUP, VLAN_ALIAS, Kind, NewLink
from guestnet.plan.steps import AddLink, SetUp
from tests.conftest import Namespace
from tests.kernel.vlans import LONG, Site, carry_out, plan_attach, shown, site

pytestmark = [pytest.mark.root, pytest.mark.kernel("8021q", "macvtap", "veth")]

ROUNDS = 50
_FACTORY = Callable[[], Namespace]


@pytest.fixture
def host(namespace: _FACTORY) -> Site:
    return site(namespace)


def once(host: Site, line: str, before: Callable[[Any], bool]) -> Callable[[str, Any], None]:
    """A watch that lets somebody else run this line of ip(8) before the first step that is meant."""
    done = False

    def watch(when: str, step: Any) -> None:
        nonlocal done
        if not done and when == "begin" and before(step):
            done = True
            host.here.ip(line)

    return watch


def makes(kind: Kind) -> Callable[[Any], bool]:
    return lambda step: isinstance(step, AddLink) and step.new.kind is kind


# Two processes at once


@contextmanager
def worker(host: Site, guest: str, parent: str) -> Iterator[tuple[int, int]]:
    """A process of its own that gives the guest a NIC on ``parent`` for each byte it reads, without any lock, and
    writes a line of JSON with what it met: nothing, or the error."""
    orders, order = os.pipe()
    answer, answers = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(order)
            os.close(answer)
            host.call(lambda: _work(guest, parent, orders, answers))
            code = 0
        finally:
            os._exit(code)
    os.close(orders)
    os.close(answers)
    try:
        yield order, answer
    finally:
        os.close(order)
        os.close(answer)
        assert os.waitpid(pid, 0)[1] == 0


def _work(guest: str, parent: str, orders: int, answers: int) -> None:
    with Links() as links:
        while os.read(orders, 1):
            said: list[str] = []
            try:
                made = plan_attach([parent], links, guest=guest)
                os.write(answers, b".")
                os.read(orders, 1)
                carry_out(made, links)
            except GuestnetError as error:
                said = [error.message, *getattr(error, "__notes__", [])]
            os.write(answers, (json.dumps(said) + "\n").encode())


def line_of(answer: int) -> str:
    found = b""
    while not found.endswith(b"\n"):
        found += os.read(answer, 1)
    return found.decode()


@pytest.mark.parametrize("nic", ["nic0", LONG])
def test_two_processes_at_once_make_one_vlan_and_both_succeed(namespace: _FACTORY, nic: str) -> None:
    host = site(namespace, nic)
    with worker(host, "vm1", f"{nic}.100.11") as one, worker(host, "vm2", f"{nic}.100.11") as other:
        for number in range(ROUNDS):
            both = [one, other][:: 1 if number % 2 else -1]
            for order, _ in both:
                os.write(order, b"p")  # both plan on a host without VLANs
            for _, answer in both:
                assert os.read(answer, 1) == b"."
            for order, _ in both:
                os.write(order, b"g")
            assert [json.loads(line_of(answer)) for _, answer in both] == [[], []], number
            links = {link.name: link for link in host.here.links.all()}
            vlans = [link for link in links.values() if link.kind == "vlan"]
            assert [link.vlan for link in vlans] == [100, 11], number
            for vlan in vlans:
                assert (vlan.group, vlan.alias, vlan.addrgenmode, vlan.up) == (GROUP, VLAN_ALIAS, 1, True), number
                assert vlan.readable.startswith(nic)
            nics = [link for link in links.values() if link.kind == "macvtap"]
            assert [link.parent for link in nics] == [vlans[1].index] * 2
            host.detach("vm1")
            host.detach("vm2")
            assert host.vlans() == {}


# Somebody else, in between


def test_a_vlan_that_somebody_makes_in_between_is_used_as_it_is(host: Site) -> None:
    made = host.attach(
        "nic0.11", watch=once(host, "link add link nic0 name vlan11 type vlan id 11 gvrp on", makes(Kind.VLAN))
    )
    assert host.vlans() == {"vlan11": (11, "nic0")}
    vlan = host.link("vlan11")
    assert (vlan.group, vlan.alias, vlan.up) == (0, "", True)
    assert host.link(made.nics[0].ifname).parent == vlan.index
    assert shown(host.here, "vlan11")["inet6_addr_gen_mode"] == "eui64"
    host.detach()
    assert host.vlans() == {"vlan11": (11, "nic0")}


def test_a_vlan_that_somebody_made_in_between_is_left_as_it_was_when_the_rest_fails(host: Site) -> None:
    made = once(host, "link add link nic0 name vlan11 type vlan id 11", makes(Kind.VLAN))

    def watch(when: str, step: Any) -> None:
        made(when, step)
        if when == "end" and makes(Kind.MACVTAP)(step):
            raise GuestnetError("enough")

    with pytest.raises(GuestnetError, match="enough") as failure:
        host.attach("nic0.11", watch=watch)
    assert not hasattr(failure.value, "__notes__")
    assert host.names() == {"lo", "nic0", "peer0", "vlan11"}
    assert not host.link("vlan11").up


def test_a_vlan_of_ours_that_came_in_between_is_taken_back_only_if_it_is_unused(host: Site) -> None:
    class Rival:
        """Makes the same VLAN as another guestnet would, and maybe puts a link on it, before ours is made."""

        def __init__(self, use: str) -> None:
            self.use = use

        def __call__(self, when: str, step: Any) -> None:
            if when == "begin" and makes(Kind.VLAN)(step):
                new = NewLink(kind=Kind.VLAN, name="nic0.11", parent="nic0", alias=VLAN_ALIAS, vlan=11)
                host.here.links.add(new, host.link("nic0").index)
                host.here.links.mark(host.link("nic0.11"), VLAN_ALIAS)
                if self.use:
                    host.here.ip(self.use)
            if when == "begin" and isinstance(step, SetUp) and step.name.startswith("gn"):
                raise GuestnetError("enough")

    for use, left in (("", set()), ("link add mv0 link nic0.11 type macvlan", {"nic0.11", "mv0"})):
        with pytest.raises(GuestnetError, match="enough") as failure:
            host.attach("nic0.11", watch=Rival(use))
        assert not hasattr(failure.value, "__notes__")
        assert host.names() == {"lo", "nic0", "peer0"} | left


def test_a_vlan_that_was_made_and_got_an_address_meanwhile_is_left_when_the_rest_fails(host: Site) -> None:
    def watch(when: str, step: Any) -> None:
        if when == "begin" and isinstance(step, SetUp) and step.name.startswith("gn"):
            host.here.ip("address add 198.51.100.9/24 dev nic0.11")
            raise GuestnetError("enough")

    with pytest.raises(GuestnetError, match="enough") as failure:
        host.attach("nic0.11", watch=watch)
    assert not hasattr(failure.value, "__notes__")
    assert host.names() == {"lo", "nic0", "peer0", "nic0.11"}


def test_a_link_that_gets_the_name_in_between_is_refused_and_left(host: Site) -> None:
    line = "link add nic0.11 type veth peer name other"
    with pytest.raises(ConflictError, match="exists"):
        host.attach("nic0.11", watch=once(host, line, makes(Kind.VLAN)))
    assert host.names() == {"lo", "nic0", "peer0", "nic0.11", "other"}
    host.here.ip("link del other")
    with pytest.raises(ConflictError, match=r"nic0\.11 is not VLAN 11"):  # planned again, and the reason is found
        host.add(Kind.MACVTAP, "mt0", parent="nic0.11", watch=once(host, line, makes(Kind.VLAN)))
    assert host.names() == {"lo", "nic0", "peer0", "nic0.11", "other"}


@pytest.mark.parametrize("mine", [True, False])
def test_a_vlan_that_is_deleted_in_between_is_made_again_for_the_hosts_own_links(host: Site, mine: bool) -> None:
    if mine:
        (nic,) = host.attach("nic0.11").nics
        host.here.ip(f"link del {nic.ifname}")
    else:
        host.here.ip("link add link nic0 name nic0.11 up type vlan id 11")
    made = host.add(
        Kind.MACVTAP, "mt0", "mt1", parent="nic0.11", watch=once(host, "link del nic0.11", makes(Kind.MACVTAP))
    )
    assert {row.name: row.parent for row in made.links} == {"mt0": "nic0.11", "mt1": "nic0.11"}
    assert host.link("nic0.11").alias == VLAN_ALIAS
    host.delete(Kind.MACVTAP, "mt0", "mt1")
    assert host.vlans() == {}


def test_a_vlan_that_is_deleted_in_between_is_told_and_nothing_is_left_of_the_attach(host: Site) -> None:
    host.here.ip("link add link nic0 name vlan11 up type vlan id 11")
    with pytest.raises(NotFoundError, match="gone"):
        host.attach("nic0.12", "nic0.11", watch=once(host, "link del vlan11", lambda step: "vlan11" in str(step)))
    assert host.names() == {"lo", "nic0", "peer0"}


@pytest.mark.parametrize("moment", [Kind.VLAN, Kind.MACVTAP])
def test_a_nic_that_goes_in_between_is_told_and_nothing_is_left(host: Site, moment: Kind) -> None:
    gone = once(host, "link del nic0", makes(moment))
    with pytest.raises(NotFoundError, match="gone") as failure:
        host.attach("nic0.11", watch=gone)
    assert not hasattr(failure.value, "__notes__")
    assert host.names() == {"lo"}
    host.here.ip("link add nic0 up type veth peer name peer0")
    gone = once(host, "link del nic0", makes(moment))
    with pytest.raises(NotFoundError, match="there is no interface nic0"):
        host.add(Kind.MACVTAP, "mt0", parent="nic0.11", watch=gone)
    assert host.names() == {"lo"}
