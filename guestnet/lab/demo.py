"""The demo: a lab, `guestnet attach` on a running guest of each of two nodes, and the guests answering each other.

The guests are put on VLAN 11 of the nodes' NIC where this kernel has VLANs, else on the NIC itself.
"""

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from guestnet.errors import GuestnetError
from guestnet.kernel.link import Links
from guestnet.lab.lab import Lab
from guestnet.lab.node import Node
from guestnet.model import Kind

ADDRESSES = {"n1": ("203.0.113.1", "2001:db8:71::1"), "n2": ("203.0.113.2", "2001:db8:71::2")}
"""What the guests of the two nodes get on their new NIC: ranges kept for documentation (RFC 5737, RFC 3849)."""

PARENT, VLAN = "nic0", "nic0.11"

_TRIES = 20
"""How often a ping is sent before it counts as unanswered: the first few meet an IPv6 address still being checked."""


def demo(name: str, say: Callable[[str], None], *, keep: bool = False) -> None:
    """Show it all, each step with the seconds it took, and clean up; with ``keep`` the lab stays as it is.

    Raises GuestnetError when a ping is not answered; the lab is taken down then too.
    """
    lab = Lab(name=name)
    begun = time.monotonic()
    try:
        with _step("two hosts, a switch between them, a guest on each", say):
            lab.up(nodes=2, guests=1, progress=lambda text: say(f"    {text}"))
        show(lab.nodes(), say)
    except BaseException:
        lab.down()
        raise
    if keep:
        say(f"the lab {name} is up; try: guestnet lab exec --name {name} n1 -- guestnet list")
        say(f"guestnet lab down --name {name} takes it away")
    else:
        with _step("all of it taken down", say):
            lab.down()
    say(f"done in {time.monotonic() - begun:.1f} s")


def show(nodes: tuple[Node, ...], say: Callable[[str], None]) -> None:
    """Attach the first guest of each of two nodes that are up, and let the two reach each other.

    Raises GuestnetError when a ping is not answered.
    """
    with Links() as links:
        parent = VLAN if links.supports(Kind.VLAN) else PARENT
    if parent is PARENT:
        say("* this kernel has no 802.1Q VLANs: the guests go on the NIC itself")
    for node in nodes:
        guest = node.guests[0].name
        _on_node(node, ("guestnet", "attach", guest, "--parent", parent, "--mode", "bridge"), say)
    for node in nodes:
        _give_addresses(node, say)
    for node, other in (nodes, reversed(nodes)):
        for address in ADDRESSES[other.name]:
            _ping(node, address, say)
    _on_node(nodes[0], ("guestnet", "list"), say)
    if parent is VLAN:
        _on_node(nodes[0], ("guestnet", "vlan", "list"), say)


@contextmanager
def _step(what: str, say: Callable[[str], None]) -> Iterator[None]:
    say(f"* {what}")
    begun = time.monotonic()
    yield
    say(f"    {time.monotonic() - begun:.2f} s")


def _on_node(node: Node, words: tuple[str, ...], say: Callable[[str], None]) -> None:
    with _step(f"on {node.name}: {shlex.join(words)}", say):
        done = node.run([sys.executable, "-m", *words])
        if done.returncode != 0:
            raise GuestnetError(f"{shlex.join(words)} on {node.name} failed: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            say(f"    {line}")


def _give_addresses(node: Node, say: Callable[[str], None]) -> None:
    guest = node.guests[0]
    four, six = ADDRESSES[node.name]
    with _step(f"in {guest.name}: {four}/24 and {six}/64 on its new NIC", say):
        mac = re.search(r"52:54:00(?::[0-9a-f]{2}){3}", node.virsh("domiflist", guest.name))
        if mac is None:
            raise GuestnetError(f"{guest.name} has no NIC")
        name = guest.wait_nic(mac[0])
        status, output = guest.run(
            f"ip link set {name} up && ip addr add {four}/24 dev {name} && ip addr add {six}/64 dev {name}"
        )
        if status != 0:
            raise GuestnetError(f"{guest.name} took no address: {output}")


def _ping(node: Node, address: str, say: Callable[[str], None]) -> None:
    guest = node.guests[0]
    word = "ping6" if ":" in address else "ping"
    with _step(f"in {guest.name}: {word} {address}", say):
        status, output = guest.run(
            f"n={_TRIES}; while [ $n -gt 0 ]; do {word} -c 1 -W 1 {address} && exit 0; n=$((n-1)); usleep 100000; "
            "done; exit 1",
            timeout=_TRIES * 2.0,
        )
        if status != 0:
            raise GuestnetError(f"{guest.name} got no answer from {address}")
        answer = next(line for line in output.splitlines() if "bytes from" in line)
        say(f"    {answer}")
