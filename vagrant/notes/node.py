"""On a node, as root: makes the tiny guests that topology 0.5-guest has here, and brings its part of it up.

Run again it changes nothing. The guests get inside what the file says of them, as a guest of your own would get it by
cloud-init; after a restart of a guest run this again.
"""

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from guestnet.lab.guest import Guest, domain_xml
from guestnet.lab.image import image, kvm_works
from guestnet.plan.layout import Endpoint, Where
from guestnet.topology import document

TOPOLOGY = "0.5-guest"
CONSOLES = Path("/var/log/libvirt/qemu")
"""Where the guests' XML has what they print; libvirt makes it with the first guest that has a log."""


def main() -> None:
    """Raises GuestnetError, CalledProcessError."""
    topology = document.find(TOPOLOGY)
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
    if name not in run("virsh", "list", "--name").split():
        run("virsh", "-q", "start", name)
    Guest(name=name, node="", own=Path("/")).wait_ready(timeout=240)
    say(f"{name} runs")


def furnish(guest: Guest, endpoint: Endpoint, mac: str) -> None:
    """Give the guest's NIC its addresses and routes."""
    nic = guest.wait_nic(mac)
    commands = [f"ip link set {nic} up", *(f"ip addr replace {one} dev {nic}" for one in endpoint.addresses)]
    for route in sorted(endpoint.routes, key=lambda route: route.via is not None):
        via = f"via {route.via} " if route.via is not None else ""
        commands.append(f"ip -{route.to.version} route replace {route.to} {via}dev {nic}")
    status, output = guest.run(" && ".join(commands))
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
    main()
