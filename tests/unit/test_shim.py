"""The plan of the host's own link, and the unit that makes it again at boot."""

from ipaddress import ip_interface, ip_network

import pytest

from guestnet import templates
from guestnet.errors import ConflictError, NotFoundError, UsageError
from guestnet.inet import Assigned, Entry
from guestnet.model import GROUP, SHIM_ALIAS, VLAN_ALIAS, Link, LinkName, Mac, Mode, guest_alias
from guestnet.plan import shim
from guestnet.plan.host import Host
from guestnet.plan.topology import Contents
from tests.unit.conftest import MACHINE_ID

NIC = Link(index=2, name="ens3", mac="52:54:00:aa:00:01", mtu=1500, up=True, carrier=True)
SHIM = Link(
    index=5, name="shim-ens3", kind="macvlan", mac="52:54:00:00:00:05", mtu=1500, up=True, mode=Mode.BRIDGE, parent=2,
    group=GROUP, alias=SHIM_ALIAS,
)  # fmt: skip
SETTINGS = {
    **dict.fromkeys(shim.sysctls_of("default"), "0"),
    **{name: "0" if "ipv6" in name else "1" for name in shim.sysctls_of("shim-ens3")},
}
UUID = "11111111-1111-4111-8111-111111111111"


def guest(mode: Mode, name: str = "vm1", index: int = 7) -> Link:
    return Link(
        index=index, name=f"gn{index}", kind="macvtap", mac=f"52:54:00:00:00:{index:02x}", mode=mode, parent=2, up=True,
        group=GROUP, alias=guest_alias(UUID, name),
    )  # fmt: skip


def made(
    *links: Link, addresses: tuple[Assigned, ...] = (), routes: tuple[Entry, ...] = (), **wanted: object
) -> shim.Plan:
    said: dict[str, object] = {"parent": "ens3", "addresses": (ip_interface("192.0.2.9/32"),), **wanted}
    there = (NIC, *links)
    settings = SETTINGS if SHIM in links else {name: SETTINGS[name] for name in shim.sysctls_of("default")}
    contents = Contents(links=there, addresses=addresses, routes=routes)
    return shim.add(shim.Wanted(**said), Host(links=there), contents, MACHINE_ID, settings)  # type: ignore[arg-type]


def words(plan: shim.Plan) -> list[str]:
    return [str(step) for step in plan.steps]


def test_a_new_one_answers_for_itself_only_and_takes_no_address_by_itself() -> None:
    plan = made(guest(Mode.BRIDGE))
    assert words(plan) == [
        f"make macvlan shim-ens3 on ens3, mode bridge, MAC {Mac.derive(MACHINE_ID, 'the host', 'ens3', 0)}",
        "mark shim-ens3 as guestnet:1:shim",
        "set net.ipv4.conf.shim-ens3.arp_ignore to 1",
        "set net.ipv6.conf.shim-ens3.accept_ra to 0",
        "set net.ipv6.conf.shim-ens3.autoconf to 0",
        "bring shim-ens3 up",
        "give shim-ens3 the address 192.0.2.9/32",
    ]


def test_what_is_so_needs_no_step() -> None:
    has = Assigned(index=5, address=ip_interface("192.0.2.9/32"), by_hand=True)
    route = Entry(to=ip_network("192.0.2.50/32"), via=None, index=5, onlink=False, ours=True)
    plan = made(SHIM, addresses=(has,), routes=(route,))
    assert words(plan) == []
    assert plan.name == "shim-ens3"


@pytest.mark.parametrize("mode", [Mode.VEPA, Mode.PRIVATE, Mode.PASSTHRU])
def test_no_link_is_made_that_would_reach_no_guest(mode: Mode) -> None:
    with pytest.raises(ConflictError, match="vm1") as caught:
        made(guest(mode))
    assert caught.value.hint


def test_with_one_guest_in_mode_bridge_the_others_are_a_note() -> None:
    plan = made(guest(Mode.BRIDGE), guest(Mode.VEPA, "vm2", 8))
    assert plan.notes == ("gn8 of vm2 is in mode vepa: the host does not reach it",)


def test_vepa_is_taken_with_a_yes_and_private_is_not() -> None:
    assert made(guest(Mode.VEPA), anyway=True).notes == ()
    with pytest.raises(ConflictError):
        made(guest(Mode.PRIVATE), anyway=True)


def test_a_subnet_that_the_host_has_already_is_refused_with_the_way_out() -> None:
    host = Assigned(index=2, address=ip_interface("192.0.2.1/24"), by_hand=True)
    with pytest.raises(ConflictError) as caught:
        shim.add(
            shim.Wanted(parent="ens3", addresses=(ip_interface("192.0.2.9/25"),)), Host(links=(NIC,)),
            Contents(links=(NIC,), addresses=(host,)), MACHINE_ID, {},
        )  # fmt: skip
    assert "--address 192.0.2.9/32" in caught.value.hint


@pytest.mark.parametrize(
    "wanted",
    [
        {"addresses": ()},
        {"addresses": (ip_interface("192.0.2.9/32"), ip_interface("192.0.2.9/24"))},
        {"routes": (ip_network("0.0.0.0/0"),)},
        {"routes": (ip_network("2001:db8::/64"),)},
    ],
)
def test_words_that_cannot_be_meant_are_usage_errors(wanted: dict[str, object]) -> None:
    said: dict[str, object] = {"parent": "ens3", "addresses": (ip_interface("192.0.2.9/32"),), **wanted}
    with pytest.raises(UsageError) as caught:
        shim.check_words(shim.Wanted(**said))  # type: ignore[arg-type]
    assert caught.value.hint


def test_its_name_is_made_of_the_parent_and_never_too_long() -> None:
    assert shim.name_for("ens3.11") == "shim-ens3.11"
    long = shim.name_for("enp0s31f6np0.100")
    assert len(long) <= 15
    assert long == shim.name_for("enp0s31f6np0.100") != shim.name_for("enp0s31f6np0.101")


def test_another_name_than_the_one_it_has_is_a_conflict() -> None:
    with pytest.raises(ConflictError, match="shim-ens3"):
        made(SHIM, name=LinkName("other"))


def test_it_is_found_by_its_name_and_by_its_parents() -> None:
    host = Host(links=(NIC, SHIM, guest(Mode.BRIDGE)))
    assert shim.delete("shim-ens3", host) is SHIM
    assert shim.delete("ens3", host) is SHIM
    with pytest.raises(ConflictError, match="gn7"):
        shim.delete("gn7", host)
    with pytest.raises(NotFoundError):
        shim.delete("ens4", host)


def test_the_unit_is_bound_to_the_card_and_says_the_words_as_systemd_reads_them() -> None:
    nic = Link(index=2, name="en-p0", mac="52:54:00:aa:00:01", mtu=1500, up=True)
    vlan = Link(
        index=3, name="en-p0.11", kind="vlan", vlan=11, vlan_protocol="802.1Q", parent=2, up=True, group=GROUP,
        alias=VLAN_ALIAS, mtu=1500,
    )  # fmt: skip
    wanted = shim.Wanted(parent="en-p0.11", addresses=(ip_interface("192.0.2.9/32"),), mtu=1400, anyway=True)
    texts = []
    for links in ((nic,), (nic, vlan)):  # the VLAN is made by what the unit calls, and is not there before
        plan = shim.add(wanted, Host(links=links), Contents(links=links), MACHINE_ID, {})
        made = shim.unit(plan, templates.read("systemd/guestnet-host.service").decode(), ["/a b", "100%", '$x"\\'])
        texts.append(made.text)
        assert made.name == "guestnet-host-shim\\x2den\\x2dp0.11.service"
    assert texts[0] == texts[1]
    assert "BindsTo=sys-subsystem-net-devices-en\\x2dp0.device\n" in texts[0]
    assert 'ExecStart="/a b" "100%%" "$$x\\"\\\\" "host" "add" "en-p0.11" "--name" "shim-en-p0.11" "--mac"' in texts[0]
    assert '"--address" "192.0.2.9/32" "--mtu" "1400" "--yes"\n' in texts[0]
    assert "@" not in texts[0]


def test_the_unit_of_one_that_is_there_has_all_that_it_has() -> None:
    six = Assigned(index=5, address=ip_interface("2001:db8::9/128"), by_hand=True)
    by_itself = Assigned(index=5, address=ip_interface("fe80::1/64"), by_hand=False)
    route = Entry(to=ip_network("192.0.2.50/32"), via=None, index=5, onlink=False, ours=True)
    plan = made(SHIM, addresses=(six, by_itself), routes=(route,))
    assert [str(one) for one in plan.addresses] == ["192.0.2.9/32", "2001:db8::9/128"]
    assert [str(one) for one in plan.routes] == ["192.0.2.50/32"]
    assert (plan.mac, plan.mtu) == (SHIM.mac, None)
