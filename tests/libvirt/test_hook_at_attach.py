"""The hook and attach: the first attachment for good installs it, and it makes the links of guests that do not run."""

import json
import os
import site
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestnet import attachment
from tests.libvirt.conftest import Host, address, ping

pytestmark = [pytest.mark.root, pytest.mark.guest]

REPO = Path(__file__).resolve().parents[2]
HOOK = "/etc/libvirt/hooks/qemu.d/guestnet"
STEP = f"install libvirt's hook {HOOK}, which makes the links of guests when they start"


@pytest.fixture(autouse=True)
def unhooked(hosts: tuple[Host, Host]) -> Iterator[None]:
    """Before and after each test the first host has no hook."""
    hosts[0].guestnet("hook", "uninstall", check=True)
    yield
    hosts[0].guestnet("hook", "uninstall", check=True)


def ready(host: Host) -> bool:
    return bool(host.json("hook", "status")["ready"])


def verbs(done: dict[str, list[str]]) -> list[str]:
    return [step.split()[0] for step in done["steps"]]


def test_the_first_attachment_for_good_installs_it_and_says_so(n1: Host) -> None:
    dry = n1.guestnet("attach", "n1g1", "--parent", "nic0", "--dry-run", hook=True, check=True).out.splitlines()
    assert f"would {STEP}" in dry
    assert not ready(n1)
    done = n1.json("attach", "n1g1", "--parent", "nic0", hook=True)
    assert [line for line in dry if line.startswith("would")] == [f"would {step}" for step in done["steps"]]
    assert [note for note in done["notes"] if HOOK in note] != []
    assert ready(n1)
    second = n1.json("attach", "n1g1", "--parent", "nic1", hook=True)
    assert "install" not in verbs(second)
    assert n1.json("attach", "n1g1", "--parent", "nic1", hook=True)["steps"] == []


def test_a_python_that_others_may_change_is_said_with_the_installation(n1: Host, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, symlinks=False)
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "paths.pth").write_text("\n".join([str(REPO), *site.getsitepackages()]) + "\n", encoding="utf-8")
    os.chown(place / "bin", 65534, 0)
    words = [str(place / "bin/python"), "-m", "guestnet", "attach", "n1g1", "--parent", "nic0", "--dry-run", "--json"]
    done = n1.node.run(words)
    assert done.returncode == 0, done
    notes = json.loads(done.stdout)["notes"]
    assert f"libvirt runs the hook as root, and others than root may change {place / 'bin'}" in notes, notes
    done = n1.node.run([*words, "--live"])
    assert "others than root" not in done.stdout


def test_the_parent_that_a_stopped_guest_misses_is_told(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(start=False)
    n1.run(*["ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"])
    nic = n1.json("attach", name, "--parent", "gone0", hook=True)["nics"][0]
    rows = {row["mac"]: row["problems"] for row in n1.json("list")}
    assert rows == {nic["mac"]: []}
    n1.run(*["ip", "link", "delete", "gone0"])
    [row] = n1.json("list")
    assert [text.startswith("there is no interface gone0") for text in row["problems"]] == [True], row
    assert row["problems"][0].endswith("the guest cannot start")


def test_the_same_attach_installs_it_where_it_is_missing(n1: Host) -> None:
    n1.json("attach", "n1g1", "--parent", "nic0")
    assert not ready(n1)
    assert n1.json("attach", "n1g1", "--parent", "nic0", hook=True)["steps"] == [STEP]
    assert ready(n1)


@pytest.mark.parametrize(("words", "guest"), [(("--no-hook",), "n1g1"), (("--live",), "n1g1"), ((), "transient")])
def test_what_is_not_for_good_or_declines_it_installs_nothing(
    n1: Host, bare_domain: Callable[..., str], words: tuple[str, ...], guest: str
) -> None:
    name = bare_domain(transient=True) if guest == "transient" else guest
    assert "install" not in verbs(n1.json("attach", name, "--parent", "nic0", *words, hook=True))
    assert not ready(n1)


def test_a_stopped_guest_has_no_link_before_it_starts_and_none_after_it(n1: Host) -> None:
    n1.virsh("destroy", "n1g2")
    try:
        done = n1.json("attach", "n1g2", "--parent", "nic0", hook=True)
        assert verbs(done) == ["install", "write", "plug"]
        [nic] = done["nics"]
        assert nic["ifname"] not in n1.links()
        assert n1.json("list", "n1g2")[0]["problems"] == []
        assert n1.json("repair", "n1g2")["steps"] == []
        assert n1.json("attach", "n1g2", "--parent", "nic0", hook=True)["steps"] == []
        n1.virsh("start", "n1g2")
        guest = n1.guest("n1g2")
        guest.wait_ready()
        address(guest, nic["mac"], "198.51.100.95/24")
        assert ping(guest, "198.51.100.2")
        assert n1.json("list", "n1g2")[0]["problems"] == []
        n1.virsh("destroy", "n1g2")
        assert nic["ifname"] not in n1.links()
        n1.json("detach", "n1g2", nic["mac"])
        assert nic["mac"] not in n1.config("n1g2")
    finally:
        if n1.virsh("domstate", "n1g2").strip() == "shut off":
            n1.virsh("start", "n1g2")
        n1.guest("n1g2").wait_ready()


def test_without_the_hook_the_link_of_a_stopped_guest_is_made_at_once(
    n1: Host, bare_domain: Callable[..., str]
) -> None:
    name = bare_domain(start=False)
    nic = n1.json("attach", name, "--parent", "nic0")["nics"][0]
    assert nic["ifname"] in n1.links()
    n1.guestnet("hook", "install", check=True)
    assert n1.json("attach", name, "--parent", "nic0", hook=True)["steps"] == []
    assert n1.json("gc")["links"][0]["why"] == f"a NIC of {name} (config)"


def test_a_nic_for_the_next_start_of_a_guest_that_runs_has_no_link_yet(n1: Host) -> None:
    nic = n1.json("attach", "n1g1", "--parent", "nic0", "--config", hook=True)["nics"][0]
    assert nic["ifname"] not in n1.links()
    assert n1.json("list", "n1g1")[0]["problems"] == []
    done = n1.json("attach", "n1g1", "--parent", "nic0", hook=True)
    assert verbs(done)[0] == "make"
    assert nic["ifname"] in n1.links()


def test_a_hook_of_somebody_elses_is_left_and_the_attach_says_how_to_do_without(n1: Host) -> None:
    n1.run("mkdir", "-p", HOOK.rpartition("/")[0])
    n1.run("sh", "-c", f"echo '#!/bin/sh' >{HOOK}")
    before = n1.state()
    try:
        done = n1.guestnet("attach", "n1g1", "--parent", "nic0", hook=True)
        assert (done.code, "is not guestnet's" in done.err, "--no-hook" in done.err) == (5, True, True), done
        assert n1.state() == before
    finally:
        n1.run("rm", HOOK)


FAIL = """
from guestnet import attachment
from guestnet.model import Request

def watch(phase, step):
    if phase == "begin" and str(step).startswith("plug"):
        raise KeyboardInterrupt

attachment.attach("n1g1", (Request(parent="nic1"),), attachment.Options(uri="qemu:///system", hook=True, watch=watch))
"""


@pytest.mark.parametrize("other", [False, True])
def test_an_attach_that_fails_takes_the_hook_back_unless_another_guest_counts_on_it(n1: Host, other: bool) -> None:
    import sys

    if other:
        n1.json("attach", "n1g2", "--parent", "nic0")
    done = n1.node.run([sys.executable, "-c", FAIL])
    assert "KeyboardInterrupt" in done.stderr
    assert "not undone" not in done.stderr
    assert ready(n1) == other
    assert attachment.Options(uri="").hook is False
