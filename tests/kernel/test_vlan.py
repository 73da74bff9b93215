"""guestnet vlan: what is planned, on values, and what a kernel without 8021q is told. tests/kernel/test_vlan_links.py
and its neighbours make VLANs."""

import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest

from guestnet import hook, hostlink
from guestnet.errors import HOOK_REFUSED, ConflictError, GuestnetError, UsageError
from guestnet.model import GROUP, HOST_ALIAS, VLAN_ALIAS, Kind, Link, Mode, Request
from guestnet.plan import hostlink as plan
from guestnet.plan.host import Host
from guestnet.plan.hostlink import Change, Wanted
from guestnet.qemu import Options, helper
from tests.unit.test_hook import GOOD, direct, domain, interface, record
from tests.vm import features

NO_SUPPORT = "this kernel has no 802.1Q VLAN support (CONFIG_VLAN_8021Q)"
HOW = hostlink.Options()
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
        ((None, "averylongname0", 11), ("averylongname0.11", "averylongname0", 11)),
        (("averylongname0.11", None, None), ("averylongname0.11", "averylongname0", 11)),
        (("averylongname0.11", "averylongname0", 11), ("averylongname0.11", "averylongname0", 11)),
    ],
)
def test_a_vlan_is_said_by_its_name_or_by_parent_and_id(words: Any, meant: Any) -> None:
    assert plan.vlan_words(*words) == meant


@pytest.mark.parametrize(
    "words",
    [
        (None, None, None), ("nic0", None, None), (".11", None, None), ("nic0.", None, None), ("nic0.x", None, None),
        ("nic0.0", None, None), ("nic0.4095", None, None), ("lab", "nic0", None), ("lab", None, 11),
        ("nic0.11", "nic0", None), ("averylongname0.1", "nic0", 11), ("nic0.011", None, None),
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
        "make VLAN 100 on nic0: nic0.100", "mark nic0.100 as guestnet:1:vlan", "keep the host's IPv6 off nic0.100",
        "bring nic0.100 up",
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
    with pytest.raises(ConflictError, match=r"VLAN 11 \(802.1Q\) on nic0 is there: lab"):
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


def state(place: Any) -> list[tuple[Any, ...]]:
    return [(link.name, link.index, link.up, link.group, link.alias) for link in place.links.all()]


NEEDS_8021Q = [
    ("vlan", "add", "nic0.11"),
    ("vlan", "add", "--parent", "nic0", "--vlan", "11", "--protocol", "802.1ad"),
    ("vlan", "add", "lab", "--parent", "nic0", "--vlan", "11", "--dry-run"),
    ("macvtap", "add", "mt0", "--parent", "nic0.11"),
    ("macvlan", "add", "lan0", "--parent", "nic0.11.12", "--outer-protocol", "802.1ad"),
    ("host", "add", "nic0.11", "--address", "203.0.113.1/24"),
    ("topology", "up", "vlan-macvtap", "--node", "n1"),
    ("qemu", "run", "--parent", "nic0.11", "--", "true"),
    ("qemu", "args", "--parent", "nic0", "--vlan", "11"),
]
"""Commands that would make a VLAN; tests/libvirt/test_bad_input.py has `attach`."""


@pytest.mark.root
@pytest.mark.kernel_without("8021q")
@pytest.mark.parametrize("words", NEEDS_8021Q, ids=" ".join)
def test_a_kernel_without_8021q_is_told_from_every_other_trouble(run_guestnet: Run, parent: Any, words: Any) -> None:
    before = state(parent)
    answer = run_guestnet(*words, netns=parent.name)
    assert (answer.code, answer.out) == (1, ""), answer
    assert answer.err.startswith(f"guestnet: {NO_SUPPORT}\nhint: install a kernel that has the module 8021q")
    assert state(parent) == before


@pytest.mark.root
@pytest.mark.kernel_without("8021q")
def test_qemus_helper_and_libvirts_hook_tell_of_a_kernel_without_8021q_and_leave_nothing(
    parent: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(parent)
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    with ours, pytest.raises(GuestnetError) as refusal:
        parent.call(lambda: helper.serve(Request(parent="nic0.11"), fd, "br0", (), Options()))
    assert (refusal.value.message, refusal.value.code) == (NO_SUPPORT, 1)
    assert state(parent) == before
    for nic in (
        (record(parent="nic0.11"), interface()),
        (record(parent="nic0.11", ifname=None, backend="direct"), direct(source="nic0.11")),
    ):
        with tempfile.TemporaryFile() as file:
            file.write(domain(*nic))
            file.seek(0)
            assert parent.call(lambda: hook.main(["vm1", "prepare", "begin", "-"], file.fileno())) == HOOK_REFUSED
        said = capsys.readouterr().err
        assert f"guestnet: vm1: NIC {GOOD}: {NO_SUPPORT} (install a kernel" in said
        assert state(parent) == before


@pytest.mark.root
@pytest.mark.kernel_without("8021q")
def test_a_kernel_without_8021q_is_known_at_once(parent: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(GuestnetError, match=r"no 802\.1Q VLAN support"):
        parent.call(lambda: hostlink.add(Wanted(kind=Kind.MACVTAP, names=("mt0",), parent="nic0.11"), HOW))
    # where the module is withheld the kernel asks modprobe first, and that is slow under emulation
    assert time.monotonic() - begun < (1.0 if features.has("machine") else 0.1)


def test_the_error_of_a_kernel_without_the_kind_is_no_usage_error() -> None:
    from guestnet.kernel.link import no_support

    error = no_support(Kind.VLAN)
    assert (error.message, error.code) == (NO_SUPPORT, GuestnetError.code)
