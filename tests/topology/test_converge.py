"""A topology that is half up, or not as its file says any more, becomes whole; and what is others' stays theirs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.libvirt.conftest import Host
from tests.topology.conftest import Hosts, Inside, python

pytestmark = [pytest.mark.root, pytest.mark.guest]

HALF = (Path(__file__).parent / "half.py").read_text(encoding="utf-8")

TEXT = """
name: half
nodes:
  n1:
    parents: {lan: nic0}
    endpoints:
      a: {kind: netns, parent: lan, addresses: [192.0.2.1/24], routes: [default via 192.0.2.3]}
      b: {kind: netns, parent: lan, type: macvlan, mode: vepa, mtu: 1400, addresses: [192.0.2.2/24]}
      c:
        kind: host
        parent: lan
        addresses: [192.0.2.3/24]
        routes: [203.0.113.7, 203.0.113.0/25 via 203.0.113.7]
        sysctls: {net.ipv4.ip_forward: 1, "net.ipv4.conf.{parent}.arp_ignore": 1}
      d: {kind: qemu, parent: lan}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "half.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def edited(file: Path, *changes: tuple[str, str]) -> str:
    """The file with other words in it."""
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_killed_or_failed_at_any_step_it_becomes_whole_or_goes_whole(bare_hosts: Hosts, file: Path) -> None:
    found = python(bare_hosts.n1, HALF, str(file))
    assert found["wrong"] == []
    assert found["killed"] == found["failed"] == 2 * found["steps"]
    assert found["steps"] > 20


def test_what_somebody_broke_is_mended_and_nothing_else_is_touched(bare_hosts: Hosts, file: Path) -> None:
    host = bare_hosts.n1
    made = host.json("topology", "up", str(file))
    names = {row["name"]: row["link"] for row in made["rows"]}
    tap = Inside(host, "a")
    kept = tap.mac("a")
    breaking = (
        *("ip -n a link set dev a down", "ip -n a addr add 192.0.2.99/24 dev a", "ip -n b link delete dev b"),
        *("ip link set dev c address 52:54:00:00:00:99", "ip route delete 203.0.113.0/25"),
        *("ip link set dev {d} allmulticast off", "sysctl -q -w net.ipv4.ip_forward=0"),
        *("ip -n a link set dev lo down", "ip link set dev c type macvtap mode private"),
    )
    for line in breaking:
        host.run(*line.format(**names).split())
    answer = host.guestnet("topology", "status", str(file), "--json")
    assert answer.code == 1
    states = {row["name"]: row["state"] for row in answer.json["rows"]}
    assert "down" in states["a"]
    assert "192.0.2.99/24 is not in the file" in states["a"]
    assert "missing" in states["b"]
    assert "MAC 52:54:00:00:00:99" in states["c"]
    assert "in mode private" in states["c"]
    assert "no route 203.0.113.0/25 via 203.0.113.7" in states["c"]
    assert states["d"] == "filters multicast"
    planned = host.json("topology", "plan", str(file))
    assert not planned["changed"]
    mended = host.json("topology", "up", str(file))
    assert {row["state"] for row in mended["rows"]} == {"up"}
    assert mended["steps"][: len(planned["steps"])] == planned["steps"]  # and what those bring about
    assert "net.ipv4.ip_forward of this host becomes 1 (it is 0) until the topology is taken down" in mended["notes"]
    assert not any(step.startswith(("delete", "make network")) for step in mended["steps"])
    assert tap.mac("a") == kept
    assert host.json("topology", "up", str(file))["steps"] == []


def test_an_edited_file_is_brought_up_by_the_difference(bare_hosts: Hosts, file: Path) -> None:
    host = bare_hosts.n1
    host.json("topology", "up", str(file))
    edited(
        file, ("addresses: [192.0.2.1/24]", "addresses: [192.0.2.9/24, 192.0.2.10/24]"),
        ("mode: vepa", "mode: bridge"), ("      d: {kind: qemu, parent: lan}\n", ""),
        ("      b: {", "      e: {kind: netns, parent: lan, addresses: [192.0.2.4/24]}\n      b: {"),
    )  # fmt: skip
    steps = host.json("topology", "up", str(file))["steps"]
    assert [one for one in steps if "qdisc" in one or one.startswith("make network")] == ["make network namespace e"]
    assert "take off a the address 192.0.2.1/24 in network namespace a" in steps
    assert "change b to mode bridge in network namespace b" in steps
    assert sum(one.startswith("delete gn") for one in steps) == 1
    assert host.json("topology", "up", str(file))["steps"] == []
    shown = json.loads(Inside(host, "a").ip("-j", "-4", "address", "show", "dev", "a"))[0]["addr_info"]
    assert {one["local"] for one in shown} == {"192.0.2.9", "192.0.2.10"}
    edited(file, ("a: {kind: netns", "f: {kind: netns"))
    steps = host.json("topology", "up", str(file))["steps"]
    assert {"delete network namespace a", "delete network namespace e", "make network namespace f"} < set(steps)


def test_a_namespace_or_link_of_others_is_neither_adopted_nor_deleted(bare_hosts: Hosts, file: Path) -> None:
    host = bare_hosts.n1
    host.run("ip", "netns", "add", "b")
    try:
        answer = host.guestnet("topology", "up", str(file))
        assert (answer.code, "network namespace b already" in answer.err) == (5, True)
        host.guestnet("topology", "down", str(file))
        assert "b" in host.run("ip", "netns").split()
    finally:
        host.run("ip", "netns", "delete", "b")
    host.run(*["ip", "link", "add", "link", "nic0", "name", "c", "type", "macvlan", "mode", "bridge"])
    try:
        answer = host.guestnet("topology", "up", str(file))
        assert (answer.code, "there is an interface c already" in answer.err) == (5, True)
        host.guestnet("topology", "down", str(file))
        assert "c" in host.links()
    finally:
        host.run("ip", "link", "delete", "c")


def test_the_empty_file_of_a_namespace_whose_maker_was_killed_is_no_obstacle(bare_hosts: Hosts, file: Path) -> None:
    host = bare_hosts.n1
    host.json("topology", "up", str(file))
    host.run("ip", "netns", "delete", "b")
    host.run("touch", "/run/netns/b")
    assert "make network namespace b" in host.json("topology", "up", str(file))["steps"]
    host.run("ip", "netns", "delete", "b")
    host.run("touch", "/run/netns/b")
    host.json("topology", "down", str(file))
    assert host.run("ls", "/run/netns").split() == []


@pytest.fixture
def forwarding(bare_hosts: Hosts, tmp_path: Path) -> Path:
    """Topologies one and two, each of which lets the host forward, are up."""
    text = """
name: {name}
nodes:
  n1:
    parents: {{lan: nic0}}
    endpoints:
      {name}: {{kind: host, parent: lan, sysctls: {{net.ipv4.ip_forward: 1}}}}
"""
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(text.format(name=name), encoding="utf-8")
        bare_hosts.n1.json("topology", "up", str(tmp_path / f"{name}.yaml"))
    return tmp_path


def forwards(host: Host) -> str:
    return host.run("cat", "/proc/sys/net/ipv4/ip_forward").strip()


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_two_topologies_that_need_one_sysctl_put_it_back_with_the_last(
    bare_hosts: Hosts, forwarding: Path, order: tuple[str, str]
) -> None:
    host = bare_hosts.n1
    assert host.json("topology", "status") == ["one", "two"]
    values = []
    for name in order:
        host.json("topology", "down", name)
        values.append(forwards(host))
    assert values == ["1", "0"]


def test_what_nobody_can_read_of_another_topology_is_told_and_stops_no_other_step(
    bare_hosts: Hosts, forwarding: Path
) -> None:
    host = bare_hosts.n1
    kept = "/run/guestnet/topology/two.json"
    host.run("cp", kept, "/run/two.json")
    host.run("cp", "/dev/null", kept)
    answer = host.guestnet("topology", "down", "one")
    assert (answer.code, kept in answer.err) == (1, True), answer
    marks = [link.get("ifalias") for link in json.loads(host.run("ip", "-j", "link"))]
    assert [mark for mark in marks if mark] == ["guestnet:1:topology:two:two"]
    host.run("cp", "/run/two.json", kept)
    for name in ("one", "two"):
        host.json("topology", "down", name)
    assert forwards(host) == "0"


def test_sysctls_that_the_file_says_no_more_are_put_back(bare_hosts: Hosts, forwarding: Path) -> None:
    host = bare_hosts.n1
    host.json("topology", "down", "two")
    path = forwarding / "one.yaml"
    without = str(path)
    path.write_text(path.read_text().replace(", sysctls: {net.ipv4.ip_forward: 1}", ""), encoding="utf-8")
    assert host.json("topology", "plan", without)["steps"] == ["set net.ipv4.ip_forward to 0"]
    assert forwards(host) == "1"
    assert host.json("topology", "up", without)["steps"] == ["set net.ipv4.ip_forward to 0"]
    assert forwards(host) == "0"
    assert host.json("topology", "up", without)["steps"] == []
    host.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")  # by somebody else, and no business of ours any more
    try:
        host.json("topology", "down", "one")
        assert forwards(host) == "1"
    finally:
        host.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")


def test_a_sysctl_that_somebody_set_meanwhile_stays_as_it_is(bare_hosts: Hosts, file: Path) -> None:
    host = bare_hosts.n1
    host.json("topology", "up", str(file))
    host.run("sysctl", "-q", "-w", "net.ipv4.conf.nic0.arp_ignore=2")
    try:
        done = host.json("topology", "down", "half")
        assert any("net.ipv4.conf.nic0.arp_ignore stays 2" in note for note in done["notes"])
        assert host.run("cat", "/proc/sys/net/ipv4/conf/nic0/arp_ignore").strip() == "2"
        assert host.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
    finally:
        host.run("sysctl", "-q", "-w", "net.ipv4.conf.nic0.arp_ignore=0")


def test_it_is_taken_down_by_its_name_alone(bare_hosts: Hosts, file: Path) -> None:
    host = bare_hosts.n1
    host.json("topology", "up", str(file))
    file.unlink()
    assert host.json("topology", "down", "half")["changed"]
    answer = host.guestnet("topology", "down", "half")
    assert (answer.code, "no topology half" in answer.err) == (3, True)


def test_an_address_that_another_on_the_wire_has_fails_and_is_undone(bare_hosts: Hosts, tmp_path: Path) -> None:
    text = """
name: taken
nodes:
  n1: {parents: {lan: nic0}, endpoints: {a: {kind: netns, parent: lan, addresses: ["2001:db8:51::2/64"]}}}
"""
    path = tmp_path / "taken.yaml"
    path.write_text(text, encoding="utf-8")
    answer = bare_hosts.n1.guestnet("topology", "up", str(path))
    assert (answer.code, "another on the wire has 2001:db8:51::2" in answer.err) == (5, True)
    assert bare_hosts.n1.json("topology", "status") == []


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("lan: nic0", "lan: nic7", 3, "half.yaml:5: nodes.n1.parents.lan: there is no interface nic7 on this host"),
        ("192.0.2.3/24", "198.51.100.7/25", 5, "overlaps"),
        ("192.0.2.3/24", "198.51.100.1/32", 5, "nic0 of this host has the address"),
        ("mtu: 1400", "mtu: 9000", 5, "more than that of nic0"),
        ("  n1:", "  web:\n    parents: {lan: eth0}\n  n3:", 3, "the topology half has no node n1, which is the name"),
        ("net.ipv4.ip_forward: 1", "net.ipv4.ip_forwrd: 1", 3, "no sysctl net.ipv4.ip_forwrd"),
        ("mode: vepa", "mode: bridge, mac: 02:6c:61:62:01:00", 5, "is the MAC of nic0 itself"),
        ("c:\n        kind: host", "c:\n        kind: guest\n        guest: nobody", 3, "nobody"),
    ],
)
def test_what_this_host_has_not_is_told_before_anything_is_done(
    bare_hosts: Hosts, file: Path, old: str, new: str, code: int, said: str
) -> None:
    changes = [(old, new)]
    if "guest" in new:
        changes.append(('        sysctls: {net.ipv4.ip_forward: 1, "net.ipv4.conf.{parent}.arp_ignore": 1}\n', ""))
    answer = bare_hosts.n1.guestnet("topology", "up", edited(file, *changes))
    assert (answer.code, said in answer.err) == (code, True), answer
    if "nic7" in new:
        assert "--parent lan=LINK" in answer.err


def test_vepa_takes_a_switch_that_sends_frames_back(bare_hosts: Hosts, file: Path) -> None:
    host = bare_hosts.n1
    edited(file, ("c:\n        kind: host\n", "c:\n        kind: host\n        mode: vepa\n"))

    def between() -> Any:
        shown = host.guestnet("topology", "status", str(file), "--check", "--json").json["pings"]
        return next(one for one in shown if (one["source"], one["target"]) == ("n1/b", "n1/c"))

    made = host.json("topology", "up", str(file))
    assert any("sends frames back" in note for note in made["notes"])
    assert between()["ttl"] is None
    assert "sends frames back" in between()["why"]
    lab = bare_hosts.lab
    with_hairpin = Inside(host, "")
    hairpin = ["ip", "netns", "exec", lab.switch, "bridge", "link", "set", "dev", "n1-nic0", "hairpin"]
    subprocess.run([*hairpin, "on"], check=True)
    try:
        assert between()["ttl"] == 64
        assert with_hairpin.run("ping", "-c", "1", "-W", "2", "192.0.2.2").returncode == 0
    finally:
        subprocess.run([*hairpin, "off"], check=True)
