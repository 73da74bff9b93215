"""On a node, as root: makes the tiny guests that topology 0.5-guest has here, and brings its part of it up.

    node.py                     make, start and furnish them
    node.py ping n1g1 n2g1      ping the one's addresses from inside the other

Run again it changes nothing. The guests get inside what the file says of them, as a guest of your own would get it by
cloud-init; after a restart of a guest run this again.
"""

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from guestnet.errors import TimedOutError
from guestnet.lab.guest import PAUSE, Guest, domain_xml
from guestnet.lab.image import image, kvm_works
from guestnet.plan.layout import Endpoint, Topology, Where
from guestnet.topology import document

TOPOLOGY = "0.5-guest"
CONSOLES = Path("/var/log/libvirt/qemu")
"""Where the guests' XML has what they print; libvirt makes it with the first guest that has a log."""

BOOT_SECONDS = 240.0
KVM_BOOT_SECONDS = 90.0
"""For the boot of a guest, all of it emulated in an emulated machine, and under KVM."""
NIC_SECONDS = 120.0


def main(words: list[str]) -> None:
    """Raises GuestnetError, CalledProcessError."""
    topology = document.find(TOPOLOGY)
    match words:
        case []:
            bring_up(topology)
        case ["ping", source, target]:
            ping(guest_of(topology, source), guest_of(topology, target))
        case _:
            sys.exit("usage: node.py, or node.py ping GUEST GUEST")


def guest_of(topology: Topology, name: str) -> Endpoint:
    """The guest of that name, on whatever node."""
    guests = {one.inside: one for one in topology.endpoints if one.kind is Where.GUEST}
    if name not in guests:
        sys.exit(f"topology {TOPOLOGY} has no guest {name}, but {', '.join(guests)}")
    return guests[name]


def ping(source: Endpoint, target: Endpoint) -> None:
    """Show the answer of each of the target's addresses, asked from inside the source."""
    if source.node != socket.gethostname():
        sys.exit(f"{source.inside} is on {source.node}: call this there")
    guest = Guest(name=source.inside, node=source.node, own=Path("/"))
    for address in target.addresses:
        command = "ping6" if address.version == 6 else "ping"
        # the first may go while the neighbours still look for each other
        asked = f"for i in 1 2 3 4 5; do {command} -c 1 -W 3 {address.ip} && exit 0; done; exit 1"
        status, output = guest.run(asked, timeout=60)
        answer = next((line for line in output.splitlines() if "bytes from" in line), "")
        say(f"{source.inside}: {answer or output.strip()}")
        if status != 0:
            sys.exit(f"{target.inside} does not answer {source.inside} from {address.ip}")


def bring_up(topology: Topology) -> None:
    """Make this node's guests and its part of the topology."""
    here = socket.gethostname()
    guests = [one for one in topology.endpoints if one.node == here and one.kind is Where.GUEST]
    for endpoint in guests:
        start(endpoint.inside)
    answer = json.loads(run("guestnet", "topology", "up", TOPOLOGY, "--json"))
    macs = {row["name"]: row["mac"] for row in answer["rows"]}
    for endpoint in guests:
        furnish(Guest(name=endpoint.inside, node=here, own=Path("/")), endpoint, macs[endpoint.name])
        say(f"{endpoint.inside} has {', '.join(map(str, endpoint.addresses))}")


def start(name: str) -> None:
    """Define and start a guest of the lab's kind, where it is not there yet."""
    if name not in run("virsh", "list", "--all", "--name").split():
        made = image(say)
        kvm = kvm_works(made, say)
        link = Path("/run/lab/image")  # where its XML has the kernel
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(made.directory)
        CONSOLES.mkdir(parents=True, exist_ok=True)
        subprocess.run(("virsh", "-q", "define", "/dev/stdin"), input=domain_xml(name, vcpus=1, kvm=kvm), check=True)
    guest = Guest(name=name, node=socket.gethostname(), own=Path("/"))
    if name not in run("virsh", "list", "--name").split():
        run("virsh", "-q", "start", name)
    if "<domain type='kvm'" in run("virsh", "dumpxml", name):
        try:
            guest.wait_ready(timeout=KVM_BOOT_SECONDS)
        except TimedOutError:  # KVM on an emulated or nested SVM loses a guest's interrupt now and then
            say(f"{name} has not booted within {KVM_BOOT_SECONDS:g} s under KVM: starting it anew")
            run("virsh", "-q", "destroy", name)
            run("virsh", "-q", "start", name)
    guest.wait_ready(timeout=BOOT_SECONDS)
    say(f"{name} runs")


def furnish(guest: Guest, endpoint: Endpoint, mac: str) -> None:
    """Give the guest's NIC its addresses and routes."""
    nic = guest.wait_nic(mac, timeout=NIC_SECONDS)
    commands = [f"ip link set {nic} up", *(f"ip addr replace {one} dev {nic}" for one in endpoint.addresses)]
    for route in sorted(endpoint.routes, key=lambda route: route.via is not None):
        via = f"via {route.via} " if route.via is not None else ""
        commands.append(f"ip -{route.to.version} route replace {route.to} {via}dev {nic}")
    # an address is the guest's own when nobody else has answered for it (DAD)
    commands.append(f"while ip -6 addr show dev {nic} | grep -q tentative; do {PAUSE}; done")
    status, output = guest.run(" && ".join(commands), timeout=NIC_SECONDS)
    if status != 0:
        sys.exit(f"{guest.name} did not take its addresses: {output}")


def run(*words: str) -> str:
    """What a command answers."""
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        (program if program.exists() else words[0], *words[1:]), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{shlex.join(words)} ended with status {done.returncode}")
    return done.stdout


def say(text: str) -> None:
    """One line about what goes on."""
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
