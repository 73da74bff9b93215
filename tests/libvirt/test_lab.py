"""The lab on the real kernel, libvirt and QEMU: what it gives, and that nothing is left of it whatever was killed."""

import concurrent.futures
import contextlib
import glob
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guestnet.errors import ConflictError, NotFoundError, TimedOutError, UsageError
from guestnet.lab import Guest, Lab
from guestnet.lab.processes import Homes, living

pytestmark = [pytest.mark.root, pytest.mark.guest]

PROGRAM = """
import sys
from guestnet.lab import Lab
getattr(Lab(name=sys.argv[1]), sys.argv[2])(progress=lambda line: print(line, flush=True), **eval(sys.argv[3]))
"""

UP_AND_DOWN = """
import sys
from guestnet.lab import Lab
lab = Lab(name=sys.argv[1])
lab.up(nodes=2, guests=0)
lab.down()
"""


def spaces(pid):
    """The mount, network and host name namespace of a process."""
    return [os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in ("mnt", "net", "uts")]


def traces():
    """What a lab could leave on the machine: links, namespaces, mounts, files, processes in other namespaces.

    Other labs than this file's, whose names begin with lt, may come and go meanwhile.
    """
    others = set()
    for state in set(glob.glob("/run/guestnet/lab/*/")) - set(glob.glob("/run/guestnet/lab/lt*/")):
        with contextlib.suppress(FileNotFoundError):
            others.update(living(Homes(device=os.stat(state).st_dev)))
    links = json.loads(subprocess.run(["ip", "-json", "link"], check=True, capture_output=True).stdout)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    processes = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # ended, a zombie, or closed to us
            if int(pid) not in others and spaces(pid) != spaces("self"):
                processes.add((int(pid), Path(f"/proc/{pid}/comm").read_text().strip()))
    libvirt = [
        path for top in ("run", "var/lib", "var/cache", "var/log", "etc") for path in glob.glob(f"/{top}/libvirt/*")
    ]
    return {
        "links": {link["ifname"] for link in links},
        "namespaces": set(glob.glob("/run/netns/gnlab-lt*")),
        # ip-netns(8) makes the mount /run/netns and keeps it
        "mounts": {
            point for point in mounts if not re.match("/run/(netns$|(netns/gnlab-|guestnet/lab/)(?!lt))", point)
        },
        "processes": processes,
        "state": set(glob.glob("/run/guestnet/lab/lt*")),
        "libvirt": set(libvirt),
    }


@pytest.fixture
def nothing_stays():
    """Nothing that a lab could leave is new when the test ends; the kernel's own clean-up gets a moment."""
    before = traces()
    yield
    deadline = time.monotonic() + 3
    while any((new := {kind: found - before[kind] for kind, found in traces().items()}).values()):
        assert time.monotonic() < deadline, new
        time.sleep(0.02)


@pytest.fixture
def made(nothing_stays):
    """Makes labs by name and takes them down after the test."""
    labs = []

    def make(name, **numbers):
        lab = Lab(name=name)
        labs.append(lab)
        lab.up(**numbers)
        return lab

    yield make
    for lab in labs:
        lab.down()


@pytest.fixture(scope="module")
def pair():
    """Two nodes with two uplinks and one guest each, for the tests that leave it as it was."""
    lab = Lab(name="ltpair")
    lab.up(nodes=2, guests=1, nics=2)
    yield lab
    lab.down()


def spawn(name, verb, **numbers):
    """A process that runs one of the lab's verbs and tells its progress on stdout."""
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, name, verb, repr(numbers)],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def macvtap(node, name, mac, parent="nic0"):
    """Make a macvtap on the node by hand; its node in /dev comes by itself, in a moment."""
    node.run(["ip", "link", "add", "link", parent, "name", name, "address", mac, "type", "macvtap"], check=True)
    node.run(["ip", "link", "set", name, "up", "allmulticast", "on"], check=True)
    index = node.run(["cat", f"/sys/class/net/{name}/ifindex"], check=True).stdout.strip()
    uevent = f"/sys/class/net/{name}/macvtap/tap{index}/dev"
    major, minor = node.run(["cat", uevent], check=True).stdout.strip().split(":")
    wait = f"for i in $(seq 100); do [ -c /dev/tap{index} ] && exit 0; sleep 0.02; done; exit 1"
    node.run(["sh", "-c", wait], check=True)
    return f"/dev/tap{index}", os.makedev(int(major), int(minor))


def tap_numbers():
    """The device numbers of the /dev/tapN on the machine; those of others may go meanwhile."""
    found = set()
    for path in glob.glob("/dev/tap*"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.stat(path).st_rdev)
    return found


def test_every_part_of_a_lab_that_is_up_is_found_alive(pair):
    status = pair.status()
    assert status.ok
    assert [node.name for node in status.nodes] == ["n1", "n2"]
    assert [nic.name for nic in status.nodes[1].nics] == ["nic0", "nic1"]
    assert status.nodes[1].nics[0].addresses == ("198.51.100.2/24", "2001:db8:51::2/64")
    assert [guest.state for node in status.nodes for guest in node.guests] == ["running", "running"]


def test_nodes_reach_each_other_through_the_switch(pair):
    for address in ("n2", "2001:db8:51::2"):
        pair.node("n1").run(["ping", "-c1", "-W3", address], check=True)


def test_a_node_has_its_own_network_devices_state_and_name(pair):
    node = pair.node("n1")
    assert node.run(["ls", "/sys/class/net"]).stdout.split() == ["lo", "nic0", "nic1"]
    assert node.run(["uname", "-n"]).stdout == "n1\n"
    assert node.run(["ls", "/run/netns"]).returncode != 0
    assert "kvm" not in node.run(["ls", "/dev"]).stdout.split() or pair.plan().kvm
    ids = {node.run(["cat", "/etc/machine-id"]).stdout for node in pair.nodes()}
    assert len({Path("/etc/machine-id").read_text() if Path("/etc/machine-id").exists() else "", *ids}) == 3
    node.run(["touch", "/etc/only-here", "/var/lib/only-here", "/run/only-here"], check=True)
    assert not any(Path(directory, "only-here").exists() for directory in ("/etc", "/var/lib", "/run"))
    node.run(["rm", "/etc/only-here", "/var/lib/only-here", "/run/only-here"], check=True)


def test_a_node_sees_the_callers_files_and_talks_to_its_own_libvirt(pair, tmp_path):
    (tmp_path / "here").touch()
    node = pair.node("n2")
    assert node.run(["ls"], cwd=str(tmp_path)).stdout == "here\n"
    assert node.run(["virsh", "list", "--name"]).stdout.split() == ["n2g1"]


def test_a_nodes_libvirt_answers_a_program_outside_it(pair):
    command = ["virsh", "-q", "-c", pair.node("n2").uri, "list", "--name"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["n2g1"]


def test_a_command_in_a_guest_gives_its_status_and_all_its_output(pair):
    guest = pair.node("n1").guest("n1g1")
    assert guest.run("echo 'a  b'; echo c >&2; exit 7") == (7, "a  b\nc\n")
    assert guest.run("seq 4000") == (0, "".join(f"{number}\n" for number in range(1, 4001)))
    assert guest.run("hostname") == (0, "n1g1\n")
    with pytest.raises(UsageError):
        guest.run("x" * 3000)


def test_commands_of_many_callers_in_one_guest_do_not_mix(pair):
    guest = pair.node("n1").guest("n1g1")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: guest.run(f"echo {number}; exit {number}"), range(16)))
    assert answers == [(number, f"{number}\n") for number in range(16)]


def test_a_guest_command_past_its_deadline_is_ended_and_the_next_one_works(pair):
    guest = pair.node("n1").guest("n1g1")
    with pytest.raises(TimedOutError):
        guest.run("echo stale; sleep 60", timeout=0.5)
    assert guest.run("echo fresh") == (0, "fresh\n")


def test_a_guest_takes_a_nic_while_it_runs_reaches_the_other_node_and_gives_it_back(pair):
    node, mac = pair.node("n1"), "52:54:00:00:00:01"
    guest = node.guest("n1g1")
    tap, _ = macvtap(node, "gntest", mac)
    xml = (
        f"<interface type='ethernet'><mac address='{mac}'/><target dev='gntest' managed='no'/>"
        "<model type='virtio'/></interface>"
    )
    node.virsh("attach-device", "n1g1", "/dev/stdin", "--live", input=xml)
    name = guest.wait_nic(mac)
    words = f"ip address add 198.51.100.101/24 dev {name} && ip link set {name} up && ping -c1 -W5 198.51.100.2"
    status, output = guest.run(words)
    assert status == 0, output
    node.virsh("detach-device", "n1g1", "/dev/stdin", "--live", input=xml)
    guest.wait_no_nic(mac)
    node.run(["ip", "link", "delete", "gntest"], check=True)
    wait = f"for i in $(seq 100); do [ -e {tap} ] || exit 0; sleep 0.02; done; exit 1"
    node.run(["sh", "-c", wait], check=True)


def test_up_refuses_a_lab_that_is_there_and_leaves_it_alone(pair):
    with pytest.raises(ConflictError):
        Lab(name="ltpair").up()
    assert pair.status().ok


def test_a_guest_obeys_shutdown_and_a_guest_that_is_off_is_called_so(pair):
    node = pair.node("n2")
    guest = node.guest("n2g1")
    node.virsh("shutdown", "n2g1")
    deadline = time.monotonic() + 20
    while node.guest_states()["n2g1"] != "shut off":
        assert time.monotonic() < deadline
    assert not pair.status().ok
    with pytest.raises(NotFoundError, match="does not run"):
        guest.run("true")
    node.virsh("start", "n2g1")
    guest.wait_ready()


def test_two_labs_stand_side_by_side_and_one_goes_without_the_other(made):
    first, second = made("ltone", nodes=1, guests=0), made("lttwo", nodes=1)
    assert first.status().ok
    assert second.status().ok
    assert first.status().nodes[0].libvirtd != second.status().nodes[0].libvirtd
    assert first.node("n1").run(["virsh", "list", "--name"]).stdout.split() == []
    first.down()
    assert second.status().ok
    assert second.node("n1").guest("n1g1").run("echo here") == (0, "here\n")
    with pytest.raises(NotFoundError):
        first.status()


def test_down_leaves_nothing_of_a_lab_whose_parts_were_killed_and_that_users_added_to(made):
    lab = made("ltparts", nodes=2)
    first, second = lab.nodes()
    taps = {macvtap(first, "gntest", "52:54:00:00:00:02")[1]}
    first.run(["ip", "link", "add", "link", "nic0", "name", "nic0.11", "type", "vlan", "id", "11"])
    first.run(["ip", "link", "add", "br9", "type", "bridge"], check=True)
    taps.add(macvtap(first, "gnbridge", "52:54:00:00:00:03", parent="br9")[1])
    first.run(["ip", "netns", "add", "inner"], check=True)
    null = subprocess.DEVNULL
    inside = first.argv(["ip", "netns", "exec", "inner", "sleep", "1000"])
    beside = ["ip", "netns", "exec", second.netns, "sleep", "1000"]
    with (
        subprocess.Popen(inside, stdin=null, stdout=null) as nested,
        subprocess.Popen(beside, stdin=null, stdout=null) as guest_of_ours,
    ):
        homes = Homes(device=lab.state.stat().st_dev, subtree="/n2/run")
        for pid in living(homes):
            if Path(f"/proc/{pid}/comm").read_text().startswith("qemu"):
                os.kill(pid, signal.SIGKILL)
        libvirtd = first.libvirtd_pid()
        assert libvirtd is not None
        os.kill(libvirtd, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", lab.switch], check=True)
        deadline = time.monotonic() + 10
        while first.libvirtd_pid() is not None or second.guest_states().get("n2g1") == "running":
            assert time.monotonic() < deadline
        status = lab.status()
        assert not status.switch
        assert status.nodes[0].libvirtd is None
        assert [guest.state for node in status.nodes for guest in node.guests] == ["unknown", "shut off"]
        lab.down()
        assert not taps & tap_numbers()
        assert nested.wait(5) == -signal.SIGKILL
        assert guest_of_ours.wait(5) == -signal.SIGKILL
    lab.down()


@pytest.mark.parametrize("share", range(8))
def test_down_leaves_nothing_of_an_up_that_was_killed_at_a_random_moment(nothing_stays, share):
    seconds = random.SystemRandom().uniform(share, share + 1) / 8 * 2.0
    with spawn("ltkill", "up", nodes=2, guests=1) as up:
        assert up.stdout is not None
        first = up.stdout.readline()  # it has begun: the imports are behind it
        time.sleep(seconds)
        up.kill()
    Lab(name="ltkill").down()
    assert first, f"killed after {seconds} s"


def test_an_interrupted_up_takes_itself_down(nothing_stays):
    with spawn("ltint", "up", nodes=2, guests=1) as up:
        assert up.stdout is not None
        while "runs" not in up.stdout.readline():
            assert up.poll() is None
        up.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in up.stdout.read()
        assert up.wait(30) != 0


def test_a_down_that_was_killed_is_finished_by_the_next(made):
    for moment in (0.0, 0.03, 0.06):
        lab = made("ltdown", nodes=2, guests=0)
        with spawn("ltdown", "down") as down:
            assert down.stdout is not None
            assert down.stdout.readline() == "ending the lab's processes\n"
            time.sleep(moment)
            down.kill()
        lab.down()
        with pytest.raises(NotFoundError):
            lab.status()


def test_down_waits_for_an_up_that_is_at_work(nothing_stays):
    with spawn("ltwait", "up", nodes=1, guests=0) as up:
        assert up.stdout is not None
        assert up.stdout.readline()
        Lab(name="ltwait").down()
        assert up.wait(30) == 0


def test_a_lab_stands_in_a_mount_namespace_made_on_either_of_two_cpus(nothing_stays):
    """As in a container; one made on the CPU that hands out the higher ids is newer than those made on the other."""
    here = sorted(os.sched_getaffinity(0))
    for cpu in here[:2]:
        inside = ["taskset", "-c", str(cpu), "unshare", "--mount", "taskset", "-c", ",".join(map(str, here))]
        command = [*inside, sys.executable, "-c", UP_AND_DOWN, "ltinside"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr


def test_an_up_that_fails_leaves_nothing(nothing_stays, monkeypatch, tmp_path):
    bad = tmp_path / "libvirtd"
    bad.write_text("#!/bin/sh\necho the daemon is broken >&2\nexit 3\n")
    bad.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Exception, match="the daemon is broken"):
        Lab(name="ltfail").up(nodes=2, guests=0)


def test_a_qemu_too_busy_to_take_a_connection_is_waited_for(tmp_path):
    guest = Guest(name="g1", node="n1", own=tmp_path)
    guest.port.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(guest.port))
        busy.listen(0)
        for _ in range(3):  # from the second on the connection is not even queued
            begun = time.monotonic()
            with pytest.raises(TimedOutError):
                guest.run("true", timeout=0.3)
            assert 0.3 <= time.monotonic() - begun < 3


def test_down_without_a_lab_does_nothing(nothing_stays):
    Lab(name="ltnone").down()


@pytest.mark.parametrize("name", ["", "Lab", "a/b", "..", "a" * 9, "a b", "a-b"])
def test_a_lab_name_is_eight_small_letters_or_digits_at_most(name):
    with pytest.raises(UsageError):
        Lab(name=name)
