"""guestnet list and show tell what is there, and what is out of line."""

import re
from collections.abc import Callable

import pytest

from tests.libvirt.conftest import Host, address, ping

pytestmark = [pytest.mark.root, pytest.mark.guest]


def test_a_row_has_what_xml_metadata_and_kernel_say(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0", "--mode", "vepa", "--queues", "2")["nics"][0]
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.81/24")
    assert ping(guest, "198.51.100.2")
    row = n1.json("list")[0]
    told = {
        key: row[key] for key in ("guest", "state", "interface", "parent", "vlan", "mode", "mac", "model", "queues")
    }
    assert told == {
        "guest": "n1g1", "state": "running", "interface": nic["ifname"], "parent": "nic0", "vlan": None,
        "mode": "vepa", "mac": nic["mac"], "model": "virtio", "queues": 2,
    }  # fmt: skip
    assert (row["live"], row["config"], row["carrier"], row["mtu"], row["problems"]) == (True, True, True, 1500, [])
    assert row["counters"]["rx_packets"] > 0
    assert row["counters"]["tx_packets"] > 0
    table = n1.guestnet("list", check=True).out.splitlines()
    assert " ".join(table[0].split()) == "GUEST INTERFACE PARENT VLAN MODE MAC MODEL IN CARRIER RX TX"
    assert table[1].split()[:6] == ["n1g1", nic["ifname"], "nic0", "-", "vepa", nic["mac"]]
    shown = n1.guestnet("show", "n1g1", check=True).out
    for fact in (nic["mac"], nic["pci"], "vepa", "live+config", "2 queues"):
        assert fact in shown


def test_no_nic_is_said_in_words(n1: Host) -> None:
    assert n1.json("list") == []
    assert n1.guestnet("list", "n1g1", check=True).out == "n1g1 has no NICs of guestnet's\n"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("ip", "link", "delete", "{if}"), "its macvtap is gone, the NIC is dead"),
        (("ip", "link", "set", "{if}", "down"), "{if} is down"),
        (("ip", "link", "set", "{if}", "address", "52:54:00:66:66:66"), "nothing reaches it"),
        (("ip", "link", "set", "{if}", "type", "macvtap", "mode", "private"), "is in mode private"),
        (("ip", "link", "set", "{if}", "allmulticast", "off"), "IPv6 does not work"),
        (("ip", "link", "set", "{if}", "alias", "mine"), "does not carry this guest's mark"),
        (("ip", "link", "set", "nic0", "down"), "no carrier: nic0 is down"),
    ],
)
def test_what_somebody_did_behind_our_back_is_told(n1: Host, command: tuple[str, ...], problem: str) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    words = [word.replace("{if}", nic["ifname"]) for word in command]
    try:
        n1.run(*words)
        row = n1.json("show", "n1g1")[0]
        assert any(problem.replace("{if}", nic["ifname"]) in one for one in row["problems"]), row["problems"]
        assert "!" in n1.guestnet("list", check=True).out
    finally:
        n1.run("ip", "link", "set", "nic0", "up")
        if "alias" in words:
            n1.run(
                "ip", "link", "set", nic["ifname"], "alias", f"guestnet:1:{n1.virsh('domuuid', 'n1g1').strip()}:n1g1"
            )


def forget(host: Host, guest: str) -> None:
    for scope in ("--live", "--config"):
        host.virsh("metadata", guest, "urn:guestnet:domain:1", "--remove", scope)


def test_a_nic_whose_record_is_gone_is_told_and_the_same_attach_mends_it(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    forget(n1, "n1g1")
    row = n1.json("show", "n1g1")[0]
    assert (row["mac"], row["parent"], row["mode"]) == (nic["mac"], "nic0", "bridge")
    assert "its record is gone" in row["problems"][0]
    again = n1.json("attach", "n1g1", "--parent", "nic0")
    assert [step.split()[:3] for step in again["steps"]] == [["write", "the", "metadata"]]
    assert n1.json("show", "n1g1")[0]["problems"] == []


def test_a_nic_whose_record_is_gone_is_detached_by_all(n1: Host) -> None:
    before = n1.state()
    n1.json("attach", "n1g1", "--parent", "nic0")
    forget(n1, "n1g1")
    n1.json("detach", "n1g1", "--all")
    assert n1.state() == before


def test_a_link_that_no_nic_names_is_told_and_detached(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    forget(n1, "n1g1")
    n1.virsh("detach-interface", "n1g1", "ethernet", "--mac", nic["mac"], "--live", "--config")
    n1.guest("n1g1").wait_no_nic(nic["mac"])
    problems = [problem for row in n1.json("list", "n1g1") for problem in row["problems"]]
    assert problems == ["no <interface> of its guest names it: guestnet repair n1g1 deletes it"]
    n1.guestnet("detach", "n1g1", nic["ifname"], check=True)
    assert nic["ifname"] not in n1.links()


def test_the_nic_of_a_copied_guest_is_told_and_made_its_own_by_detach_and_attach(
    n1: Host, bare_domain: Callable[..., str]
) -> None:
    name = bare_domain(start=False)
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    own = n1.config(name)
    uuid = n1.virsh("domuuid", name).strip()
    copy = re.sub("<uuid>.*</uuid>", f"<uuid>{uuid}</uuid>", n1.config("n1g1")).replace("<name>n1g1<", f"<name>{name}<")
    n1.virsh("define", "/dev/stdin", input=copy)
    way = f"guestnet detach {name} {nic['mac']}, then attach again"
    try:
        said = n1.json("show", name)[0]["problems"]
        assert f"{nic['ifname']} does not carry this guest's mark but that of n1g1: {way}" in said
        for verb in (("attach", name, "--parent", "nic0"), ("repair", name)):
            done = n1.guestnet(*verb)
            assert (done.code, "of the guest n1g1" in done.err, f"guestnet detach {name}" in done.err) == (
                5,
                True,
                True,
            )
        n1.guestnet("detach", name, nic["mac"], check=True)
        assert n1.json("attach", name, "--parent", "nic0")["nics"][0]["mac"] != nic["mac"]
        assert [row["problems"] for row in n1.json("list")] == [[], []]
        n1.guestnet("detach", name, "--all", check=True)
    finally:
        n1.virsh("define", "/dev/stdin", input=own)


def test_damaged_metadata_is_told_and_breaks_no_list(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(start=False)
    n1.virsh(
        "metadata",
        name,
        "urn:guestnet:domain:1",
        "--config",
        "--key",
        "g",
        "--set",
        '<attachments><nic mac="x"/></attachments>',
    )
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    rows = {row["guest"]: row for row in n1.json("list")}
    assert "is damaged" in rows[name]["problems"][0]
    assert rows["n1g1"]["mac"] == nic["mac"]
    done = n1.guestnet("attach", name, "--parent", "nic0")
    assert (done.code, "is damaged" in done.err) == (5, True)
    n1.virsh("metadata", name, "urn:guestnet:domain:1", "--config", "--remove")


def test_a_guest_or_nic_that_is_not_there_is_not_found(n1: Host) -> None:
    assert n1.guestnet("list", "n1g7").code == 3
    assert n1.guestnet("show", "n1g1", "gn1").code == 3
