"""The plan of NICs for a QEMU, and QEMU's own words, without any kernel."""

import json
from typing import Any

import pytest

from guestnet.errors import ConflictError, UsageError
from guestnet.model import GROUP, HOST_ALIAS, Link, LinkName, Mac, Mode, Owner, Request, qemu_alias
from guestnet.plan import qemu as plan
from guestnet.plan.host import Host
from guestnet.plan.qemu import Nic, Port, Vhost
from guestnet.plan.steps import AddLink, DeleteLink

MAC = Mac("52:54:00:00:00:01")
OTHER = Mac("52:54:00:00:00:02")
NIC = Link(index=2, name="ens3", mac="52:54:00:aa:00:01", mtu=1500, up=True)
VLAN = Link(
    index=3, name="ens3.11", mac=NIC.mac, mtu=1500, up=True, kind="vlan", vlan=11, vlan_protocol="802.1Q", parent=2
)


def macvtap(index: int, mac: str, *, alias: str, on: Link = NIC, **words: Any) -> Link:
    return Link(
        index=index, name="gn" + mac.replace(":", ""), kind="macvtap", mac=mac, mode=Mode.BRIDGE, up=True, mtu=1500,
        parent=on.index, group=GROUP, alias=alias, **words,
    )  # fmt: skip


def wire(*requests: Request, links: tuple[Link, ...] = (NIC, VLAN), **words: Any) -> plan.Wiring:
    words = {"guest": "web", "machine_id": "m", "alias": qemu_alias("web")} | words
    return plan.wire(requests, Host(links=links), **words)


# The links


def test_a_link_of_a_qemus_is_nobody_elses() -> None:
    assert macvtap(9, MAC, alias=qemu_alias("a:b")).owner is Owner.QEMU
    assert Link(index=9, name="x", alias=qemu_alias("web")).owner is Owner.FOREIGN
    assert len(qemu_alias("ä" * 300).encode()) <= 255


def test_macs_are_the_first_that_are_unused_and_the_same_each_time() -> None:
    first = wire(Request(parent="ens3"), Request(parent="ens3"), Request(parent="ens3.11"))
    assert first.nics == wire(Request(parent="ens3"), Request(parent="ens3"), Request(parent="ens3.11")).nics
    assert len({nic.mac for nic in first.nics}) == 3
    taken = macvtap(9, first.nics[0].mac, alias=qemu_alias("web"))
    assert wire(Request(parent="ens3"), links=(NIC, taken)).nics[0].mac == first.nics[1].mac
    assert wire(Request(parent="ens3"), guest="other").nics[0].mac != first.nics[0].mac


def test_a_vlan_for_two_nics_is_made_once() -> None:
    made = wire(Request(parent="ens3.12"), Request(parent="ens3.12"))
    assert sum(isinstance(step, AddLink) and step.new.kind == "vlan" for step in made.steps) == 1
    assert len(made.notes) == 1


def test_what_nobody_holds_any_more_is_deleted_first_and_leaves_its_mac() -> None:
    stale = macvtap(9, MAC, alias=qemu_alias("web"))
    made = wire(Request(parent="ens3", mac=MAC), links=(NIC, stale), stale=(stale,))
    assert made.steps[0] == DeleteLink(name=stale.name, index=9)
    assert isinstance(made.steps[1], AddLink)


def test_a_macvtap_of_the_hosts_own_that_is_just_so_is_used_again() -> None:
    there = macvtap(9, wire(Request(parent="ens3")).nics[0].mac, alias=HOST_ALIAS)
    assert wire(Request(parent="ens3"), links=(NIC, there), alias=HOST_ALIAS).steps == ()
    with pytest.raises(ConflictError, match="is taken by a macvtap on ens3"):
        wire(Request(parent="ens3", mode=Mode.VEPA), links=(NIC, there), alias=HOST_ALIAS)
    with pytest.raises(ConflictError, match="is taken by a macvtap on ens3"):
        wire(Request(parent="ens3", mac=Mac(there.mac)), links=(NIC, there))


def test_passthru_is_for_one_nic_with_its_parents_mac() -> None:
    (nic,) = wire(Request(parent="ens3", mode=Mode.PASSTHRU)).nics
    assert nic.mac == NIC.mac
    with pytest.raises(ConflictError, match="would be ignored"):
        wire(Request(parent="ens3", mode=Mode.PASSTHRU, mac=MAC))
    with pytest.raises(ConflictError, match="for one NIC"):
        wire(Request(parent="ens3"), Request(parent="ens3", mode=Mode.PASSTHRU))


def test_a_parent_with_another_mtu_is_told_to_virtio_guests_alone() -> None:
    jumbo = Link(index=2, name="ens3", mac=NIC.mac, mtu=9000, up=True)
    assert wire(Request(parent="ens3"), links=(jumbo,)).nics[0].mtu == 9000
    assert wire(Request(parent="ens3", model="e1000"), links=(jumbo,)).nics[0].mtu is None
    assert "host_mtu" not in plan.device(wire(Request(parent="ens3", model="e1000", mtu=1400)).nics[0])


@pytest.mark.parametrize(
    ("requests", "vhost", "said"),
    [
        ((Request(parent="a", mac=MAC), Request(parent="b", mac=MAC)), Vhost.AUTO, "MAC .* twice"),
        ((Request(parent="a", ifname=LinkName("x")),) * 2, Vhost.AUTO, "interface name x .* twice"),
        ((Request(parent="a", model="e1000"),), Vhost.ON, "vhost-net is for virtio"),
        ((Request(parent="a", model="e1000", queues=2),), Vhost.AUTO, "has one queue"),
        ((Request(parent="a", mode=Mode.SOURCE),), Vhost.AUTO, "mode source"),
    ],
)
def test_words_that_no_host_would_take_are_refused(requests: tuple[Request, ...], vhost: Vhost, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan.check_requests(requests, vhost)


# What QEMU is told


def test_the_command_line_has_what_each_nic_needs() -> None:
    name = "gn525400000001"
    one = Nic(mac=MAC, ifname="tap0", parent="ens3", mtu=1400)
    assert plan.command_line(one, [3]) == (
        "-netdev", f"tap,id={name},fd=3",
        "-device", f"virtio-net-pci,id={name},netdev={name},mac={MAC},host_mtu=1400",
    )  # fmt: skip
    assert plan.command_line(one, [3], [4])[1] == f"tap,id={name},fd=3,vhost=on,vhostfd=4"
    four = Nic(mac=MAC, ifname="tap0", parent="ens3", queues=4, model="virtio-transitional")
    assert plan.command_line(four, range(3, 7), range(7, 11)) == (
        "-netdev", f"tap,id={name},fds=3:4:5:6,vhost=on,vhostfds=7:8:9:10",
        "-device", f"virtio-net-pci-transitional,id={name},netdev={name},mac={MAC},mq=on,vectors=10",
    )  # fmt: skip
    assert plan.device(four, "rp1")["bus"] == "rp1"
    assert plan.device(Nic(mac=MAC, ifname="tap0", parent="ens3", model="e1000"))["driver"] == "e1000"
    assert [plan.model_of(driver) for driver in ("virtio-net-pci", "e1000")] == ["virtio", "e1000"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["qemu", "-name", "web"], "web"),
        (["qemu", "--name", "guest=web,debug-threads=on"], "web"),
        (["qemu", "-name", "debug-threads=on,guest=a,,b"], "a,b"),
        (["qemu", "-name", "web,process=x"], "web"),
        (["qemu", "-name", "debug-threads=on"], ""),
        (["qemu", "-name"], ""),
        ([], ""),
    ],
)
def test_the_guests_name_is_read_from_qemus_words(words: list[str], name: str) -> None:
    assert plan.guest_name(words) == name


# A QEMU that runs


def port(name: str, devices: int = 0, *, kind: str = "pcie-root-port", hotplug: bool = True) -> Port:
    return Port(id=name, type=kind, devices=devices, hotplug=hotplug)


def test_buses_are_free_ports_then_bridges_then_what_qemu_chooses() -> None:
    ports = [port("a", 1), port("b", hotplug=False), port("c"), port("d")]
    assert plan.choose_buses(ports, 2, root=False) == ("c", "d")
    bridge = port("p", 30, kind="pci-bridge")
    assert plan.choose_buses([port("c"), bridge], 1, root=False) == ("c",)
    assert plan.choose_buses([port("c"), port("p", 3, kind="pcie-pci-bridge")], 3, root=False) == ("c", "p", "p")
    assert plan.choose_buses([bridge], 1, root=False) == ("p",)
    assert plan.choose_buses([bridge], 2, root=True) == ("", "")
    for few in ([], [port("c")], [bridge]):
        with pytest.raises(ConflictError) as caught:
            plan.choose_buses(few, 2, root=False)
        assert "pcie-root-port" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "plug", "unplug"),
    [
        ("running", True, True), ("paused", True, False), ("prelaunch", True, False), ("suspended", True, False),
        ("inmigrate", False, False), ("postmigrate", False, False), ("shutdown", False, False),
    ],
)  # fmt: skip
def test_a_guest_in_each_state_takes_a_nic_or_gives_one_back_or_neither(status: str, plug: bool, unplug: bool) -> None:
    for asked, may in ((False, plug), (True, unplug)):
        if may:
            plan.check_state(status, unplug=asked)
        else:
            with pytest.raises(ConflictError):
                plan.check_state(status, unplug=asked)


def test_a_nic_that_a_qemu_has_not_is_told_with_the_near_ones() -> None:
    assert "did you mean gn525400000001?" in plan.unknown_nic("gn525400000011", ["gn525400000001"]).hint
    assert "it has none" in plan.unknown_nic("x", []).hint


# What a helper is told


HELPER = ["qemu", "helper", "--parent", "ens3"]
SAID = "tap,id=n0,helper=/usr/bin/guestnet qemu helper --parent ens3"
DEVICE = f"virtio-net-pci,netdev=n0,mac={MAC}"


@pytest.mark.parametrize(
    "line",
    [
        ["-netdev", SAID, "-device", DEVICE],
        ["--netdev", SAID, "--device", DEVICE],
        ["-netdev", "tap,id=n0,helper=sudo -C 64 guestnet qemu helper --parent ens3", "-device", DEVICE],
        ["-netdev", "tap,id=n0,helper='/opt/a,,b/guestnet' qemu helper --parent ens3", "-device", DEVICE],
        ["-nic", SAID.replace("id=n0,", "") + f",model=virtio-net-pci,mac={MAC}"],
        [
            *("-netdev", json.dumps({"type": "tap", "id": "n0", "helper": "guestnet qemu helper --parent ens3"})),
            *("-device", json.dumps({"driver": "virtio-net-pci", "netdev": "n0", "mac": str(MAC).upper()})),
        ],
        ["-netdev", "bridge,id=n0,helper=/usr/local/bin/mine", "-device", DEVICE],
        ["-netdev", "bridge,id=n0", "-device", DEVICE],
    ],
)
def test_the_nic_of_a_helper_is_found_in_qemus_words(line: list[str]) -> None:
    found = plan.told_of(["qemu-system-x86_64", *line, "-m", "512"], HELPER, "br0")
    assert found == (MAC,)


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["-netdev"],
        ["-netdev", "user,id=n0", "-device", DEVICE],
        ["-netdev", "tap,id=n0,ifname=tap0", "-device", DEVICE],
        ["-netdev", SAID],
        ["-netdev", SAID, "-device", "virtio-net-pci,netdev=n0"],
        ["-netdev", SAID, "-device", f"virtio-net-pci,netdev=n1,mac={MAC}"],
        ["-netdev", SAID + ",br=br7", "-device", DEVICE],
        ["-netdev", "{", "-device", DEVICE],
        ["-netdev", "[1]", "-device", "[2]"],
    ],
)
def test_a_nic_that_qemus_words_do_not_tell_is_not_made_up(line: list[str]) -> None:
    assert plan.told_of(["qemu-system-x86_64", *line], HELPER, "br0") == ()


def test_the_nics_of_our_own_words_count_before_those_of_other_helpers() -> None:
    line = [
        *(
            "-netdev",
            "tap,id=n1,helper=guestnet qemu helper --parent ens4 'unclosed",
            "-device",
            f"e1000,netdev=n1,mac={OTHER}",
        ),
        *("-netdev", SAID, "-device", DEVICE),
    ]
    assert plan.told_of(line, HELPER, "br0") == (MAC,)
    assert plan.told_of(line, ["qemu", "helper"], "br0") == (OTHER, MAC)
