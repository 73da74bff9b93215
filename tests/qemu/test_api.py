"""The NICs of a QEMU from a program of one's own, as docs/qemu.md has it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guestnet.errors import ConflictError, UsageError
from guestnet.kernel import tap
from guestnet.lab.image import Image
from guestnet.qemu import nic
from tests.conftest import REPO
from tests.qemu.conftest import Bare, Host

pytestmark = pytest.mark.root

MAC = "52:54:00:00:e6:01"


@pytest.mark.guest
def test_the_example_of_the_documentation_runs_a_guest_that_answers(
    host: Host, guest_image: Image, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    text = (REPO / "docs/qemu.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program = tmp_path / "launch.py"
    program.write_text(example.replace("ens3.11", "nic0"), encoding="utf-8")
    guest = Bare.at(tmp_path, guest_image, cpus=4)
    run = host.start(sys.executable, str(program), *guest.words)
    processes.append(run)
    guest.booted(run)
    assert run.stdout is not None
    name, mac = re.fullmatch(r"(gn\w+) has the MAC ([\w:]+)\n", run.stdout.readline()).groups()  # type: ignore[union-attr]
    guest.answers(mac, "nic0", host)
    qemu = [pid for pid in host.holders(name) if pid != run.pid]
    os.kill(qemu[0], signal.SIGTERM)
    assert run.wait(30) == 0
    assert host.ours() == {}


def test_a_nic_has_its_fds_and_its_identity_and_goes_with_the_block(host: Host) -> None:
    def use() -> None:
        with nic("nic0", mac=MAC, queues=3, mode="vepa", mtu=1400, multicast="filtered", vhost="off") as made:
            assert (made.mac, made.ifname, len(made.fds)) == (MAC, f"gn{MAC.replace(':', '')}", 3)
            assert {tap.identity(fd)[:2] for fd in made.fds} == {(made.ifname, MAC)}
            assert not any(os.get_inheritable(fd) for fd in made.pass_fds)
            (link,) = host.ours().values()
            assert (link.mode, link.mtu, link.allmulti, link.alias) == ("vepa", 1400, 0, "guestnet:1:qemu:qemu")
            assert made.arguments[3].endswith("mq=on,vectors=8,host_mtu=1400")

    host.call(use)
    assert host.ours() == {}


def test_a_nic_goes_with_a_block_that_fails(host: Host) -> None:
    def use() -> None:
        with nic("nic0"):
            raise LookupError

    with pytest.raises(LookupError):
        host.call(use)
    assert host.ours() == {}


def test_a_macvtap_that_a_child_has_open_stays_until_it_is_closed(host: Host) -> None:
    def use() -> "subprocess.Popen[bytes]":
        with nic("nic0", mac=MAC, vhost="off") as made:
            return subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=made.pass_fds)

    child = host.call(use)
    assert [link.mac for link in host.ours().values()] == [MAC]
    child.communicate(timeout=30)

    def again() -> None:
        with nic("nic0", mac=MAC):
            pass

    host.call(again)
    assert host.ours() == {}


def test_a_mac_that_a_held_macvtap_has_is_refused(host: Host) -> None:
    def use() -> None:
        with nic("nic0", mac=MAC), nic("nic0", mac=MAC):
            pass

    with pytest.raises(ConflictError, match="taken by a macvtap"):
        host.call(use)
    assert host.ours() == {}


@pytest.mark.parametrize("words", [{"mode": "sauce"}, {"mac": "x"}, {"queues": 0}, {"model": "e1001"}])
def test_wrong_words_are_usage_errors(words: dict[str, object], host: Host) -> None:
    def use() -> None:
        with nic("nic0", **words):  # type: ignore[arg-type]
            pass

    with pytest.raises(UsageError):
        host.call(use)
