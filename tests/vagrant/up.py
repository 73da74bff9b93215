"""`./dev test-vagrant`: vagrant up, vagrant ssh and vagrant destroy of vagrant/testbed, for real.

On one host of a lab, with that host's own libvirtd, under QEMU's emulation; the machine is reached from the other host
by the macvtap that guestnet gave it.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestnet.errors import GuestnetError
from guestnet.lab import Lab
from guestnet.lab.node import Node
from guestnet.lab.programs import program
from guestnet.model import Mac
from tests.vagrant import box

TESTBED = Path(__file__).resolve().parents[2] / "vagrant/testbed"
DOMAIN = "testbed_vm1"
ADDRESSES = ("198.51.100.50", "2001:db8:51::50")
"""Of the machine, in the subnets of the lab's hosts."""

UP_SECONDS = 300.0
SECONDS = 90.0


def main() -> None:
    """Raises GuestnetError where something is not as it should be; everything is taken down first."""
    begun = time.monotonic()
    for name in ("vagrant", "mmdebstrap"):
        program(name, name)
    with _step("the box"):
        file = box.box(_say)
    lab = Lab(name=f"v{secrets.token_hex(3)}")
    with tempfile.TemporaryDirectory(prefix="guestnet-vagrant-") as scratch:
        try:
            with _step("two hosts and a switch between them"):
                lab.up(nodes=2, guests=0, progress=lambda text: _say(f"    {text}"))
            _try(lab, Path(scratch), file)
        finally:
            with _step("all of it taken down"):
                lab.down()
    _say(f"done in {time.monotonic() - begun:.0f} s")


def _try(lab: Lab, scratch: Path, file: Path) -> None:
    here, there = lab.nodes()
    vagrant = Vagrant(here, scratch)
    vagrant.run("box", "add", "--name", box.NAME, str(file))
    vagrant.run("up", "--provider", "libvirt", seconds=UP_SECONDS)
    _must("vagrant ssh gives the status of its command", vagrant.status("ssh", "-c", "exit 5") == 5)
    [nic] = _guestnet(here, "list", DOMAIN)
    _must(f"the machine has a NIC on nic0, live and in its configuration: {nic}",
          (nic["parent"], nic["live"], nic["config"]) == ("nic0", True, True))  # fmt: skip
    machine_id = here.run(("cat", "/etc/machine-id")).stdout.strip()
    _must("its MAC is the one that attach would choose", nic["mac"] == Mac.derive(machine_id, DOMAIN, "nic0", 0))
    for address in ADDRESSES:
        with _step(f"on {there.name}: ping {address}"):
            done = there.run(("ping", "-n", "-c", "1", "-w", "20", address))
            _say("    " + next((line for line in done.stdout.splitlines() if "bytes from" in line), "no answer"))
            _must(f"{address} answers", done.returncode == 0)
    with _step(f"on {there.name}: ssh vagrant@{ADDRESSES[0]}"):
        words = ("-i", str(vagrant.key()), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
        done = there.run(("ssh", *words, f"vagrant@{ADDRESSES[0]}", "ip -br address"), timeout=SECONDS)
        for line in done.stdout.splitlines():
            _say(f"    {line}")
        _must("the machine's own NIC has the address", done.returncode == 0 and ADDRESSES[0] in done.stdout)
    vagrant.run("destroy", "--force")
    _must("the machine is gone", DOMAIN not in here.guest_states())
    left = [link["ifname"] for link in json.loads(here.run(("ip", "-j", "link", "show", "type", "macvtap")).stdout)]
    _must(f"its macvtap is gone too: {left}", not left)
    _say("    nothing of it is left")


class Vagrant:
    """vagrant on a node, in a copy of vagrant/testbed, with a home of its own and without a question to anybody."""

    def __init__(self, node: Node, scratch: Path) -> None:
        self._node = node
        self._home = scratch / "home"
        self._project = scratch / "testbed"
        self._home.mkdir()
        shutil.copytree(TESTBED, self._project)
        machine = {"nics": [{"parent": "lan", "addresses": [f"{ADDRESSES[0]}/24", f"{ADDRESSES[1]}/64"]}]}
        described = {"name": "testbed", "box": box.NAME, "memory": 256, "machines": {"vm1": machine}}
        for name, content in (("testbed", described), ("parents", {"parents": {"lan": "nic0"}})):
            (self._project / f"{name}.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        self._environment = {
            **os.environ,
            "VAGRANT_HOME": str(self._home),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_NO_COLOR": "1",
            "GUESTNET": str(Path(sys.executable).with_name("guestnet")),
        }

    def run(self, *words: str, seconds: float = SECONDS) -> None:
        """A command, its output shown as it comes. Raises GuestnetError where it fails."""
        status = self.status(*words, seconds=seconds)
        if status != 0:
            raise GuestnetError(f"vagrant {words[0]} ended with status {status}")

    def status(self, *words: str, seconds: float = SECONDS) -> int:
        """The status of a command, its output shown as it comes."""
        with _step(f"on {self._node.name}: vagrant {' '.join(words)}"):
            try:
                done = self._node.run(
                    ("vagrant", "--no-tty", *words), cwd=str(self._project), env=self._environment, timeout=seconds,
                    stdout=None, stderr=subprocess.STDOUT,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise GuestnetError(f"vagrant {words[0]} did not end within {seconds:g} s") from None
        return done.returncode

    def key(self) -> Path:
        """The private key of Vagrant's boxes."""
        key = self._home / "insecure_private_key"
        key.chmod(0o600)
        return key


def _guestnet(node: Node, *words: str) -> list[dict[str, object]]:
    done = node.run((sys.executable, "-m", "guestnet", *words, "--json"))
    if done.returncode != 0:
        raise GuestnetError(f"guestnet {words[0]} on {node.name} failed: {done.stdout}{done.stderr}")
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def _must(what: str, so: bool) -> None:
    if not so:
        raise GuestnetError(f"this is not so: {what}")


@contextmanager
def _step(what: str) -> Iterator[None]:
    _say(f"* {what}")
    begun = time.monotonic()
    yield
    _say(f"    {time.monotonic() - begun:.1f} s")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except GuestnetError as error:
        sys.exit("\n".join([f"test-vagrant: {error.message}", *getattr(error, "__notes__", ())]))
