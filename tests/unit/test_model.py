"""The words: what is taken, what is refused, and that nothing but a refusal comes of odd input."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestnet.errors import UsageError
from guestnet.model import (
    ALIAS_PREFIX,
    GROUP,
    HOST_ALIAS,
    VLAN_ALIAS,
    Bandwidth,
    Link,
    LinkName,
    Mac,
    Mode,
    Owner,
    ParentName,
    VlanProtocol,
    guest_alias,
    vlan_id,
)

anything = st.text(st.characters(), max_size=40)  # surrogates, as undecodable arguments have them, included


def attempt(parse: Callable[[str], Any], text: Any) -> Any:
    """What ``parse`` makes of the text, or the refusal; nothing else may come of it."""
    try:
        return parse(text)
    except UsageError as error:
        refusal = error
    assert refusal.hint
    assert refusal.message.isprintable()
    return refusal


UUID = "11111111-1111-4111-8111-111111111111"


@given(st.binary(min_size=6, max_size=6).filter(lambda raw: any(raw) and not raw[0] & 1), st.sampled_from(":-"))
def test_a_unicast_address_is_taken_in_any_spelling(raw: bytes, between: str) -> None:
    mac = Mac(raw.hex(between).upper())
    assert mac == raw.hex(":")
    assert mac.ifname == "gn" + raw.hex()
    assert LinkName(mac.ifname) == mac.ifname


@pytest.mark.parametrize(
    "text",
    [
        "",
        "52:54:00:00:00",
        "52:54:00:00:00:00:01",
        "52:54:00:00:00:0g",
        "52:54-00:00:00:01",
        "525400000001",
        " 52:54:00:00:00:01",
        "52:54:00:00:00:01\n",
        "52:54:00:00:00:\u0660\u0661",  # digits, but not ours
        "00:00:00:00:00:00",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "33:33:00:00:00:01",
    ],
)
def test_what_no_nic_can_have_is_refused_as_its_address(text: str) -> None:
    with pytest.raises(UsageError):
        Mac(text)


@given(anything)
@example("\udcff")
def test_any_text_is_an_address_or_refused(text: str) -> None:
    mac = attempt(Mac, text)
    assert isinstance(mac, UsageError) or Mac(mac) == mac


@given(anything, anything, anything, st.integers(0, 300))
@example("", "\udcff", "", 0)
def test_a_derived_address_is_always_the_same_and_one_a_nic_can_have(
    machine: str, guest: str, parent: str, number: int
) -> None:
    mac = Mac.derive(machine, guest, parent, number)
    assert Mac(mac) == mac == Mac.derive(machine, guest, parent, number)
    assert mac.startswith("52:54:00:")


def test_a_derived_address_differs_by_machine_guest_parent_and_number() -> None:
    seeds = [("a", "vm1", "ens3", 0), ("b", "vm1", "ens3", 0), ("a", "vm2", "ens3", 0), ("a", "vm1", "ens4", 0),
             ("a", "vm1", "ens3", 1), ("av", "m1", "ens3", 0), ("a", "vm1e", "ns3", 0)]  # fmt: skip
    assert len({Mac.derive(*seed) for seed in seeds}) == len(seeds)


def test_a_derived_address_is_the_one_it_was_in_the_first_release() -> None:
    assert Mac.derive("0123456789abcdef0123456789abcdef", "vm1", "ens3", 0) == "52:54:00:01:b6:1e"


@pytest.mark.parametrize("text", ["a", "lo", "ens3.100.11", "enp130s0f1np1d1", "wlp2s0", "br-lan", "x" * 15, "ü" * 7])
def test_a_name_the_kernel_takes_is_a_link_name(text: str) -> None:
    assert LinkName(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "a:b",
        "a%d",
        "a\tb",
        "a\n",
        "x" * 16,
        "ü" * 8,
        "a\x00",
        "\udcff",
        "\x1b[m",
        "a\ufffe",
    ],
)
def test_a_name_the_kernel_or_a_terminal_does_not_take_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        LinkName(text)
    assert refused.value.message.isprintable()


@given(anything)
def test_any_text_is_a_link_name_or_refused(text: str) -> None:
    name = attempt(LinkName, text)
    assert isinstance(name, UsageError) or 1 <= len(name.encode()) <= 15


@pytest.mark.parametrize("mode", Mode)
def test_a_mode_is_taken_in_the_kernels_spelling_and_in_libvirts(mode: Mode) -> None:
    assert Mode.parse(mode.value) is Mode.parse(mode.libvirt) is Mode.parse(mode.upper()) is mode


@given(anything)
def test_any_text_is_a_mode_or_refused(text: str) -> None:
    assert isinstance(attempt(Mode.parse, text), UsageError | Mode)


@given(st.integers(1, 4094))
def test_a_vlan_id_is_taken_as_number_and_as_text(number: int) -> None:
    assert vlan_id(number) == vlan_id(str(number)) == number


@pytest.mark.parametrize(
    "text", ["0", "4095", "-1", "", "1.5", "٣", "²", "1_0", "+1", " 1", "011", "0x10", "9" * 5000, 0, -1, 4095]
)
def test_what_is_no_vlan_id_is_refused(text: str | int) -> None:
    with pytest.raises(UsageError):
        vlan_id(text)


@given(anything | st.integers())
def test_any_text_is_a_vlan_id_or_refused(text: str | int) -> None:
    number = attempt(vlan_id, text)
    assert isinstance(number, UsageError) or 1 <= number <= 4094


@pytest.mark.parametrize("text", ["802.1Q", "802.1q", "802.1ad", "802.1AD"])
def test_a_vlan_protocol_is_taken_in_any_case(text: str) -> None:
    assert VlanProtocol.parse(text).lower() == text.lower()


@given(anything)
def test_any_text_is_a_vlan_protocol_or_refused(text: str) -> None:
    assert isinstance(attempt(VlanProtocol.parse, text), UsageError | VlanProtocol)


@pytest.mark.parametrize("text", ["ens3", "enp0s31f6np0.4011.4012", "x" * 127, "lan.1"])
def test_a_name_of_a_parent_may_be_longer_than_a_links(text: str) -> None:
    assert ParentName(text) == text


@given(anything)
def test_any_text_is_the_name_of_a_parent_or_refused(text: str) -> None:
    name = attempt(ParentName, text)
    assert isinstance(name, UsageError) or 1 <= len(name.encode()) <= 127


@pytest.mark.parametrize(
    ("link", "name"),
    [
        (Link(index=1, name="ens3", altnames=("enp1s0",)), "ens3"),
        (Link(index=1, name="gv0123abcd.11", kind="vlan", vlan=11, altnames=("x.12", "enp1s0.11")), "enp1s0.11"),
        (Link(index=1, name="gv0123abcd.11", kind="vlan", vlan=11, altnames=("x.12",)), "gv0123abcd.11"),
        (Link(index=1, name="gv0123abcd.11", kind="dummy", altnames=("x.11",)), "gv0123abcd.11"),
        (Link(index=1, name="vlan11", kind="vlan", vlan=11, altnames=("ens3.11",)), "vlan11"),
    ],
)
def test_the_readable_name_of_a_link_is_its_own_unless_that_is_a_short_one_of_ours(link: Link, name: str) -> None:
    assert link.readable == name


@given(
    st.builds(
        Bandwidth, average=st.integers(1, 9999999999), peak=st.none() | st.integers(1, 9999999999),
        burst=st.none() | st.integers(1, 9999999999),
    )
)  # fmt: skip
def test_a_rate_is_written_as_it_is_read(rate: Bandwidth) -> None:
    assert Bandwidth.parse(str(rate)) == rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100", Bandwidth(average=100)),
        ("100,", Bandwidth(average=100)),
        ("100,200", Bandwidth(average=100, peak=200)),
        ("100,,300", Bandwidth(average=100, burst=300)),
        ("100,0,0", Bandwidth(average=100)),
        ("0", None),
        ("0,5,5", None),
    ],
)
def test_a_rate_is_read_as_virsh_reads_it(text: str, rate: Bandwidth | None) -> None:
    assert Bandwidth.parse(text) == rate


@given(anything | st.from_regex(r"[0-9]{0,12}(,[0-9]{0,12}){0,3}", fullmatch=True))
def test_any_text_is_a_rate_or_refused(text: str) -> None:
    rate = attempt(Bandwidth.parse, text)
    assert rate is None or isinstance(rate, UsageError) or rate.average > 0


@given(anything.filter(lambda name: name.isprintable() and name))
def test_the_alias_of_a_link_says_whose_it_is_whatever_the_guest_is_called(name: str) -> None:
    link = Link(index=1, name="tap0", group=GROUP, alias=guest_alias(UUID, name))
    assert link.owner is Owner.GUEST
    assert link.guest_uuid == UUID
    assert name.startswith(link.guest_name)
    assert link.guest_name


def test_the_alias_of_a_guest_with_a_long_name_is_cut_between_characters() -> None:
    alias = guest_alias(UUID, "ü" * 200)
    assert len(alias.encode()) <= 255
    assert set(alias.rpartition(":")[2]) == {"ü"}


@pytest.mark.parametrize(
    ("group", "alias", "owner"),
    [
        (0, "", Owner.FOREIGN),
        (0, guest_alias(UUID, "vm1"), Owner.FOREIGN),
        (GROUP, guest_alias(UUID, "vm1"), Owner.GUEST),
        (GROUP, HOST_ALIAS, Owner.HOST),
        (GROUP, VLAN_ALIAS, Owner.HOST),
        (GROUP, "", Owner.HOST),
        (GROUP, "words of somebody's", Owner.HOST),
        (GROUP, ALIAS_PREFIX + "not-a-uuid:vm1", Owner.HOST),
    ],
)
def test_a_link_is_a_guests_only_with_our_group_and_a_uuid(group: int, alias: str, owner: Owner) -> None:
    assert Link(index=1, name="tap0", group=group, alias=alias).owner is owner
