"""Topologies and the host's own link after a boot: the systemd units, as files and by systemd itself."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.libvirt.conftest import Host
from tests.topology.conftest import Hosts

pytestmark = pytest.mark.root

UNITS = "/etc/systemd/system"
UNIT = f"{UNITS}/guestnet-topology-0.2.service"
WANTS = f"{UNITS}/multi-user.target.wants/guestnet-topology-0.2.service"


@pytest.fixture
def n1(bare_hosts: Hosts) -> Iterator[Host]:
    """A host; after the test nothing is brought up at its boot."""
    yield bare_hosts.n1
    bare_hosts.n1.guestnet("topology", "down", "0.2")


def test_its_unit_is_right_for_systemd_and_brings_it_up_again(n1: Host) -> None:
    planned = n1.guestnet("topology", "plan", "0.2", "--parent", "lan=nic0", "--persist").out
    assert "would write the systemd unit guestnet-topology-0.2.service" in planned
    assert n1.node.run(["ls", UNIT]).returncode != 0
    made = n1.json("topology", "up", "0.2", "--parent", "lan=nic0", "--persist")
    assert made["persists"]
    assert made["steps"][-1].startswith("write the systemd unit")
    assert n1.json("topology", "up", "0.2", "--parent", "lan=nic0", "--persist")["steps"] == []
    assert n1.json("topology", "up", "0.2")["steps"] == []
    assert n1.json("topology", "status", "0.2")["persists"]
    checked = n1.node.run(["systemd-analyze", "verify", UNIT])
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert n1.run("readlink", WANTS).strip() == UNIT
    lines = dict(line.split("=", 1) for line in n1.run("cat", UNIT).splitlines() if "=" in line)
    assert lines["Wants"].split()[0] == "sys-subsystem-net-devices-nic0.device"
    left = n1.json("topology", "down", "0.2", "--keep-unit")["steps"]
    assert "delete macvtap1" in left
    assert not any("unit" in step for step in left)
    n1.run(*shlex.split(lines["ExecStart"]))
    assert n1.json("topology", "up", "0.2")["steps"] == []
    gone = n1.json("topology", "down", "0.2")
    assert gone["steps"][-1] == "delete the systemd unit guestnet-topology-0.2.service"
    assert n1.node.run(["ls", UNIT, WANTS]).stdout == ""


def test_of_a_topology_that_its_unit_has_not_brought_up_the_unit_is_taken_away(n1: Host, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "name: own\nnodes: {n1: {parents: {lan: nic0}, endpoints: {a: {kind: netns, parent: lan}}}}", encoding="utf-8"
    )
    os.chown(path, 1, 1)
    made = n1.json("topology", "up", str(path), "--persist")
    assert any("others than root may change" in note for note in made["notes"])
    n1.json("topology", "down", "own", "--keep-unit")
    path.unlink()
    assert n1.json("topology", "down", "own")["steps"] == ["delete the systemd unit guestnet-topology-own.service"]
    assert n1.guestnet("topology", "down", "own").code == 3


def test_a_unit_of_somebody_elses_stops_it_before_anything_is_done(n1: Host) -> None:
    n1.run("sh", "-c", 'mkdir -p "${1%/*}"; echo "# mine" >"$1"', "sh", UNIT)
    try:
        answer = n1.guestnet("topology", "up", "0.2", "--persist")
        assert (answer.code, f"{UNIT} is there and is not guestnet's" in answer.err) == (5, True), answer
        assert n1.json("topology", "status") == []
        assert not n1.json("topology", "up", "0.2")["persists"]
        n1.json("topology", "down", "0.2")
        assert n1.run("cat", UNIT) == "# mine\n"
    finally:
        n1.run("rm", UNIT)


def test_on_a_host_without_systemd_it_says_so_and_writes_nothing(n1: Host) -> None:
    words = [sys.executable, "-m", "guestnet", "topology", "up", "0.2", "--persist", "--json"]
    made = json.loads(n1.node.run(["env", "PATH=/nowhere", *words]).stdout)
    assert "this host has no systemd: nothing brings it back at boot" in made["notes"]
    assert {row["state"] for row in made["rows"]} == {"up"}
    assert n1.node.run(["ls", UNIT, WANTS]).stdout == ""


BEFORE = """
set -e
mount -t tmpfs units /etc/systemd/system
mount -t tmpfs run /run
ip link add nic0 type dummy
ip link set nic0 up
"$1" -m guestnet host add nic0 --address 203.0.113.9/32 --route 203.0.113.1 --persist &
"$1" -m guestnet topology up 0.2 --persist
wait $!
exec unshare --net --pid --cgroup --fork --kill-child sh -c "$2" boot "$3"
"""

BOOT = r"""
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs run /run
for wants in /lib/systemd/system/*.wants; do mount -t tmpfs nothing "$wants"; done
ip link add nic0 type dummy
ip link set nic0 up
# what udev would tell systemd of the card
mkdir -p /run/udev/tags/systemd /run/udev/data /run/systemd/system/multi-user.target.wants
card=n$(cat /sys/class/net/nic0/ifindex)
: >/run/udev/tags/systemd/$card
printf 'I:1\nE:SYSTEMD_ALIAS=/sys/subsystem/net/devices/nic0\nG:systemd\nQ:systemd\nV:1\n' >/run/udev/data/$card
cat >/run/systemd/system/last.service <<end
[Unit]
After=guestnet-host-shim\x2dnic0.service guestnet-topology-0.2.service
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
StandardOutput=file:$1
StandardError=file:$1
ExecStart=/bin/sh -c 'systemctl is-active guestnet-*; \
    ip -br address; ip -n tap0 -br address; ping -c 1 -W 5 10.1.1.1; ip -o route get 203.0.113.1'
end
ln -s ../last.service /run/systemd/system/multi-user.target.wants/last.service
exec env container=test /lib/systemd/systemd --system --unit=multi-user.target
"""


@pytest.mark.kernel("machine")
def test_systemd_brings_both_up_at_a_boot(tmp_path: Path) -> None:
    """A systemd of its own, in namespaces, with a card as udev tells of it and with nothing else to start."""
    said, group = tmp_path / "said", Path("/sys/fs/cgroup/boot")
    group.mkdir()
    script = 'echo $$ >/sys/fs/cgroup/boot/cgroup.procs; exec unshare --net --mount sh -c "$@"'
    words = ["sh", "-c", script, "sh", BEFORE, "before", sys.executable, BOOT, str(said)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    finally:
        for directory in sorted(group.glob("**/"), reverse=True):
            directory.rmdir()
    lines = said.read_text(encoding="utf-8").splitlines() if said.exists() else [done.stdout, done.stderr]
    assert lines[:2] == ["active", "active"], lines
    has = {line.split()[0].split("@")[0]: line.split()[2:] for line in lines[2:] if "UNKNOWN" in line or " UP " in line}
    assert "203.0.113.9/32" in has["shim-nic0"]
    assert {"10.1.1.2/24", "2001:db8:1::2/64"} <= set(has["macvtap1"])
    assert {"10.1.1.1/24", "2001:db8:1::1/64"} <= set(has["macvtap0"])
    assert any("1 received" in line for line in lines)
    assert "dev shim-nic0" in lines[-1]
