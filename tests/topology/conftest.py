"""One lab of two hosts for the topologies: nodes n1 and n2 with a guest each, joined by a switch."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guestnet.lab import Lab
from tests.libvirt.conftest import Host

REPO = Path(__file__).resolve().parents[2]

SYSCTLS = (
    *("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/nic0/forwarding"),
    *("net/ipv4/conf/all/send_redirects", "net/ipv4/conf/all/accept_redirects"),
    *("net/ipv4/conf/nic0/arp_ignore", "net/ipv4/conf/all/arp_ignore"),
)


LOOKS = {
    "links": "ip -j link", "addresses": "ip -j address", "routes": "ip -j -4 route; ip -j -6 route",
    "namespaces": "ls /run/netns", "sysctls": f"cd /proc/sys; grep '' {' '.join(SYSCTLS)}",
    "nodes": "ls /dev | grep ^tap", "kept": "ls /run/guestnet/topology", "units": "ls /etc/systemd/system",
    "nics": "virsh -q list --all --name | xargs -r -n 1 virsh -q domiflist",
}  # fmt: skip
PASSING = re.compile(r'"(operstate|valid_life_time|preferred_life_time|link_netnsid|tentative)":[^,}]*,?')


def before_and_after(host: Host) -> dict[str, str]:
    """All that a topology may change on a host, as ip(8) and the files have it."""
    script = "\n".join(f"({words}) 2>/dev/null; printf '\\0'" for words in LOOKS.values())
    return dict(zip(LOOKS, PASSING.sub("", host.run("sh", "-c", script)).split("\0"), strict=False))


@dataclass(frozen=True)
class Hosts:
    """Both hosts, and what is done on both."""

    lab: Lab
    n1: Host
    n2: Host

    def of(self, name: str) -> tuple[Host, ...]:
        """The hosts that a shipped topology has nodes for."""
        return (self.n1,) if name in ("0.1", "0.2") else (self.n1, self.n2)

    def each(self, name: str, *words: str) -> list[Any]:
        """``guestnet topology WORDS --json`` on each host of that topology, at once."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda host: host.json("topology", *words), self.of(name)))

    def down(self, name: str) -> None:
        """Take it down on each."""
        self.each(name, "down", name)


@dataclass(frozen=True)
class Inside:
    """A network namespace on a host."""

    host: Host
    name: str

    def ip(self, *words: str) -> str:
        return self.host.run("ip", *(("-n", self.name) if self.name else ()), *words)

    def neighbours(self, version: str = "-4") -> dict[str, str]:
        """The MACs it has found, by address."""
        found = json.loads(self.ip("-j", version, "neigh") or "[]")
        return {one["dst"]: one["lladdr"] for one in found if "lladdr" in one}

    def mac(self, link: str) -> str:
        return str(json.loads(self.ip("-j", "link", "show", "dev", link))[0]["address"])

    def forget(self) -> None:
        """Forget neighbours and the routes learned by redirects."""
        for version in ("-4", "-6"):
            self.ip(version, "neigh", "flush", "all")
            self.ip(version, "route", "flush", "cache")

    def run(self, *words: str) -> Any:
        enter = ["ip", "netns", "exec", self.name] if self.name else []
        return self.host.node.run([*enter, *words])

    def forwarded(self) -> tuple[int, int]:
        """How many packets of IPv4 and of IPv6 it has forwarded."""
        four = [
            line.split() for line in self.run("cat", "/proc/net/snmp").stdout.splitlines() if line.startswith("Ip:")
        ]
        six = dict(line.split() for line in self.run("cat", "/proc/net/snmp6").stdout.splitlines())
        return int(dict(zip(*four, strict=True))["ForwDatagrams"]), int(six["Ip6OutForwDatagrams"])


def up_lab(guests: int) -> Lab:
    made = Lab(name=f"f{'abcd'[guests]}{os.getpid() % 1_000_000}")
    try:
        made.up(nodes=2, guests=guests)
    except BaseException:
        made.down()
        raise
    return made


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    made = up_lab(guests=1)
    yield made
    made.down()


@pytest.fixture(scope="session")
def guestless_lab() -> Iterator[Lab]:
    made = up_lab(guests=0)
    yield made
    made.down()


@pytest.fixture
def hosts(lab: Lab) -> Iterator[Hosts]:
    """Two hosts; after the test everything on them must be as it was."""
    yield from _as_before(lab)


@pytest.fixture
def bare_hosts(guestless_lab: Lab) -> Iterator[Hosts]:
    """The same, without guests."""
    yield from _as_before(guestless_lab)


def _as_before(lab: Lab) -> Iterator[Hosts]:
    hosts = Hosts(lab, Host(lab.node("n1")), Host(lab.node("n2")))
    both = (hosts.n1, hosts.n2)
    before = [before_and_after(host) for host in both]
    yield hosts
    for host in both:
        for name in host.node.run(["ls", "/run/guestnet/topology"]).stdout.split():
            host.guestnet("topology", "down", name.removesuffix(".json"))
    for host, was in zip(both, before, strict=True):
        now = before_and_after(host)
        assert {key: value for key, value in now.items() if value != was[key]} == {}, was


def python(host: Host, program: str, *words: str) -> Any:
    """What a Python program on the host prints as JSON."""
    done = host.node.run([sys.executable, "-c", program, *words], timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wrong(answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pings that did not come back as the file says they do."""
    return [one for one in answers if one["ttl"] != one["expected"]]
