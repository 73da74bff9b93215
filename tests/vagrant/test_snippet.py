"""The lines of a Vagrantfile: what they say, what is refused, and that Ruby reads each name as it is."""

import json
import subprocess
from collections.abc import Callable

import pytest

from guestnet.errors import ConflictError, GuestnetError, UsageError
from guestnet.machine import machine_id
from guestnet.model import Link, Mac, Mode
from guestnet.plan.host import Host
from guestnet.plan.vagrant import Type, Wanted, quoted, snippet
from tests.conftest import Answer, Namespace

HOST = Host(
    links=(
        Link(index=1, name="lo", loopback=True),
        Link(index=2, name="ens3", mac="52:54:00:aa:00:01", up=True),
        Link(index=3, name="ens4", mac="52:54:00:aa:00:02", up=True, master=4, port_kind="bridge"),
        Link(index=4, name="br0", kind="bridge", mac="52:54:00:aa:00:02", up=True),
        Link(index=5, name="wlan0", mac="52:54:00:aa:00:03", up=True),
        Link(index=6, name="virbr0", kind="bridge", mac="52:54:00:aa:00:04", up=True),
        Link(index=7, name="macvtap0", kind="macvtap", mac="52:54:00:00:00:07", parent=2, mode=Mode.BRIDGE, up=True),
    ),
    wireless=frozenset({"wlan0"}),
)  # fmt: skip


def test_the_lines_say_parent_mode_and_mac_in_libvirts_words() -> None:
    made = snippet(Wanted(machine="vm1", parent="ens3", mode=Mode.VEPA), HOST, "id")
    assert made.ruby == (
        'config.vm.define "vm1" do |machine|\n'
        "  machine.vm.network :public_network,\n"
        '    dev: "ens3",\n'
        '    type: "direct",\n'
        '    mode: "vepa",\n'
        f'    mac: "{Mac.derive("id", "vm1", "ens3", 0)}",\n'
        "    trust_guest_rx_filters: true\n"
        "end\n"
    )
    assert (made.first, made.notes) == ((), ())


def test_the_mac_of_a_machine_that_runs_is_no_rival_of_its_own() -> None:
    made = snippet(Wanted(machine="vm1", parent="ens3", mac=Mac("52:54:00:00:00:07")), HOST, "id")
    assert made.mac == "52:54:00:00:00:07"


def test_passthru_is_spelt_as_libvirt_does() -> None:
    bare = Host(links=HOST.links[:2])
    assert 'mode: "passthrough"' in snippet(Wanted(machine="vm1", parent="ens3", mode=Mode.PASSTHRU), bare, "id").ruby


def test_a_port_of_a_bridge_has_neither_mode_nor_filter() -> None:
    ruby = snippet(Wanted(machine="vm1", parent="br0", type=Type.BRIDGE), HOST, "id").ruby
    assert 'type: "bridge"' in ruby
    assert "mode:" not in ruby
    assert "trust_guest_rx_filters" not in ruby


def test_vlans_of_a_vlan_are_made_one_after_the_other() -> None:
    made = snippet(Wanted(machine="vm1", parent="ens3.11.12"), HOST, "id")
    assert made.device == "ens3.11.12"
    assert made.first == (
        "guestnet vlan add ens3.11 --parent ens3 --vlan 11",
        "guestnet vlan add ens3.11.12 --parent ens3.11 --vlan 12",
    )


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        (Wanted(machine="vm1", parent="lo"), ConflictError, "loopback"),
        (Wanted(machine="vm1", parent="ens4"), ConflictError, "is a port of br0"),
        (Wanted(machine="vm1", parent="wlan0.11"), ConflictError, "Wi-Fi"),
        (Wanted(machine="vm1", parent="ens33"), GuestnetError, "there is no interface ens33"),
        (Wanted(machine="vm1", parent="ens3", type=Type.BRIDGE), ConflictError, "is no bridge"),
        (Wanted(machine="vm1", parent="br0.11", type=Type.BRIDGE), ConflictError, "VLAN 11, to be made"),
        (Wanted(machine="vm1", parent="br0", type=Type.BRIDGE, mode=Mode.VEPA), UsageError, "has no mode"),
        (Wanted(machine="vm1", parent="ens3", mode=Mode.SOURCE), UsageError, "mode source"),
        (Wanted(machine="vm1", parent="ens3", mode=Mode.PASSTHRU), ConflictError, "takes ens3 whole"),
        (Wanted(machine="vm1", parent="ens3", mac=Mac("52:54:00:aa:00:01")), ConflictError, "the MAC of ens3 itself"),
        (Wanted(machine="vm1", parent="ens3", model="e1000", trusted=True), UsageError, "virtio NIC"),
        (Wanted(machine='v"; system("id"); "', parent="ens3"), UsageError, "is not the name of a machine"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(wanted: Wanted, error: type[GuestnetError], said: str) -> None:
    with pytest.raises(error) as refused:
        snippet(wanted, HOST, "id")
    assert said in refused.value.message


def test_a_name_that_vagrant_libvirt_leaves_out_is_said_aloud() -> None:
    [note] = snippet(Wanted(machine="vm1", parent="virbr0"), HOST, "id").notes
    assert "host_device_exclude_prefixes" in note


def test_ruby_reads_a_quoted_text_as_it_is() -> None:
    texts = ["ens3.11", 'a"b', "a\\b", "#{1 + 1}", "#@x #$y #", "'", "\n\x1b\x7f", "é ü 日", "\U0001f600"]
    listed = ", ".join(map(quoted, texts))
    done = subprocess.run(
        ["ruby", "-rjson", "-e", f"puts JSON.generate([{listed}])"],
        capture_output=True, text=True, check=True, timeout=30, env={"LANG": "C.UTF-8"},
    )  # fmt: skip
    assert json.loads(done.stdout) == texts


@pytest.mark.root
def test_the_command_answers_in_json_and_refuses_a_port_of_a_bridge(
    parent: Namespace, run_guestnet: Callable[..., Answer]
) -> None:
    answer = run_guestnet("vagrant", "snippet", "vm1", "--parent", "nic0", "--vlan", "11", "--json", netns=parent.name)
    assert answer.code == 0
    assert answer.json["mac"] == Mac.derive(machine_id(), "vm1", "nic0.11", 0)
    assert answer.json["first"] == ["guestnet vlan add nic0.11 --parent nic0 --vlan 11"]
    assert answer.json["ruby"].startswith('config.vm.define "vm1" do |machine|')
    parent.ip("link add br0 type bridge")
    parent.ip("link set nic0 master br0")
    answer = run_guestnet("vagrant", "snippet", "vm1", "--parent", "nic0", netns=parent.name)
    assert (answer.code, answer.out) == (5, "")
    assert "hint: use the bridge itself: --parent br0" in answer.err
