"""`./dev test-vagrant`: vagrant up, vagrant ssh and vagrant destroy of vagrant/testbed or vagrant/notes, for real.

On one host of a lab, with that host's own libvirtd, under QEMU's emulation. The machine of the testbed is reached from
the other host by the macvtap that guestnet gave it; of the notes' two nodes, the guests in them reach each other.
"""

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from guestnet.errors import GuestnetError
from guestnet.lab import Lab
from guestnet.lab.node import Node
from guestnet.lab.programs import program
from guestnet.model import Mac
from tests.vagrant import box, notes
from tests.vagrant.vagrant import SECONDS, TESTBED, Vagrant, must, say, step

DOMAIN = "testbed_vm1"
ADDRESSES = ("198.51.100.50", "2001:db8:51::50")
"""Of the machine, in the subnets of the lab's hosts."""

UP_SECONDS = 300.0


def main() -> None:
    """Raises GuestnetError where something is not as it should be; everything is taken down first."""
    words = argparse.ArgumentParser(prog="./dev test-vagrant", description="Bring vagrant/testbed up for real.")
    words.add_argument("--notes", action="store_true", help="vagrant/notes in its place: a quarter of an hour")
    of_notes: bool = words.parse_args().notes
    begun = time.monotonic()
    for name in ("vagrant", "mmdebstrap", *(("rsync",) if of_notes else ())):
        program(name, name)
    with step("the box"):
        file = box.file_of(box.nodes() if of_notes else box.TESTBED, say)
    lab = Lab(name=f"v{secrets.token_hex(3)}")
    with tempfile.TemporaryDirectory(prefix="guestnet-vagrant-") as scratch:
        try:
            with step("one host" if of_notes else "two hosts and a switch between them"):
                lab.up(nodes=1 if of_notes else 2, guests=0, progress=lambda text: say(f"    {text}"))
            (notes.tried if of_notes else tried)(lab, Path(scratch), file)
        finally:
            with step("all of it taken down"):
                lab.down()
    say(f"done in {time.monotonic() - begun:.0f} s")


def tried(lab: Lab, scratch: Path, file: Path) -> None:
    """The testbed: up, reached, halted and up again, destroyed."""
    here, there = lab.nodes()
    vagrant = Vagrant(here, _project(scratch), scratch)
    vagrant.run("box", "add", "--name", box.TESTBED.name, str(file))
    vagrant.run("up", "--provider", "libvirt", seconds=UP_SECONDS)
    must("vagrant ssh gives the status of its command", vagrant.status("ssh", "-c", "exit 5") == 5)
    [nic] = _guestnet(here, "list", DOMAIN)
    must(f"the machine has a NIC on nic0, live and in its configuration: {nic}",
         (nic["parent"], nic["live"], nic["config"]) == ("nic0", True, True))  # fmt: skip
    machine_id = here.run(("cat", "/etc/machine-id")).stdout.strip()
    must("its MAC is the one that attach would choose", nic["mac"] == Mac.derive(machine_id, DOMAIN, "nic0", 0))
    _must_answer(there)
    with step(f"on {there.name}: ssh vagrant@{ADDRESSES[0]}"):
        words = ("-i", str(vagrant.key()), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
        done = there.run(("ssh", *words, f"vagrant@{ADDRESSES[0]}", "ip -br address"), timeout=SECONDS)
        for line in done.stdout.splitlines():
            say(f"    {line}")
        must("the machine's own NIC has the address", done.returncode == 0 and ADDRESSES[0] in done.stdout)
    vagrant.run("halt")
    must("a machine that is halted has no macvtap", not _macvtaps(here))
    # with triggers that do nothing: it is the hook that makes the link
    vagrant.run("up", seconds=UP_SECONDS, GUESTNET="true")
    must("the machine has its NIC again, by libvirt's hook", bool(_macvtaps(here)))
    _must_answer(there)
    vagrant.run("destroy", "--force")
    must("the machine is gone", DOMAIN not in here.guest_states())
    must(f"its macvtap is gone too: {_macvtaps(here)}", not _macvtaps(here))
    say("    nothing of it is left")


def _project(scratch: Path) -> Path:
    """A copy of vagrant/testbed with a machine that fits the lab."""
    project = Path(shutil.copytree(TESTBED, scratch / "testbed"))
    machine = {"nics": [{"parent": "lan", "addresses": [f"{ADDRESSES[0]}/24", f"{ADDRESSES[1]}/64"]}]}
    described = {"name": "testbed", "box": box.TESTBED.name, "memory": 256, "machines": {"vm1": machine}}
    for name, content in (("testbed", described), ("parents", {"parents": {"lan": "nic0"}})):
        (project / f"{name}.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return project


def _must_answer(there: Node) -> None:
    for address in ADDRESSES:
        with step(f"on {there.name}: ping {address}"):
            done = there.run(("ping", "-n", "-c", "1", "-w", "20", address))
            say("    " + next((line for line in done.stdout.splitlines() if "bytes from" in line), "no answer"))
            must(f"{address} answers", done.returncode == 0)


def _macvtaps(node: Node) -> list[str]:
    return [link["ifname"] for link in json.loads(node.run(("ip", "-j", "link", "show", "type", "macvtap")).stdout)]


def _guestnet(node: Node, *words: str) -> list[dict[str, object]]:
    done = node.run((sys.executable, "-m", "guestnet", *words, "--json"))
    if done.returncode != 0:
        raise GuestnetError(f"guestnet {words[0]} on {node.name} failed: {done.stdout}{done.stderr}")
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    try:
        main()
    except GuestnetError as error:
        sys.exit("\n".join([f"test-vagrant: {error.message}", *getattr(error, "__notes__", ())]))
