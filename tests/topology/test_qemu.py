"""A macvtap that a topology makes for a QEMU which somebody runs by hand."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestnet.lab.image import image
from tests.qemu.conftest import Bare
from tests.topology.conftest import Hosts, python

pytestmark = [pytest.mark.root, pytest.mark.guest]

TEXT = """
name: byhand
nodes:
  n1:
    parents: {lan: nic0}
    endpoints:
      vm: {kind: qemu, parent: lan, addresses: [203.0.113.1/24]}
      own: {kind: host, parent: lan, addresses: [203.0.113.9/24]}
"""

OPEN = """
import json, sys
from guestnet.kernel.tap import Tap
with Tap.open(sys.argv[1]) as tap:
    json.dump([tap.device.mac, tap.device.path], sys.stdout)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="gn") as directory:
        yield Path(directory)


def test_a_qemu_runs_on_it_and_answers(hosts: Hosts, short: Path) -> None:
    host, guest = hosts.n1, Bare.at(short, image())
    (short / "net.yaml").write_text(TEXT, encoding="utf-8")
    made = host.json("topology", "up", str(short / "net.yaml"))
    row = next(row for row in made["rows"] if row["name"] == "vm")
    link = host.links()[row["link"]]
    assert row["link"] == "gn" + row["mac"].replace(":", "")
    assert {"UP", "ALLMULTI"} <= set(link["flags"])
    assert link["inet6_addr_gen_mode"] == "none"
    node = f"/dev/tap{link['ifindex']}"
    assert python(host, OPEN, row["link"]) == [row["mac"], node]
    nic = ["-netdev", "tap,id=n0,fd=3", "-device", f"virtio-net-pci,netdev=n0,mac={row['mac']}"]
    words = host.node.argv(["sh", "-c", f'exec "$@" 3<>{node}', "sh", *guest.words, *nic])
    null = subprocess.DEVNULL
    with subprocess.Popen(words, stdin=null, stdout=null, stderr=subprocess.PIPE, text=True) as process:
        try:
            guest.booted(process)
            name = guest.wait_nic(row["mac"])
            status, said = guest.run(f"ip link set {name} up && ip addr add 203.0.113.1/24 dev {name}")
            assert status == 0, said
            [shown] = host.json("topology", "status", str(short / "net.yaml"), "--check")["pings"]
            assert (shown["source"], shown["target"], shown["ttl"]) == ("n1/own", "n1/vm", 64)
        finally:
            process.kill()
    assert host.json("topology", "up", str(short / "net.yaml"))["steps"] == []
