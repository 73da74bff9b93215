"""The notes' topologies: each comes up by one command a node, is reached by the way the notes mean, and goes again."""

import pytest

from guestnet.lab import topology as on_lab
from guestnet.topology import document
from tests.libvirt.conftest import Host
from tests.topology.conftest import Hosts, Inside, wrong

pytestmark = [pytest.mark.root, pytest.mark.guest]

WITHOUT_GUESTS = ("0.1", "0.2", "0.3", "0.4", "0.5")


@pytest.mark.parametrize("name", WITHOUT_GUESTS)
def test_it_comes_up_is_pinged_in_both_directions_and_goes_leaving_nothing(hosts: Hosts, name: str) -> None:
    for made in hosts.each(name, "up", name):
        assert made["changed"]
        assert {row["state"] for row in made["rows"]} == {"up"}
    for again in hosts.each(name, "up", name):
        assert not again["changed"]
        assert again["steps"] == []
    assert not any(shown["steps"] for shown in hosts.each(name, "plan", name))
    found = document.find(name)
    pings = [one for shown in hosts.each(name, "status", name, "--check") for one in shown["pings"]]
    assert wrong(pings) == []
    pairs = {(one["source"], one["target"]) for one in pings}
    titles = [one.title for one in found.endpoints]
    assert pairs == {(one, other) for one in titles for other in titles if one != other}
    assert {":" in one["address"] for one in pings} == {True, False}
    for gone in hosts.each(name, "down", name):
        assert gone["changed"]
    for again in hosts.each(name, "down", name):
        assert not again["changed"]


def test_guests_in_place_of_the_namespaces_reach_each_other_across_the_nodes(hosts: Hosts) -> None:
    found = document.find("0.5-guest")
    on_lab.up(hosts.lab, found, "0.5-guest")
    answers = on_lab.check(hosts.lab, found, "0.5-guest")
    assert [one for one in answers if one.wrong] == []
    between = {(one.source, one.target): one.ttl for one in answers if "g1" in one.source and "g1" in one.target}
    assert between == {("n1/n1g1", "n2/n2g1"): 62, ("n2/n2g1", "n1/n1g1"): 62}
    for host in (hosts.n1, hosts.n2):
        again = host.json("topology", "up", "0.5-guest")
        assert again["steps"] == []
        assert {row["state"] for row in again["rows"]} == {"up"}
        [nic] = host.json("list")
        assert nic["problems"] == []
    hosts.down("0.5-guest")


def ping(inside: Inside, *addresses: str) -> None:
    for address in addresses:
        for _ in range(3):
            done = inside.run("ping", "-c", "1", "-W", "2", address)
            assert done.returncode == 0, done.stdout


FAR = {"0.3": ("192.0.2.65", "2001:db8:0:40::65"), "0.5": ("192.0.2.66", "2001:db8:0:40::66")}


@pytest.mark.parametrize("name", FAR)
def test_by_the_hosts_macvtap_a_packet_is_routed_on_the_host(hosts: Hosts, name: str) -> None:
    hosts.each(name, "up", name)
    tap, router = Inside(hosts.n1, "tap0"), Inside(hosts.n1, "")
    far, other = Inside(hosts.n2, "tap0" if name == "0.5" else ""), Inside(hosts.n2, "")
    for one in (tap, router, far, other):
        one.forget()
    before = [one.forwarded() for one in (router, other)]
    ping(tap, *FAR[name])
    after = [one.forwarded() for one in (router, other)]
    assert [(new - old) for new, old in zip(after[0], before[0], strict=True)] == [6, 6]  # 3 there, 3 back
    assert [(new - old) for new, old in zip(after[1], before[1], strict=True)] == ([6, 6] if name == "0.5" else [0, 0])
    # the namespace has found its router, and neither the far end nor its router
    assert set(tap.neighbours()) == {"192.0.2.130"}
    assert tap.neighbours()["192.0.2.130"] == router.mac("macvtap1")
    assert {one for one in tap.neighbours("-6") if not one.startswith("fe80")} == {"2001:db8:0:80::130"}
    assert other.neighbours()["192.0.2.130"] == router.mac("macvtap1")
    assert tap.run("ip", "route", "show", "cache").stdout.count("redirected") == 0


def test_by_default_dev_a_packet_takes_the_wire_at_once(hosts: Hosts) -> None:
    hosts.each("0.4", "up", "0.4")
    tap, host, far = Inside(hosts.n1, "tap0"), Inside(hosts.n1, ""), Inside(hosts.n2, "")
    for one in (tap, host, far):
        one.forget()
    before = host.forwarded()
    ping(tap, *FAR["0.3"])
    assert host.forwarded() == before
    assert tap.neighbours()["192.0.2.65"] == far.mac("macvtap0")
    assert tap.neighbours("-6")["2001:db8:0:40::65"] == far.mac("macvtap0")
    assert far.neighbours()["192.0.2.129"] == tap.mac("macvtap0") == "1a:46:0b:ca:bc:7b"
    assert "192.0.2.130" not in tap.neighbours()


def test_the_host_reaches_by_a_macvtap_of_its_own_what_it_never_reaches_by_the_parent(hosts: Hosts) -> None:
    hosts.each("0.2", "up", "0.2")
    tap = Inside(hosts.n1, "tap0")
    assert Inside(hosts.n1, "").run("ping", "-c", "1", "-W", "2", "10.1.1.1").returncode == 0
    tap.ip("address", "add", "198.51.100.77/24", "dev", "macvtap0")
    own = hosts.n1.node.addresses[0].partition("/")[0]
    assert tap.run("ping", "-c", "1", "-W", "1", own).returncode != 0  # the parent's own address
    assert tap.run("ping", "-c", "1", "-W", "2", "198.51.100.2").returncode == 0  # a machine on the wire


def test_each_link_of_the_host_answers_for_its_own_address_only(hosts: Hosts) -> None:
    """Without arp_ignore the parent answers for the macvtap's address as well: what comes in there is not routed."""
    hosts.each("0.3", "up", "0.3")
    far, router = Inside(hosts.n2, ""), Inside(hosts.n1, "")

    def answers() -> set[str]:
        told = far.run("busybox", "arping", "-c", "2", "-w", "3", "-I", "macvtap0", "192.0.2.130").stdout
        return {line.split("[")[1].split("]")[0] for line in told.splitlines() if "reply from" in line}

    assert answers() == {router.mac("macvtap1")}
    hosts.n1.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/all/arp_ignore")
    try:
        assert answers() == {router.mac("macvtap1"), router.mac("nic0")}
    finally:
        hosts.n1.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore")


NEEDED = (
    ("n1", "ip route delete 192.0.2.64/26", [False, True]),
    ("n1", "ip -6 route delete 2001:db8:0:40::/64", [True, False]),
    ("n1", "sysctl -q -w net.ipv4.conf.macvtap1.forwarding=0", [False, True]),
    ("n1", "sysctl -q -w net.ipv6.conf.all.forwarding=0", [True, False]),
    ("n2", "ip route delete 192.0.2.128/26", [False, True]),
    ("n2", "ip -6 route delete 2001:db8:0:80::/64", [True, False]),
)


def test_each_route_and_switch_of_0_3_is_needed_and_comes_back(hosts: Hosts) -> None:
    hosts.each("0.3", "up", "0.3")
    for name, line, expected in NEEDED:
        host: Host = getattr(hosts, name)
        host.run(*line.split())
        tap = Inside(hosts.n1, "tap0")
        for far, there in zip(FAR["0.3"], expected, strict=True):
            assert tap.run("ping", "-c", "1", "-w", "10" if there else "1", far).returncode == (0 if there else 1), line
        assert host.json("topology", "up", "0.3")["changed"]
        ping(tap, *FAR["0.3"])


def test_a_router_that_no_route_leads_to_is_refused_by_the_kernel(hosts: Hosts) -> None:
    hosts.n2.json("topology", "up", "0.3")
    for route in ("192.0.2.128/26", "192.0.2.130"):
        hosts.n2.run("ip", "route", "delete", route)
    done = hosts.n2.node.run(["ip", "route", "add", "192.0.2.128/26", "via", "192.0.2.130"])
    assert "invalid gateway" in done.stderr


def test_with_redirects_on_the_way_by_the_host_is_given_up_after_the_first_packets(hosts: Hosts) -> None:
    hosts.each("0.3", "up", "0.3")
    tap = Inside(hosts.n1, "tap0")
    for link in ("all", "macvtap1"):
        hosts.n1.run("sh", "-c", f"echo 1 >/proc/sys/net/ipv4/conf/{link}/send_redirects")
    try:
        done = tap.run("ping", "-c", "5", "-i", "0.3", "-W", "1", "192.0.2.65")
        assert "Redirect Host" in done.stdout
        assert "redirected" in tap.run("ip", "route", "get", "192.0.2.65").stdout
    finally:
        hosts.n1.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/all/send_redirects")


def test_ip_shows_what_the_notes_show(hosts: Hosts) -> None:
    hosts.each("0.1", "up", "0.1")
    shown = Inside(hosts.n1, "tap0").ip("-d", "link", "show", "dev", "macvtap0")
    assert "macvtap mode bridge" in shown
    assert "macvtap0@if" in shown
    assert "UP" in Inside(hosts.n1, "tap0").ip("link", "show", "dev", "lo")


@pytest.mark.parametrize("host", ["n1", "n2"])
def test_a_host_brings_up_its_own_part_only(hosts: Hosts, host: str) -> None:
    one: Host = getattr(hosts, host)
    made = one.json("topology", "up", "0.3")
    assert made["node"] == host
    assert {row["name"] for row in made["rows"]} == ({"tap0", "macvtap1"} if host == "n1" else {"macvtap0"})
