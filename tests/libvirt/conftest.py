"""One lab for all tests with guests: two hosts, each with its libvirtd and guests that booted."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import libvirt
import pytest

from guestnet.lab import Lab
from guestnet.lab.guest import Guest
from guestnet.lab.node import Node
from tests.conftest import Answer


@dataclass(frozen=True)
class Host:
    """A node of the lab with the commands a test gives there."""

    node: Node

    def guestnet(self, *words: str, check: bool = False, hook: bool = False) -> Answer:
        """A command; an attach only has to do with libvirt's hook where ``hook`` is said."""
        if words[:1] == ("attach",) and not hook:
            words = (*words, "--no-hook")
        done = self.node.run([sys.executable, "-m", "guestnet", *words])
        answer = Answer(done.returncode, done.stdout, done.stderr)
        if check:
            assert answer.code == 0, answer
        return answer

    def json(self, *words: str, hook: bool = False) -> Any:
        return self.guestnet(*words, "--json", check=True, hook=hook).json

    def run(self, *words: str) -> str:
        done = self.node.run(words)
        assert done.returncode == 0, done
        return str(done.stdout)

    def virsh(self, *words: str, input: str | None = None) -> str:
        return self.node.virsh(*words, input=input)

    def links(self) -> dict[str, dict[str, Any]]:
        return {link["ifname"]: link for link in json.loads(self.run("ip", "-d", "-j", "link"))}

    def guest(self, name: str) -> Guest:
        return self.node.guest(name)

    def live(self, guest: str) -> str:
        return self.virsh("dumpxml", guest)

    def config(self, guest: str) -> str:
        return self.virsh("dumpxml", "--inactive", guest)

    def state(self) -> dict[str, Any]:
        """All that a failed command must leave as it was: links, nodes, guests, their XML live and inactive.

        libvirt leaves an empty <metadata/> where the last element was taken out; that is no difference.
        """
        # operstate follows the carrier in its own time (net/core/link_watch.c)
        passing = ("stats64", "operstate")
        links = [{key: value for key, value in link.items() if key not in passing} for link in self.links().values()]
        xml = {}
        for name, texts in self.xml().items():
            plain = (re.sub(r" *<metadata/>\n", "", text) for text in texts)
            xml[name] = [re.sub(r"(<domain type='\w+') id='[0-9]+'", r"\1", text) for text in plain]
        return {"links": links, "nodes": self.run("ls", "/dev").split(), "xml": xml}

    def xml(self) -> dict[str, tuple[str, str]]:
        """The XML of every guest: as it runs, and as it will at its next start."""
        found = {}
        connection = libvirt.open(self.node.uri)
        try:
            for domain in connection.listAllDomains():
                found[domain.name()] = (domain.XMLDesc(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        finally:
            connection.close()
        return found


def ping(guest: Guest, address: str) -> bool:
    """Whether the guest gets an answer from that address; the first tries may meet an address still in its DAD."""
    word = "ping6" if ":" in address else "ping"
    return guest.run(f"for i in 1 2 3 4 5 6; do {word} -c 1 -W 1 {address} && exit 0; done; exit 1")[0] == 0


def address(guest: Guest, mac: str, *addresses: str, dad: bool = False) -> str:
    """Give the guest's NIC with that MAC these addresses; its name in the guest. Without ``dad`` they count at once."""
    name = guest.wait_nic(mac)
    commands = [] if dad else [f"echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad"]
    commands += [f"ip link set {name} up", *(f"ip addr add {one} dev {name}" for one in addresses)]
    status, output = guest.run(" && ".join(commands))
    assert status == 0, output
    return name


@pytest.fixture(scope="session")
def lab(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """The lab; in the test machine, where all is slow, with one guest on each node."""
    made = Lab(name=f"t{os.getpid() % 1_000_000}")
    try:
        made.up(nodes=2, guests=1 if pytestconfig.pluginmanager.hasplugin("tests.vm.inside") else 2, nics=2)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="session")
def hosts(lab: Lab) -> tuple[Host, Host]:
    return Host(lab.node("n1")), Host(lab.node("n2"))


@pytest.fixture
def n1(hosts: tuple[Host, Host]) -> Iterator[Host]:
    yield from _as_before(hosts[0])


@pytest.fixture
def n2(hosts: tuple[Host, Host]) -> Iterator[Host]:
    yield from _as_before(hosts[1])


def _as_before(host: Host) -> Iterator[Host]:
    """The host; after the test its guests' NICs are detached, and everything must be as it was."""
    before = host.state()
    yield host
    for name, texts in host.xml().items():
        if any("<interface" in text or "urn:guestnet" in text for text in texts):
            assert host.guestnet("detach", name, "--all").code == 0
    assert host.state() == before


@pytest.fixture
def bare_domain(n1: Host) -> Iterator[Callable[..., str]]:
    """Define and start domains that run no system at all: `bare_domain(ports=0, machine="q35", start=True, …)`."""
    made: list[str] = []

    def make(
        *,
        ports: int = 1,
        machine: str = "q35",
        start: bool = True,
        transient: bool = False,
        extra: str = "",
        qemu: Sequence[str] = (),
    ) -> str:
        name = f"bare{len(made) + 1}"
        made.append(name)
        controllers = "<controller type='pci' model='pcie-root'/>" if machine == "q35" else ""
        controllers += "<controller type='pci' model='pcie-root-port'/>" * ports
        words = "".join(f"<qemu:arg value='{word}'/>" for word in qemu)
        xml = f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
          <name>{name}</name><memory unit='MiB'>32</memory>
          <os><type arch='x86_64' machine='{machine}'>hvm</type></os><features><acpi/></features>
          <devices><controller type='usb' model='none'/>{controllers}<memballoon model='none'/>{extra}</devices>
          <qemu:commandline>{words}</qemu:commandline></domain>"""
        n1.node.virsh("create" if transient else "define", "/dev/stdin", input=xml)
        if start and not transient:
            n1.virsh("start", name)
        return name

    yield make
    for name in made:
        n1.node.run(["virsh", "destroy", name])
        n1.guestnet("detach", name, "--all")  # of a domain that is gone too: by then its links are orphans
        n1.node.run(["virsh", "undefine", name])
