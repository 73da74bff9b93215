"""Which links are orphans, and why: the cases that take VLANs, other namespaces or another guestnet to bring about."""

from typing import Any

from guestnet.model import GROUP, HOST_ALIAS, VLAN_ALIAS, Guest, Link, Mode, guest_alias, qemu_alias
from guestnet.plan.host import Host
from guestnet.plan.orphans import Evidence, judge

UUID = "11111111-1111-4111-8111-111111111111"
GONE = "99999999-9999-4999-8999-999999999999"


def link(index: int, name: str, on: int | None = 1, **facts: Any) -> Link:
    return Link(index=index, name=name, parent=on, **facts)


def vlan(index: int, name: str, on: int = 1, *, alias: str = VLAN_ALIAS, **facts: Any) -> Link:
    return link(index, name, on, kind="vlan", vlan=index, group=GROUP, alias=alias, **facts)


def macvtap(index: int, name: str, on: int = 1, *, uuid: str = GONE, alias: str | None = None) -> Link:
    alias = guest_alias(uuid, "vm9") if alias is None else alias
    return link(index, name, on, kind="macvtap", mode=Mode.BRIDGE, group=GROUP, alias=alias)


def guest(*interfaces: str, uuid: str = UUID, name: str = "vm1") -> Guest:
    text = f"<domain><devices>{''.join(interfaces)}</devices></domain>"
    return Guest(name=name, uuid=uuid, state="shut off", live=None, config=text)


def told(*links: Link, guests: tuple[Guest, ...] = (), before: tuple[Link, ...] | None = None, **how: Any) -> list[str]:
    """A line for each link of ours, in the order in which they are judged."""
    host_words = {key: how.pop(key) for key in ("used_elsewhere", "addressed", "sources") if key in how}
    there = (link(1, "ens3", None), *links)
    evidence = Evidence(
        host=Host(links=there, **host_words), before=there if before is None else before, guests=guests,
        **{"holders": {}, "busy": {}, **how},
    )  # fmt: skip
    return [f"{one.link.name}{' goes' if one.orphan else ''}: {one.why}" for one in judge(evidence)]


def test_a_vlan_goes_with_the_last_link_on_it_and_so_do_those_below() -> None:
    links = vlan(2, "ens3.11"), vlan(3, "ens3.11.5", 2), macvtap(4, "gn4", 3)
    assert told(*links) == [
        "gn4 goes: its guest vm9 is gone",
        "ens3.11.5 goes: nothing uses it",
        "ens3.11 goes: nothing uses it",
    ]
    assert told(*links, macvtap(5, "gn5", 2), holders={5: ("process 7 (qemu)",)}) == [
        "gn4 goes: its guest vm9 is gone",
        "ens3.11.5 goes: nothing uses it",
        "gn5: held open by process 7 (qemu)",
        "ens3.11: in use: gn5 on it",
    ]


def test_a_vlan_stays_for_whatever_uses_it() -> None:
    one = vlan(2, "ens3.11")
    direct = "<interface type='direct'><mac address='52:54:00:00:00:01'/><source dev='ens3.11'/></interface>"
    assert told(one, used_elsewhere=frozenset({2})) == ["ens3.11: in use: a link of another network namespace on it"]
    assert told(one, addressed=frozenset({2})) == ["ens3.11: in use: an address of the host's own"]
    assert told(one, sources=frozenset({"ens3.11"})) == ["ens3.11: in use: the parent of a NIC of type='direct'"]
    assert told(one, guests=(guest(direct),)) == ["ens3.11 goes: nothing uses it"]  # sources says so, not the guests
    assert told(vlan(2, "ens3.11", master=9), link(9, "br0", None)) == ["ens3.11: in use: a port of br0"]
    assert told(one, others="another guestnet is at work") == ["ens3.11: another guestnet is at work"]
    assert told(vlan(2, "ens3.11", alias=HOST_ALIAS)) == ["ens3.11: the host's own"]
    assert told(link(2, "ens3.11", kind="vlan")) == []


def test_a_link_that_came_while_the_guests_were_asked_stays() -> None:
    one = macvtap(2, "gn2", uuid=UUID)
    assert told(one, before=()) == ["gn2: came or changed while this looked"]
    assert told(one, before=(macvtap(2, "gn2", alias=""),)) == ["gn2: came or changed while this looked"]
    assert told(one, before=(macvtap(3, "gn2", uuid=UUID),)) == ["gn2: came or changed while this looked"]
    assert told(one, before=(one,)) == ["gn2 goes: its guest vm9 is gone"]


def test_a_link_stays_for_any_guest_that_names_it_whosever_it_is() -> None:
    nic = "<interface type='ethernet'><mac address='52:54:00:00:00:02'/><target dev='gn2' managed='no'/></interface>"
    for one in (macvtap(2, "gn2"), macvtap(2, "gn2", uuid=UUID), macvtap(2, "gn2", alias="")):
        assert told(one, guests=(guest(nic),)) == ["gn2: a NIC of vm1 (config)"]
    both = guest(nic), guest(nic, uuid=GONE, name="copy")
    assert told(macvtap(2, "gn2"), guests=both) == ["gn2: a NIC of vm1 (config) and a NIC of copy (config)"]


def test_a_link_whose_guest_is_worked_on_stays_and_so_does_its_vlan() -> None:
    assert told(vlan(2, "ens3.11"), macvtap(3, "gn3", 2), busy={GONE: "its guest is being started"}) == [
        "gn3: its guest is being started",
        "ens3.11: in use: gn3 on it",
    ]


def test_the_link_of_a_qemu_without_libvirt_goes_when_nobody_holds_it() -> None:
    one = macvtap(2, "gn2", alias=qemu_alias("vm1"))
    assert told(one, holders={2: ("process 7 (qemu)",)}) == ["gn2: held open by process 7 (qemu)"]
    assert told(one) == ["gn2 goes: no process holds it open any more"]


def test_what_is_marked_as_a_guests_and_is_no_macvtap_stays() -> None:
    assert told(vlan(2, "ens3.11", alias=guest_alias(GONE, "vm9"))) == ["ens3.11: marked as a guest's, but a vlan"]
    assert told(link(2, "dummy0", None, kind="dummy", group=GROUP)) == [
        "dummy0: not marked as guestnet marks a dummy: ''"
    ]
    assert told(link(2, "ens4", None, group=GROUP)) == ["ens4: not marked as guestnet marks a network card: ''"]


def test_a_link_of_a_topology_and_the_hosts_own_beside_its_guests_stay_and_are_called_so() -> None:
    marked = "guestnet:1:topology:0.3:macvtap1"
    assert told(macvtap(2, "macvtap1", alias=marked), macvtap(3, "shim-ens3", alias="guestnet:1:shim")) == [
        "macvtap1: of the topology 0.3",
        "shim-ens3: the host's own, beside its guests",
    ]
