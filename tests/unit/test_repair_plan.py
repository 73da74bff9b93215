"""What a repair would do in situations that are hard to bring about, in the words of tests/unit/plan_cases.py."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from guestnet.errors import ConflictError
from guestnet.plan.repair import Evidence, Repairing, repair
from tests.unit import plan_cases

NIC = "52:54:00:00:00:01"
SECOND = "52:54:00:00:00:02"


def planned(lines: str, *, held: Collection[str] = (), uuids: tuple[str, ...] = (), hook: bool = False) -> Repairing:
    """The plan; ``held`` are the names of the links that a process has open."""
    now, _ = plan_cases.read(lines)
    indices = frozenset(link.index for link in now.host.links if link.name in held)
    return repair(now, Evidence(held=indices, uuids=frozenset(uuids), hook=hook))


def steps(made: Repairing) -> list[str]:
    assert [failure.message for failure in made.failures] == []
    return [str(step) for step in made.steps]


def failures(made: Repairing) -> list[str]:
    assert made.steps == ()
    return [failure.message for failure in made.failures]


def test_two_dead_nics_on_a_vlan_that_is_gone_make_it_once() -> None:
    made = planned(
        f"""
        link ens3
        guest vm1 running
        nic {NIC} on=ens3.11
        nic {SECOND} on=ens3.11
        """
    )
    said = steps(made)
    assert [text for text in said if "VLAN" in text or "plug" in text or "make" in text] == [
        f"unplug NIC {NIC} from vm1 (live)",
        "make VLAN 11 on ens3: ens3.11",
        f"make macvtap gn525400000001 on ens3.11, mode bridge, MAC {NIC}",
        f"plug NIC {NIC} into vm1 (live)",
        f"unplug NIC {SECOND} from vm1 (live)",
        f"make macvtap gn525400000002 on ens3.11, mode bridge, MAC {SECOND}",
        f"plug NIC {SECOND} into vm1 (live)",
    ]


def test_a_link_in_a_mode_that_does_not_change_is_made_anew() -> None:
    lines = f"""
        link ens3 mac={NIC}
        link gn525400000001 on=ens3 mode=bridge mac={NIC} of=vm1
        guest vm1 running
        nic {NIC} mode=passthru
        """
    said = steps(planned(lines, held=["gn525400000001"]))
    assert [text.split()[0] for text in said] == [
        "unplug", "delete", "make", "check", "mark", "keep", "let", "bring", "plug",
    ]  # fmt: skip
    assert failures(planned(lines.replace("running", "stopped"), held=["gn525400000001"])) == [
        "gn525400000001 is a macvtap on ens3, and a process holds it open though vm1 does not"
    ]


@pytest.mark.parametrize(("hook", "expected"), [(False, 6), (True, 0)])
def test_the_link_of_a_guest_that_does_not_run_is_left_to_the_hook(hook: bool, expected: int) -> None:
    made = planned(f"link ens3\nguest vm1 stopped\nnic {NIC}", hook=hook)
    assert len(steps(made)) == expected


@pytest.mark.parametrize(
    ("owner", "known", "message"),
    [
        ("vm2", True, "gn525400000001 is a macvtap on ens3 of the guest vm2, and not the NIC of vm1"),
        ("vm2", False, ""),  # vm1 was defined anew, and has another UUID
        ("host", True, "gn525400000001 is a macvtap on ens3, and not the NIC of vm1"),
    ],
)
def test_a_link_with_another_mark_is_taken_over_only_where_nobody_has_it(owner: str, known: bool, message: str) -> None:
    made = planned(
        f"""
        link ens3
        link gn525400000001 on=ens3 mode=bridge mac={NIC} of={owner}
        guest vm1 running
        nic {NIC}
        """,
        held=["gn525400000001"],
        uuids=(plan_cases.UUIDS["vm2"],) if known else (),
    )
    if message:
        assert failures(made) == [message]
    else:
        assert [text.split()[0] for text in steps(made)] == ["mark"]


def test_an_interface_that_names_another_link_than_the_record_is_told_and_left() -> None:
    now, _ = plan_cases.read(f"link ens3\nguest vm1 stopped\nnic {NIC} ifname=tap7")
    assert now.guest.config is not None
    guest = replace(now.guest, config=now.guest.config.replace('dev="tap7"', 'dev="tap8"'))
    made = repair(replace(now, guest=guest), Evidence(held=(), uuids=()))
    assert failures(made) == [f"the <interface> of NIC {NIC} of vm1 names tap8, its record tap7"]


def test_a_guest_that_takes_no_change_now_keeps_its_dead_nic() -> None:
    made = planned(f'link ens3\nguest vm1 running "unfit=is being migrated"\nnic {NIC}')
    assert failures(made) == ["vm1 is being migrated"]


def test_what_the_kernel_would_refuse_is_told() -> None:
    made = planned(
        f"""
        link ens3 mtu=1400
        link gn525400000001 on=ens3 mode=bridge mac={NIC} mtu=1400 of=vm1
        guest vm1 running
        nic {NIC} mtu=1500
        """,
        held=["gn525400000001"],
    )
    assert failures(made) == ["the MTU 1500 is more than that of ens3, 1400"]


def test_a_link_that_no_interface_names_stays_while_it_is_held() -> None:
    lines = f"""
        link ens3
        link ens3.11 on=ens3 vlan=11 of=vlan
        link gn525400000001 on=ens3.11 mode=bridge mac={NIC} of=vm1
        guest vm1 running
        nic {NIC} on=ens3.11 lost
        """
    assert steps(planned(lines)) == [
        "write the metadata of vm1 (live, config)", "delete gn525400000001", "delete ens3.11",
    ]  # fmt: skip
    made = planned(lines, held=["gn525400000001"])
    assert [str(step) for step in made.steps] == ["write the metadata of vm1 (live, config)"]
    assert [failure.message for failure in made.failures] == [
        "gn525400000001 is held open by a process, though no <interface> of vm1 names it"
    ]


def test_a_renamed_link_is_named_back_while_the_guest_holds_it_and_is_a_leftover_when_nobody_does() -> None:
    lines = f"""
        link ens3
        link foo0 on=ens3 mode=bridge mac={NIC} of=vm1
        guest vm1 running
        nic {NIC}
        """
    first, second = planned(lines, held=["foo0"]).failures
    assert first.message == f"gn525400000001, the NIC {NIC} of vm1, is called foo0 now"
    assert first.hint == "ip link set foo0 down; ip link set foo0 name gn525400000001; ip link set gn525400000001 up"
    assert second.message.startswith("foo0 is held open by a process")
    made = planned(lines)
    assert [str(step) for step in made.steps] == ["delete foo0"]
    assert [(failure.message, failure.hint) for failure in made.failures] == [
        (f"{NIC} is the MAC of foo0 on ens3", "give that one another MAC, or delete it")
    ]


def test_damaged_metadata_is_not_guessed_at() -> None:
    with pytest.raises(ConflictError, match="damaged"):
        planned("link ens3\nguest vm1 stopped\nrecord mac=x")
