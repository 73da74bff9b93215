"""guestnet detach: the guest lets go first, then everything of the NIC is gone."""

import subprocess
import sys
from collections.abc import Callable
from subprocess import PIPE

import pytest

from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest]


@pytest.mark.parametrize("by", ["mac", "ifname", "--all"])
def test_a_nic_goes_from_the_guest_the_configuration_and_the_host(n1: Host, by: str) -> None:
    before = n1.state()
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    done = n1.json("detach", "n1g1", nic.get(by, by))
    assert (done["live"], done["config"], done["changed"]) == (True, True, True)
    [told] = done["nics"]
    assert (told["live"], told["config"], told["carrier"]) == (False, False, None)
    assert n1.state() == before
    n1.guest("n1g1").wait_no_nic(nic["mac"], timeout=1)


def test_only_the_nic_that_was_named_goes(n1: Host) -> None:
    nics = n1.json("attach", "n1g1", "--parent", "nic0", "--parent", "nic1")["nics"]
    n1.json("detach", "n1g1", nics[0]["mac"])
    assert [row["mac"] for row in n1.json("list", "n1g1")] == [nics[1]["mac"]]
    assert nics[0]["ifname"] not in n1.links()
    assert nics[1]["ifname"] in n1.links()


def test_live_alone_leaves_the_configuration_and_the_link(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    n1.json("detach", "n1g1", nic["mac"], "--live")
    row = n1.json("show", "n1g1")[0]
    assert (row["live"], row["config"], row["interface"]) == (False, True, nic["ifname"])
    assert nic["ifname"] in n1.links()
    again = n1.json("attach", "n1g1", "--parent", "nic0")
    assert [step.split()[0] for step in again["steps"]] == ["write", "plug"]


def test_a_guest_that_does_not_answer_keeps_its_nic_whole(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    n1.virsh("suspend", "n1g1")
    try:
        before = n1.state()
        for _ in range(2):
            done = n1.guestnet("detach", "n1g1", nic["mac"], "--timeout", "1")
            assert done.code == 6
            assert "did not let go" in done.err
            assert "the request stands" in done.err
            assert n1.state() == before
    finally:
        n1.virsh("resume", "n1g1")
    n1.json("detach", "n1g1", nic["mac"])
    assert nic["ifname"] not in n1.links()


def test_a_guest_that_was_asked_while_it_booted_is_asked_again(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    n1.virsh("destroy", "n1g1")
    n1.virsh("start", "n1g1")
    n1.json("detach", "n1g1", nic["mac"], "--timeout", "60")
    assert nic["ifname"] not in n1.links()
    n1.guest("n1g1").wait_ready()
    n1.guest("n1g1").wait_no_nic(nic["mac"], timeout=1)


def test_who_ends_a_detach_hears_that_the_guest_was_asked(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    n1.virsh("suspend", "n1g1")
    try:
        words = ("timeout", "--signal=INT", "2", sys.executable, "-m", "guestnet", "detach", "n1g1", nic["mac"])
        done = n1.node.run(words)
        assert "n1g1 was asked to let go of the NIC" in done.stderr, done
        assert "Then run the same detach again" in done.stderr
    finally:
        n1.virsh("resume", "n1g1")
    n1.json("detach", "n1g1", nic["mac"])
    assert nic["ifname"] not in n1.links()


def test_a_nic_whose_guest_is_undefined_is_deleted_by_the_guests_name(
    n1: Host, bare_domain: Callable[..., str]
) -> None:
    name = bare_domain(start=False)
    nic = n1.json("attach", name, "--parent", "nic0")["nics"][0]
    n1.virsh("undefine", name)
    row = next(row for row in n1.json("list") if row["interface"] == nic["ifname"])
    assert (row["guest"], row["state"]) == (name, "gone")
    assert "its guest is gone" in row["problems"][0]
    n1.json("detach", name, nic["ifname"])
    assert nic["ifname"] not in n1.links()
    assert n1.guestnet("detach", name, nic["ifname"]).code == 3


def test_a_link_that_a_process_holds_is_not_deleted_for_a_guest_libvirt_does_not_know(
    n1: Host, bare_domain: Callable[..., str]
) -> None:
    name = bare_domain(start=False)
    nic = n1.json("attach", name, "--parent", "nic0")["nics"][0]
    n1.virsh("undefine", name)
    tap = f"/dev/tap{n1.links()[nic['ifname']]['ifindex']}"
    holder = subprocess.Popen(
        n1.node.argv(["sh", "-c", f"exec 3<>{tap}; echo open; read -r line"]), stdin=PIPE, stdout=PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"open\n"
        done = n1.guestnet("detach", name, "--all")
        assert (done.code, f"held open by process {holder.pid}" in done.err) == (5, True), done
        assert nic["ifname"] in n1.links()
    finally:
        holder.communicate(b"\n")
    n1.json("detach", name, "--all")
    assert nic["ifname"] not in n1.links()


def test_a_nic_that_virsh_detached_is_forgotten_too(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    n1.virsh("detach-interface", "n1g1", "ethernet", "--mac", nic["mac"], "--live", "--config")
    n1.guest("n1g1").wait_no_nic(nic["mac"])
    row = n1.json("list", "n1g1")[0]
    assert "its <interface> is gone" in row["problems"][0]
    n1.json("detach", "n1g1", nic["mac"])
    assert n1.json("list", "n1g1") == []
    assert nic["ifname"] not in n1.links()


def test_a_dry_run_of_detach_and_set_changes_nothing(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0")["nics"][0]
    before = n1.state()
    gone = n1.guestnet("detach", "n1g1", "--all", "--dry-run", check=True).out.splitlines()
    assert [line.split()[1] for line in gone] == ["unplug", "take", "write", "delete"]
    n1.guestnet("set", "n1g1", nic["mac"], "--mode", "vepa", "--dry-run", check=True)
    assert n1.state() == before


@pytest.mark.parametrize("nic", ["52:54:00:99:99:99", "nosuch0"])
def test_a_nic_that_is_not_there_is_not_found(n1: Host, nic: str) -> None:
    done = n1.guestnet("detach", "n1g1", nic)
    assert (done.code, "hint: " in done.err) == (3, True)
