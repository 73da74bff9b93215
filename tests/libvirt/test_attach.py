"""guestnet attach, on guests that run, guests that do not, and what comes of it on the wire."""

import re
from collections.abc import Callable

import pytest

from tests.libvirt.conftest import Host, address, ping

pytestmark = [pytest.mark.root, pytest.mark.guest]


def interface(xml: str, mac: str) -> str:
    """The <interface> with that MAC, as libvirt printed it."""
    return next((one for one in re.findall(r"<interface.*?</interface>", xml, re.DOTALL) if mac in one), "")


def test_guests_of_two_nodes_answer_each_other_over_ipv4_and_ipv6(n1: Host, n2: Host) -> None:
    macs = [
        host.json("attach", guest, "--parent", "nic0", "--mode", "bridge")["nics"][0]["mac"]
        for host, guest in ((n1, "n1g1"), (n2, "n2g1"))
    ]
    first, second = n1.guest("n1g1"), n2.guest("n2g1")
    address(first, macs[0], "203.0.113.1/24", "2001:db8:71::1/64", dad=True)
    address(second, macs[1], "203.0.113.2/24", "2001:db8:71::2/64", dad=True)
    assert ping(first, "203.0.113.2")
    assert ping(second, "203.0.113.1")
    assert ping(first, "2001:db8:71::2")
    assert ping(second, "2001:db8:71::1")


def test_two_guests_of_one_node_talk_in_bridge_mode_and_not_in_private_mode(n1: Host) -> None:
    first, second = n1.guest("n1g1"), n1.guest("n1g2")
    nics = {guest.name: n1.json("attach", guest.name, "--parent", "nic0")["nics"][0] for guest in (first, second)}
    address(first, nics["n1g1"]["mac"], "203.0.113.1/24")
    address(second, nics["n1g2"]["mac"], "203.0.113.2/24")
    assert ping(first, "203.0.113.2")
    for guest, nic in nics.items():
        n1.json("set", guest, nic["ifname"], "--mode", "private")
    assert first.run("ping -c 2 -W 1 203.0.113.2")[0] != 0


@pytest.mark.parametrize("mode", ["bridge", "vepa", "private", "passthru", "passthrough"])
def test_a_guest_reaches_the_other_node_in_every_mode(n1: Host, mode: str) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic1", "--mode", mode)["nics"][0]
    link = n1.links()[nic["ifname"]]
    assert link["linkinfo"]["info_data"]["mode"] == mode.replace("passthrough", "passthru")
    assert (link["address"], link["link"], link["operstate"]) == (nic["mac"], "nic1", "UP")
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.77/24", "2001:db8:51::77/64")
    assert ping(guest, "198.51.100.2")
    assert ping(guest, "2001:db8:51::2")


def test_what_is_reported_is_what_ip_and_virsh_show(n1: Host) -> None:
    done = n1.json("attach", "n1g1", "--parent", "nic0")
    nic = done["nics"][0]
    assert (done["guest"], done["live"], done["config"], done["changed"]) == ("n1g1", True, True, True)
    assert nic["ifname"] == "gn" + nic["mac"].replace(":", "")
    link = n1.links()[nic["ifname"]]
    assert link["linkinfo"]["info_kind"] == "macvtap"
    assert link["ifalias"].startswith("guestnet:1:" + n1.virsh("domuuid", "n1g1").strip())
    assert (link["group"], link["inet6_addr_gen_mode"], link["allmulti"]) == ("1735292019", "none", 1)
    sysctl = f"/proc/sys/net/ipv6/conf/{nic['ifname']}"
    assert n1.run("cat", f"{sysctl}/disable_ipv6", f"{sysctl}/autoconf", f"{sysctl}/accept_ra").split() == [
        "1",
        "0",
        "0",
    ]
    live, config = interface(n1.live("n1g1"), nic["mac"]), interface(n1.config("n1g1"), nic["mac"])
    for xml in (live, config):
        assert f"<target dev='{nic['ifname']}' managed='no'/>" in xml
        assert "<interface type='ethernet'>" in xml
    domain, bus, slot, function = re.split(r"[:.]", nic["pci"])
    assert f"domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'" in live
    for xml in (n1.live("n1g1"), n1.config("n1g1")):
        assert f'<guestnet:nic mac="{nic["mac"]}" parent="nic0" mode="bridge"' in xml
    assert 0 < done["seconds"] < 30


def test_the_same_attach_again_takes_no_step_and_says_so(n1: Host) -> None:
    words = ("attach", "n1g1", "--parent", "nic0", "--mode", "vepa", "--queues", "2")
    first = n1.json(*words)
    state = n1.state()
    again = n1.json(*words)
    assert first["changed"]
    assert (again["changed"], again["steps"], again["nics"]) == (False, [], first["nics"])
    assert "unchanged" in n1.guestnet(*words, check=True).out
    assert n1.json("attach", "n1g1", "--parent", "nic0")["steps"] == []
    assert n1.state() == state


def test_a_stopped_guest_gets_its_configuration_and_starts_on_it(n1: Host) -> None:
    n1.virsh("destroy", "n1g2")
    try:
        done = n1.json("attach", "n1g2", "--parent", "nic0")
        assert (done["live"], done["config"], done["nics"][0]["pci"]) == (False, True, "")
        n1.virsh("start", "n1g2")
        guest = n1.guest("n1g2")
        guest.wait_ready()
        address(guest, done["nics"][0]["mac"], "198.51.100.78/24")
        assert ping(guest, "198.51.100.2")
    finally:
        if n1.virsh("domstate", "n1g2").strip() == "shut off":
            n1.virsh("start", "n1g2")
        n1.guest("n1g2").wait_ready()


def test_live_and_config_mean_what_they_mean_in_virsh(n1: Host) -> None:
    live = n1.json("attach", "n1g1", "--parent", "nic0", "--live", "--mac", "52:54:00:00:00:01")
    assert (live["live"], live["config"]) == (True, False)
    assert "52:54:00:00:00:01" in n1.live("n1g1")
    assert "52:54:00:00:00:01" not in n1.config("n1g1")
    config = n1.json("attach", "n1g1", "--parent", "nic0", "--config", "--mac", "52:54:00:00:00:02")
    assert (config["live"], config["config"]) == (False, True)
    assert "52:54:00:00:00:02" not in n1.live("n1g1")
    assert "52:54:00:00:00:02" in n1.config("n1g1")
    assert n1.json("attach", "n1g1", "--parent", "nic0", "--mac", "52:54:00:00:00:02")["steps"] != []
    assert "52:54:00:00:00:02" in n1.live("n1g1")


def test_every_option_reaches_link_xml_and_guest(n1: Host) -> None:
    words = ("--mac", "52:54:00:00:00:21", "--ifname", "uplink", "--queues", "2", "--mtu", "1300", "--link", "down")
    nic = n1.json("attach", "n1g1", "--parent", "nic0", *words, "--multicast", "filtered")["nics"][0]
    assert (nic["ifname"], nic["mac"], nic["model"]) == ("uplink", "52:54:00:00:00:21", "virtio")
    link = n1.links()["uplink"]
    assert (link["mtu"], link["allmulti"], link["address"]) == (1300, 0, "52:54:00:00:00:21")
    for xml in (interface(n1.live("n1g1"), nic["mac"]), interface(n1.config("n1g1"), nic["mac"])):
        for part in ("queues='2'", "<mtu size='1300'/>", "<link state='down'/>"):
            assert part in xml
    guest = n1.guest("n1g1")
    name = guest.wait_nic(nic["mac"])
    status, output = guest.run(f"ip link set {name} up; cat /sys/class/net/{name}/mtu /sys/class/net/{name}/carrier")
    assert (status, output.split()) == (0, ["1300", "0"])


def test_a_boot_order_is_written_where_the_guest_boots_by_device(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(ports=3, extra="<interface type='user'><model type='virtio'/><boot order='1'/></interface>")
    nic = n1.json("attach", name, "--parent", "nic0", "--boot-order", "2")["nics"][0]
    for xml in (n1.live(name), n1.config(name)):
        assert "<boot order='2'/>" in interface(xml, nic["mac"])


def test_an_e1000e_is_plugged_in_without_a_vnet_header(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0", "--model", "e1000e")["nics"][0]
    assert nic["model"] == "e1000e"
    assert "<model type='e1000e'/>" in interface(n1.live("n1g1"), nic["mac"])


def test_several_parents_in_one_call_give_several_nics(n1: Host) -> None:
    nics = n1.json("attach", "n1g1", "--parent", "nic0", "--parent", "nic1", "--parent", "nic0")["nics"]
    assert [nic["parent"] for nic in nics] == ["nic0", "nic1", "nic0"]
    assert len({nic["mac"] for nic in nics}) == len({nic["pci"] for nic in nics}) == 3
    links = n1.links()
    assert [links[nic["ifname"]]["link"] for nic in nics] == ["nic0", "nic1", "nic0"]
    assert n1.json("attach", "n1g1", "--parent", "nic0", "--parent", "nic1", "--parent", "nic0")["steps"] == []


def test_a_parent_that_is_down_is_brought_up_and_that_is_said(n1: Host) -> None:
    n1.run("ip", "link", "set", "nic1", "down")
    answer = n1.guestnet("attach", "n1g1", "--parent", "nic1", check=True)
    assert "nic1 was down and is brought up" in answer.out
    assert "UP" in n1.links()["nic1"]["flags"]


def test_a_dry_run_prints_the_steps_and_changes_nothing(n1: Host) -> None:
    before = n1.state()
    answer = n1.guestnet("attach", "n1g1", "--parent", "nic0", "--dry-run", check=True)
    assert answer.out.splitlines()[0].startswith("would make macvtap gn")
    assert answer.out.splitlines()[-1].startswith("would plug NIC")
    assert n1.state() == before
    done = n1.json("attach", "n1g1", "--parent", "nic0")
    assert [f"would {step}" for step in done["steps"]] == answer.out.splitlines()


def test_a_template_of_ones_own_keeps_its_elements(n1: Host) -> None:
    own = n1.node.own / "run" / "own.xml"
    own.write_text("<interface type='ethernet'><driver name='qemu' rx_queue_size='512'/></interface>")
    try:
        nic = n1.json("attach", "n1g1", "--parent", "nic0", "--template", "/run/own.xml")["nics"][0]
        assert "rx_queue_size='512'" in interface(n1.live("n1g1"), nic["mac"])
    finally:
        own.unlink()


def test_with_the_direct_backend_libvirt_makes_the_macvtap(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0", "--backend", "direct", "--mode", "bridge")["nics"][0]
    assert nic["ifname"].startswith("macvtap")
    xml = interface(n1.live("n1g1"), nic["mac"])
    assert "<interface type='direct' trustGuestRxFilters='yes'>" in xml
    assert "<source dev='nic0' mode='bridge'/>" in xml
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.79/24", "2001:db8:51::79/64")
    assert ping(guest, "198.51.100.2")
    assert ping(guest, "2001:db8:51::2")
    assert n1.json("attach", "n1g1", "--parent", "nic0", "--backend", "direct")["steps"] == []
