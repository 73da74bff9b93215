"""guestnet vlan, on a kernel with 8021q or without: what can be planned is planned on values, the rest is run."""

from collections.abc import Callable
from typing import Any

import pytest

from guestnet import apply
from guestnet.errors import ConflictError, GuestnetError, UsageError
from guestnet.model import GROUP, HOST_ALIAS, VLAN_ALIAS, Kind, Link, Mac, Mode, NewLink
from guestnet.plan import hostlink as plan
from guestnet.plan.host import Host
from guestnet.plan.hostlink import Change, Wanted
from guestnet.plan.steps import AddLink
from guestnet.undo import Undo

NO_SUPPORT = "this kernel has no 802.1Q VLAN support (CONFIG_VLAN_8021Q)"
Run = Callable[..., Any]

NIC = Link(index=2, name="nic0", mac="52:54:00:aa:00:01", mtu=1500, up=True, carrier=True)
DOWN = Link(index=3, name="nic1", mac="52:54:00:aa:00:03", mtu=1500)


def vlan(index: int, name: str, number: int, parent: int = 2, alias: str = HOST_ALIAS) -> Link:
    return Link(
        index=index, name=name, kind="vlan", vlan=number, vlan_protocol="802.1Q", parent=parent, mtu=1500, up=True,
        mac=NIC.mac, group=GROUP, alias=alias,
    )  # fmt: skip


def macvtap(index: int, name: str, parent: int, alias: str = HOST_ALIAS) -> Link:
    return Link(
        index=index, name=name, kind="macvtap", mode=Mode.BRIDGE, parent=parent, mtu=1500, group=GROUP, alias=alias,
        mac=f"52:54:00:00:00:{index:02x}", addrgenmode=1,
    )  # fmt: skip


def host(*links: Link, **more: Any) -> Host:
    return Host(links=(NIC, DOWN, *links), **more)


def said(steps: Any) -> list[str]:
    return [str(step) for step in steps]


def add(wanted: Wanted, now: Host) -> plan.Plan:
    return plan.add(wanted, now, now)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("nic0.11", None, None), ("nic0.11", "nic0", 11)),
        (("nic0.100.11", None, None), ("nic0.100.11", "nic0.100", 11)),
        ((None, "nic0", 11), ("nic0.11", "nic0", 11)),
        (("lab", "nic0", 11), ("lab", "nic0", 11)),
        (("nic0.12", "nic0", 11), ("nic0.12", "nic0", 11)),
    ],
)
def test_a_vlan_is_said_by_its_name_or_by_parent_and_id(words: Any, meant: Any) -> None:
    assert plan.vlan_words(*words) == meant


@pytest.mark.parametrize(
    "words",
    [
        (None, None, None), ("nic0", None, None), (".11", None, None), ("nic0.", None, None), ("nic0.x", None, None),
        ("nic0.0", None, None), ("nic0.4095", None, None), ("lab", "nic0", None), ("lab", None, 11),
        ("nic0.11", "nic0", None), (None, "averylongname0", 11),
    ],
)  # fmt: skip
def test_what_does_not_say_which_vlan_is_refused(words: Any) -> None:
    with pytest.raises(UsageError):
        plan.vlan_words(*words)


def test_a_vlan_that_is_asked_for_is_marked_as_the_hosts_and_keeps_ipv6() -> None:
    made = add(Wanted(kind=Kind.VLAN, names=("nic0.11",), parent="nic0", vlan=11), host())
    assert said(made.steps) == [
        "make VLAN 11 on nic0: nic0.11", "mark nic0.11 as guestnet:1:host", "bring nic0.11 up",
    ]  # fmt: skip


def test_a_vlan_on_the_way_is_marked_as_made_on_the_way() -> None:
    made = add(Wanted(kind=Kind.VLAN, names=("nic0.100.11",), parent="nic0.100", vlan=11), host())
    assert said(made.here) == [
        "make VLAN 100 on nic0: nic0.100", "mark nic0.100 as guestnet:1:vlan", "bring nic0.100 up",
    ]  # fmt: skip
    assert said(made.there)[0] == "make VLAN 11 on nic0.100: nic0.100.11"


def test_a_macvtap_on_a_vlan_that_is_not_there_makes_it() -> None:
    made = add(Wanted(kind=Kind.MACVTAP, names=("mt0", "mt1"), parent="nic0.11"), host())
    assert said(made.here) == [
        "make VLAN 11 on nic0: nic0.11", "mark nic0.11 as guestnet:1:vlan", "keep the host's IPv6 off nic0.11",
        "bring nic0.11 up",
    ]  # fmt: skip
    assert [text for text in said(made.there) if text.startswith("make")] == [
        "make macvtap mt0 on nic0.11, mode bridge", "make macvtap mt1 on nic0.11, mode bridge",
    ]  # fmt: skip


def test_a_vlan_on_a_nic_that_is_down_waits_for_it() -> None:
    made = add(Wanted(kind=Kind.VLAN, names=("nic1.11",), parent="nic1", vlan=11), host())
    assert "bring nic1.11 up" not in said(made.steps)
    assert "nic1 is down" in made.notes[0]


def test_a_vlan_that_is_there_under_another_name_is_not_made_again() -> None:
    assert add(Wanted(kind=Kind.VLAN, names=("lab",), parent="nic0", vlan=11), host(vlan(4, "lab", 11))).steps == ()
    wanted = Wanted(kind=Kind.VLAN, names=("nic0.11",), parent="nic0", vlan=11)
    with pytest.raises(ConflictError, match="VLAN 11 on nic0 is there: lab"):
        add(wanted, host(vlan(5, "lab", 11)))


def test_a_vlan_with_links_on_it_is_not_deleted() -> None:
    now = host(vlan(5, "nic0.11", 11), macvtap(6, "mt0", 5))
    made = plan.delete(Kind.VLAN, ("nic0.11",), now, foreign=False)
    assert made.steps == ()
    assert [error.message for error in made.failures] == ["nic0.11 has mt0 on it"]


def test_a_vlan_that_another_namespace_uses_is_not_deleted() -> None:
    now = host(vlan(5, "nic0.11", 11), used_elsewhere=frozenset({5}))
    made = plan.delete(Kind.VLAN, ("nic0.11",), now, foreign=False)
    assert made.steps == ()
    assert "another network namespace" in made.failures[0].message


def test_vlans_that_stand_on_one_another_go_topmost_first() -> None:
    now = host(vlan(5, "nic0.100", 100), vlan(6, "nic0.100.11", 11, parent=5))
    made = plan.delete(Kind.VLAN, ("nic0.100", "nic0.100.11"), now, foreign=False)
    assert said(made.steps) == ["delete nic0.100.11", "delete nic0.100"]
    assert made.failures == ()


def test_a_vlan_made_on_the_way_goes_with_the_last_link_on_it() -> None:
    way = vlan(5, "nic0.11", 11, alias=VLAN_ALIAS)
    now = host(way, macvtap(6, "mt0", 5), macvtap(7, "mt1", 5))
    assert said(plan.delete(Kind.MACVTAP, ("mt0",), now, foreign=False).steps) == ["delete mt0"]
    assert said(plan.delete(Kind.MACVTAP, ("mt0", "mt1"), now, foreign=False).steps) == [
        "delete mt0", "delete mt1", "delete nic0.11",
    ]  # fmt: skip
    asked_for = host(vlan(5, "nic0.11", 11), macvtap(6, "mt0", 5))
    assert said(plan.delete(Kind.MACVTAP, ("mt0",), asked_for, foreign=False).steps) == ["delete mt0"]


def test_a_vlan_made_on_the_way_stays_while_another_namespace_uses_it() -> None:
    now = host(vlan(5, "nic0.11", 11, alias=VLAN_ALIAS), macvtap(6, "mt0", 5), used_elsewhere=frozenset({5}))
    assert said(plan.delete(Kind.MACVTAP, ("mt0",), now, foreign=False).steps) == ["delete mt0"]


def test_a_vlan_is_changed_in_mac_mtu_and_state() -> None:
    now = host(vlan(5, "nic0.11", 11))
    made = plan.change(Kind.VLAN, "nic0.11", Change(mtu=1400, up=False), now, None, foreign=False)
    assert said(made.steps) == ["set the MTU of nic0.11 to 1400", "bring nic0.11 down"]


def test_a_vlan_cannot_be_brought_up_on_a_nic_that_is_down() -> None:
    down = Link(index=5, name="nic1.11", kind="vlan", vlan=11, vlan_protocol="802.1Q", parent=3, mtu=1500, group=GROUP)
    with pytest.raises(ConflictError, match="while nic1 is down"):
        plan.change(Kind.VLAN, "nic1.11", Change(up=True), host(down), None, foreign=False)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_wireless_parent_is_refused_with_the_reason(kind: Kind) -> None:
    wanted = Wanted(kind=kind, names=("x",), parent="nic0", vlan=11 if kind is Kind.VLAN else None)
    with pytest.raises(ConflictError, match="Wi-Fi"):
        add(wanted, host(wireless=frozenset({"nic0"})))


@pytest.mark.root
@pytest.mark.parametrize(
    "words",
    [
        ("vlan", "add", "nic0.11"), ("vlan", "add", "--parent", "nic0", "--vlan", "11"),
        ("vlan", "add", "lab", "--parent", "nic0", "--vlan", "11", "--dry-run"),
        ("macvtap", "add", "mt0", "--parent", "nic0.11"), ("macvlan", "add", "lan0", "--parent", "nic0.11.12"),
    ],
)  # fmt: skip
def test_a_kernel_without_8021q_is_told_from_every_other_trouble(run_guestnet: Run, parent: Any, words: Any) -> None:
    if parent.links.supports(Kind.VLAN):
        return  # there it works, and the tests of tests/vm show it
    before = parent.shown()
    answer = run_guestnet(*words, "--json", netns=parent.name)
    assert (answer.code, answer.json["error"]["message"]) == (1, NO_SUPPORT)
    assert parent.shown() == before


@pytest.mark.root
def test_vlans_are_made_changed_listed_and_deleted_where_the_kernel_has_them(run_guestnet: Run, parent: Any) -> None:
    if not parent.links.supports(Kind.VLAN):
        pytest.skip("this kernel has no 8021q")

    def run(*words: str) -> Any:
        answer = run_guestnet(*words, "--json", netns=parent.name)
        assert answer.code == 0, answer
        return answer.json

    run("vlan", "add", "nic0.11")
    run("vlan", "add", "lab", "--parent", "nic0", "--vlan", "12", "--mtu", "1400", "--mac", "52:54:00:00:02:0c")
    rows = {row["name"]: row for row in run("vlan", "list")}
    assert {name: (row["vlan"], row["parent"], row["owner"], row["up"]) for name, row in rows.items()} == {
        "nic0.11": (11, "nic0", "host", True), "lab": (12, "nic0", "host", True),
    }  # fmt: skip
    run("macvtap", "add", "mt0", "--parent", "nic0.11")
    run("macvtap", "add", "mt1", "--parent", "nic0.13")
    assert {row["name"] for row in run("vlan", "list")} == {"nic0.11", "lab", "nic0.13"}
    run("macvtap", "delete", "mt0", "mt1")
    assert {row["name"] for row in run("vlan", "list")} == {"nic0.11", "lab"}
    run("vlan", "set", "lab", "--mtu", "1300", "--down")
    (row,) = run("vlan", "list", "lab")
    assert (row["mtu"], row["up"]) == (1300, False)
    run("vlan", "delete", "lab", "nic0.11")
    assert run("vlan", "list") == []


def test_the_error_of_a_kernel_without_the_kind_is_no_usage_error() -> None:
    from guestnet.kernel.link import no_support

    error = no_support(Kind.VLAN)
    assert (error.message, error.code) == (NO_SUPPORT, GuestnetError.code)


@pytest.mark.root
def test_a_vlan_below_a_link_that_must_stay_is_not_taken_back(parent: Any) -> None:
    if not parent.links.supports(Kind.VLAN):
        pytest.skip("this kernel has no 8021q")
    mac = Mac("52:54:00:00:02:01")
    new = (
        NewLink(kind=Kind.VLAN, name="nic0.11", parent="nic0", alias=VLAN_ALIAS, vlan=11),
        NewLink(kind=Kind.MACVLAN, name="mv0", parent="nic0.11", alias=HOST_ALIAS, mac=mac),
    )
    doors = apply.Doors(links=parent.links, target=parent.links, held={mac})
    undo = Undo()
    apply.run([AddLink(new=one) for one in new], doors, undo)
    assert undo.run() == [
        "not undone: macvlan mv0: mv0 is left, the guest still holds it",
        "not undone: vlan nic0.11: nic0.11 is left, mv0 stands on it",
    ]
    assert {"mv0", "nic0.11"} <= {link["ifname"] for link in parent.shown()}
