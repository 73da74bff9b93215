"""The hosts that the documentation's pages speak of: NICs ens3 and ens4, and a guest vm1 that runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from guestnet.lab import Lab
from guestnet.lab.guest import Guest, domain_xml
from guestnet.lab.node import Node
from tests.conftest import REPO, Namespace

TIMEOUT = 120
MACHINE_ID = "d0c50000000000000000000000476be2"
"""The host of which vm1's NIC on ens3 gets the address that the pages and their pictures have, 52:54:00:16:ca:9e."""
PYTHON = Path(sys.executable).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where a page's commands are run: ``enter`` is what goes before a command line."""

    enter: Callable[[Sequence[str]], list[str]]
    directory: Path
    first: str = ""
    called: dict[str, str] = field(default_factory=lambda: {str(PYTHON): "/usr/lib/guestnet/bin"})
    """What is called otherwise in the pages, and how."""
    more: dict[str, str] = field(default_factory=dict)

    def run(self, script: str) -> tuple[int, str]:
        """Exit status and output of a script as a terminal shows it, in one stream."""
        limited = ["timeout", "--kill-after=5", str(TIMEOUT)]  # and what the script has started ends with it
        script = f"export PATH={PYTHON}:$PATH\ncd {self.directory}\n{self.first}{script}"
        done = subprocess.run(
            self.enter([*limited, "bash", "-e", "-o", "pipefail", "-c", script]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            env={**os.environ, "COLUMNS": "120", "PYTHONUNBUFFERED": "1", **self.more},
        )  # fmt: skip
        answer = done.stdout
        for here, there in self.called.items():
            answer = answer.replace(here, there)
        return done.returncode, answer


@pytest.fixture(scope="module")
def node() -> Iterator[tuple[Node, Guest]]:
    """A lab's host with the NICs and the guest."""
    made = Lab(name=f"d{os.getpid() % 1_000_000}")
    try:
        made.up(nodes=1, guests=0)
        node = made.node("n1")
        guest = Guest(name="vm1", node="n1", own=node.own)
        for name in ("ens3", "ens4"):
            words = f"add {name} type veth peer name n1-{name} netns {made.switch}"
            _ip(node.netns, *words.split())
            _ip(made.switch, "set", f"n1-{name}", "master", "switch", "up")
            _ip(node.netns, "set", name, "up")
        guest.console.parent.mkdir(parents=True)
        node.run(["sh", "-c", f"echo {MACHINE_ID} >/etc/machine-id"], check=True)
        node.virsh("define", "/dev/stdin", input=domain_xml("vm1", vcpus=1, kvm=made.plan().kvm))
        node.virsh("start", "vm1")
        guest.wait_ready(timeout=240)
        yield node, guest
    finally:
        made.down()


def _ip(netns: str, *words: str) -> None:
    subprocess.run(["ip", "-n", netns, "link", *words], check=True, timeout=20)


@pytest.fixture
def host(node: tuple[Node, Guest], tmp_path: Path) -> Iterator[Host]:
    """The lab's host; what a page has left on it is taken away. The repository's files are below the directory."""
    (tmp_path / "docs").symlink_to(REPO / "docs")
    made = Host(enter=node[0].argv, directory=tmp_path)
    before = made.run("ls /sys/class/net")[1]
    yield made
    if "running" not in made.run("virsh domstate vm1")[1]:
        made.run("guestnet detach vm1 --all; virsh start vm1")
        node[1].wait_ready(timeout=240)
    made.run(
        "set +e; guestnet hook uninstall\n"
        "ls /run/guestnet/topology | sed s/.json$// | xargs -rn1 guestnet topology down\n"
        "for guest in $(virsh -q list --all --name); do guestnet detach $guest --all --timeout 10; done\n"
        "ls /run/netns | xargs -rn1 ip netns del; rm -f /etc/guestnet/*\n"
        f"for link in $(ls /sys/class/net); do echo '{before}' | grep -qx $link || ip link del $link; done"
    )
    assert made.run("ls /sys/class/net")[1] == before


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[Host]:
    """This machine, for pages that make a lab; which gets a name that no other has, and is down afterwards."""
    name = f"x{os.getpid() % 1_000_000}"
    named = f'guestnet() {{ command guestnet "$1" "$2" --name {name} "${{@:3}}"; }}; export -f guestnet\n'
    yield Host(enter=list, directory=tmp_path, first=named, called={name: "lab"})
    Lab(name=name).down()


@pytest.fixture
def bare_host(namespace: Callable[[], Namespace], tmp_path: Path) -> Host:
    """A host with the NICs and no guests, for pages whose links the kernel of the lab may lack."""
    made = namespace()
    for name in ("ens3", "ens4"):
        made.ip(f"link add {name} type veth peer name wire{name[-1]}")
        made.ip(f"link set {name} up")
        made.ip(f"link set wire{name[-1]} up")
    enter = ["nsenter", f"--net=/run/netns/{made.name}", "--"]
    return Host(enter=lambda command: [*enter, *command], directory=tmp_path, more={"PYTHONPATH": str(REPO)})
