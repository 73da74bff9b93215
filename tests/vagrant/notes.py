"""vagrant/notes for real: two nodes with a trunk between them, and in each a guest of topology 0.5-guest."""

from pathlib import Path

from guestnet.lab import Lab
from tests.vagrant import box
from tests.vagrant.vagrant import NOTES, Vagrant, must, say

NODES = ("n1", "n2")
TRUNK = "guestnet-trunk"
TTL = 62
"""Of an answer that both hosts have routed."""

UP_SECONDS = 1800.0
SECONDS = 300.0
"""A command in a node: Python starts ten times slower there."""

NODE = "sudo /opt/guestnet/bin/python /guestnet/vagrant/notes/node.py"


def tried(lab: Lab, scratch: Path, file: Path) -> None:
    """Up, the guests reached from each other, the trunk tried with a tag, destroyed."""
    [here] = lab.nodes()
    # a guest in an emulated machine runs several times faster on the SVM that QEMU emulates than emulated once more
    vagrant = Vagrant(here, NOTES, scratch, GUESTNET_BOX=box.nodes().name, GUESTNET_LAB_KVM="1")
    vagrant.run("box", "add", "--name", box.nodes().name, str(file))
    vagrant.run("up", "--provider", "libvirt", seconds=UP_SECONDS)
    for node in NODES:
        vagrant.ssh(node, "sudo guestnet topology status 0.5-guest --check", seconds=SECONDS)
    for node, source, target in (("n1", "n1g1", "n2g1"), ("n2", "n2g1", "n1g1")):
        said = vagrant.ssh(node, f"{NODE} ping {source} {target}", seconds=SECONDS)
        must(f"{target} answers by IPv4 and IPv6 past two routers", said.count(f"ttl={TTL} ") == 2)
    for number, node in enumerate(NODES, start=1):
        address = f"ip address add 203.0.113.{number}/24 dev nic0.11"
        vagrant.ssh(node, f"sudo guestnet vlan add nic0.11 --parent nic0 --vlan 11 && sudo {address}", seconds=SECONDS)
    said = vagrant.ssh("n1", "ping -n -c 1 -w 20 203.0.113.2", seconds=SECONDS)
    must("a tagged frame arrives, and nobody routes it", "ttl=64 " in said)
    vagrant.run("destroy", "--force")
    must("the nodes are gone", not here.guest_states())
    must("the trunk is gone", TRUNK not in here.virsh("net-list", "--all", "--name").split())
    say("    nothing of it is left")
