"""The host's own link: the host and its guests talk by it, and where they could not it is refused."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestnet.lab.guest import Guest
from tests.libvirt.conftest import Host, address, ping
from tests.topology.conftest import Hosts

pytestmark = [pytest.mark.root, pytest.mark.guest]

ADD = ("host", "add", "nic0", "--address", "203.0.113.9/32", "--route", "203.0.113.1")
SIX = ("--address", "2001:db8:71::9/128", "--route", "2001:db8:71::1")
UNITS = "/etc/systemd/system"


@pytest.fixture
def n1(hosts: Hosts) -> Iterator[Host]:
    """A host; after the test it has no link of its own, and its guest no NIC."""
    yield hosts.n1
    for row in hosts.n1.json("host", "list"):
        hosts.n1.guestnet("host", "delete", row["name"])
    assert hosts.n1.guestnet("detach", "n1g1", "--all").code == 0


def reaches(host: Host, *words: str) -> bool:
    return bool(host.node.run(["ping", "-c", "1", "-W", "2", *words]).returncode == 0)


def answers(guest: Guest, address: str) -> bool:
    """Whether the guest gets an answer to one of two pings."""
    return guest.run(f"ping -c 2 -W 1 {address}")[0] == 0


def attach(host: Host, *words: str) -> Any:
    nic = host.json("attach", "n1g1", "--parent", "nic0", *words)["nics"][0]
    address(host.guest("n1g1"), nic["mac"], "203.0.113.1/24", "2001:db8:71::1/64")
    return nic


def test_host_and_guest_reach_each_other_by_it_and_by_nothing_else(n1: Host) -> None:
    attach(n1)
    n1.run("ip", "address", "add", "203.0.113.8/24", "dev", "nic0")
    try:
        assert not reaches(n1, "203.0.113.1")
        assert not answers(n1.guest("n1g1"), "203.0.113.8")
        made = n1.json(*ADD, *SIX)
        [row] = made["rows"]
        assert (row["name"], row["parent"], row["guests"], row["state"]) == ("shim-nic0", "nic0", ["n1g1"], "up")
        assert reaches(n1, "203.0.113.1")
        assert reaches(n1, "2001:db8:71::1")
        assert ping(n1.guest("n1g1"), "203.0.113.9")
        assert ping(n1.guest("n1g1"), "2001:db8:71::9")
        # it answers for its own address, and not for that of the parent
        assert not answers(n1.guest("n1g1"), "203.0.113.8")
        assert n1.json(*ADD, *SIX)["steps"] == []
        n1.json("host", "delete", "nic0")
        assert not reaches(n1, "203.0.113.1")
    finally:
        n1.run("ip", "address", "delete", "203.0.113.8/24", "dev", "nic0")


def test_another_address_or_route_is_added_to_it_and_what_its_unit_has_not_is_said(n1: Host) -> None:
    n1.json(*ADD, "--persist")
    assert n1.json(*ADD)["notes"] == []
    more = ("host", "add", "nic0", "--address", "203.0.113.10/32", "--route", "203.0.113.128/25")
    added = n1.json(*more)
    assert added["steps"] == [
        "give shim-nic0 the address 203.0.113.10/32", "add the route 203.0.113.128/25 dev shim-nic0"
    ]  # fmt: skip
    left_out = ["at boot shim-nic0 is made without 203.0.113.10/32, 203.0.113.128/25: --persist writes that too"]
    assert added["notes"] == n1.json(*ADD)["notes"] == left_out
    assert [step.split()[0] for step in n1.json(*more, "--persist")["steps"]] == ["write"]
    assert n1.json(*ADD)["notes"] == []
    [row] = n1.json("host", "list")
    assert set(row["addresses"]) == {"203.0.113.9/32", "203.0.113.10/32"}
    assert set(row["routes"]) == {"203.0.113.1/32", "203.0.113.128/25"}


@pytest.mark.parametrize("mode", ["vepa", "private"])
def test_it_is_refused_where_the_guests_mode_makes_it_impossible(n1: Host, mode: str) -> None:
    nic = attach(n1, "--mode", mode)
    answer = n1.guestnet(*ADD)
    assert answer.code == 5
    assert f"{nic['ifname']} of n1g1 is in mode {mode}" in answer.err
    assert f"guestnet set n1g1 {nic['ifname']} --mode bridge" in answer.err
    assert n1.json("host", "list") == []
    n1.json("set", "n1g1", nic["mac"], "--mode", "bridge")
    n1.json(*ADD)
    assert reaches(n1, "203.0.113.1")
    n1.json("set", "n1g1", nic["mac"], "--mode", mode)  # that it could not help today is no reason to refuse what is
    [row] = n1.json("host", "list")
    assert (row["guests"], row["unreached"]) == ([], ["n1g1"])
    assert not reaches(n1, "203.0.113.1")
    again = n1.json(*ADD)
    assert again["steps"] == []
    assert any("the host does not reach it" in note for note in again["notes"])


def test_vepa_is_taken_at_its_word_where_the_switch_sends_frames_back(hosts: Hosts, n1: Host) -> None:
    attach(n1, "--mode", "vepa")
    n1.json(*ADD, "--yes")
    port = ["ip", "netns", "exec", hosts.lab.switch, "bridge", "link", "set", "dev", "n1-nic0", "hairpin"]
    assert not reaches(n1, "203.0.113.1")
    subprocess.run([*port, "on"], check=True)
    try:
        assert reaches(n1, "203.0.113.1")
    finally:
        subprocess.run([*port, "off"], check=True)


def test_it_is_refused_where_a_guest_has_the_parent_whole(n1: Host) -> None:
    n1.json("attach", "n1g1", "--parent", "nic0", "--mode", "passthru")
    answer = n1.guestnet(*ADD)
    assert (answer.code, "in mode passthru" in answer.err) == (5, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--address", "198.51.100.9/24"), 5, "overlaps that of 198.51.100.1/24 on nic0"),
        (("--address", "198.51.100.1/32"), 5, "nic0 has the address 198.51.100.1 already"),
        (("--address", "203.0.113.9"), 2, "no prefix length"),
        (("--address", "203.0.113.9/32", "--route", "0.0.0.0/0"), 2, "default route"),
        (("--address", "203.0.113.9/32", "--route", "2001:db8::1"), 2, "no address is"),
        (("--address", "203.0.113.9/32", "--address", "203.0.113.9/32"), 2, "twice"),
        (("--address", "203.0.113.9/32", "--name", "nic0"), 5, "taken"),
        (("--address", "203.0.113.9/32", "--mtu", "9000"), 5, "more than that of nic0"),
        (("--address", "203.0.113.9/32", "--mac", "02:6c:61:62:01:00"), 5, "is the MAC of nic0"),
    ],
)
def test_what_would_not_work_is_told_and_nothing_is_done(
    n1: Host, words: tuple[str, ...], code: int, said: str
) -> None:
    answer = n1.guestnet("host", "add", "nic0", *words)
    assert (answer.code, said in answer.err) == (code, True), answer
    assert n1.json("host", "list") == []


def test_a_link_that_is_not_such_a_one_is_not_deleted(n1: Host) -> None:
    for name in ("nic0", "nothing", "no/thing"):
        answer = n1.guestnet("host", "delete", name)
        assert (answer.code, f"no link {name}, and none on {name}, was made" in answer.err) == (3, True), answer
    n1.json("macvlan", "add", "mine", "--parent", "nic0")
    answer = n1.guestnet("host", "delete", "mine")
    assert (answer.code, "guestnet macvlan delete mine" in answer.err) == (5, True)
    n1.json("macvlan", "delete", "mine")


def test_a_second_bring_up_ends_where_it_was_ended(n1: Host) -> None:
    """A link that lost an address, or is down, gets back what it should have."""
    n1.json(*ADD)
    n1.run("ip", "address", "delete", "203.0.113.9/32", "dev", "shim-nic0")
    n1.run("ip", "link", "set", "dev", "shim-nic0", "down")
    assert n1.json("host", "list")[0]["state"] == "down"
    n1.json(*ADD)
    [row] = n1.json("host", "list")
    assert (row["addresses"], row["routes"], row["state"]) == (["203.0.113.9/32"], ["203.0.113.1/32"], "up")


def test_its_unit_is_right_for_systemd_and_makes_it_again(n1: Host) -> None:
    made = n1.json(*ADD, *SIX, "--persist")
    unit = made["unit"]
    assert unit == "guestnet-host-shim\\x2dnic0.service"
    assert n1.json(*ADD, *SIX, "--persist")["changed"] is False
    path = f"{UNITS}/{unit}"
    checked = n1.node.run(["systemd-analyze", "verify", path])
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    text = n1.run("cat", path)
    wants = n1.run("readlink", f"{UNITS}/multi-user.target.wants/{unit}").strip()
    assert wants == path
    assert "BindsTo=sys-subsystem-net-devices-nic0.device" in text
    lines = dict(line.split("=", 1) for line in text.splitlines() if line.startswith("Exec"))
    start, stop = (shlex.split(lines[key].replace("%%", "%").replace("$$", "$")) for key in ("ExecStart", "ExecStop"))
    before = n1.json("host", "list")
    n1.run(*stop)
    [row] = n1.json("host", "list")
    assert (row["name"], row["state"]) == (unit, "not there: its unit has not made it")
    assert n1.json("host", "delete", "nic0", "--dry-run")["steps"] == [f"delete the systemd unit {unit}"]
    n1.run(*start)
    assert n1.json("host", "list") == before
    assert n1.json("host", "delete", "shim-nic0")["unit"] == unit
    assert n1.json("host", "list") == []
    assert n1.node.run(["ls", path, f"{UNITS}/multi-user.target.wants/{unit}"]).returncode != 0


def test_a_unit_of_somebody_elses_under_its_name_stays(n1: Host) -> None:
    path = f"{UNITS}/guestnet-host-shim\\x2dnic0.service"
    n1.run("mkdir", "-p", UNITS)
    n1.run("sh", "-c", 'echo "# mine" >"$1"', "sh", path)
    try:
        answer = n1.guestnet(*ADD, "--persist")
        assert (answer.code, f"{path} is there and is not guestnet's" in answer.err) == (5, True), answer
        assert "shim-nic0" not in n1.links()
        n1.json(*ADD)
        assert [row["persists"] for row in n1.json("host", "list")] == [False]
        assert n1.json("host", "delete", "nic0")["unit"] == ""
        assert n1.json("host", "list") == []
        assert n1.run("cat", path) == "# mine\n"
        n1.run("ln", "-sf", "/dev/null", path)  # masked
        assert n1.guestnet(*ADD, "--persist").code == 5
        assert n1.run("readlink", path) == "/dev/null\n"
    finally:
        n1.run("rm", path)
    assert n1.run("find", UNITS, "-name", ".guestnet-*") == ""


def test_a_picture_of_the_host_shows_it_and_what_is_amiss(n1: Host, tmp_path: Path) -> None:
    nic = attach(n1)
    n1.json(*ADD)
    text = n1.guestnet("graph", "--check").out
    for word in ("shim-nic0", "203.0.113.9/32", "guest: n1g1", nic["ifname"], nic["mac"], "nic0"):
        assert word in text
    assert "!" not in text
    way = [f"/dev/tap{n1.links()[nic['ifname']]['ifindex']}", nic["ifname"], "nic0"]
    passed = [line.strip("| ").partition(" ")[0] for line in n1.guestnet("graph", "--path").out.splitlines()]
    assert [word for word in passed if word in way] == way
    n1.run("ip", "link", "set", "dev", nic["ifname"], "down")
    assert f"! {nic['ifname']} is down" in n1.guestnet("graph").out
    n1.run("ip", "link", "delete", "dev", nic["ifname"])
    assert "its macvtap is gone" in n1.guestnet("graph").out
    picture = tmp_path / "host.svg"
    n1.guestnet("graph", "--format", "svg", "--output", str(picture))
    assert "<svg" in picture.read_text(encoding="utf-8")
    n1.virsh("destroy", "n1g1")
    try:
        n1.guestnet("detach", "n1g1", "--all")
    finally:
        n1.virsh("start", "n1g1")
        n1.guest("n1g1").wait_ready()


def test_guests_that_libvirt_does_not_know_are_shown_by_their_marks(n1: Host) -> None:
    nic = attach(n1)
    shown = n1.guestnet("graph", "--connect", "qemu+unix:///system?socket=/nowhere").out
    assert "guest: n1g1" in shown
    assert nic["ifname"] in shown
    assert "known by the marks" in shown


def test_the_list_is_for_people_too(n1: Host) -> None:
    assert "no link of its own" in n1.guestnet("host", "list").out
    n1.json(*ADD)
    line = n1.guestnet("host", "list").out.splitlines()[1].split()
    assert line[:2] == ["shim-nic0", "nic0"]
    assert json.loads(n1.guestnet("host", "list", "--json").out)[0]["name"] == "shim-nic0"
