"""What completion and --version ask of libvirt: an answer at once, or none."""

import os
import signal
import time

import pytest

from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.guest_runs_on]


def offered(host: Host, *line: str) -> list[str]:
    """What the last of these words could become, on that host."""
    done = host.guestnet("completion", "words", "--", *line)
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


def test_guests_are_offered_to_everybody_who_may_ask_libvirt(n1: Host) -> None:
    guests = sorted(n1.xml())
    assert offered(n1, "attach", "") == guests
    assert offered(n1, "show", guests[0][:-1]) == [name for name in guests if name.startswith(guests[0][:-1])]
    assert offered(n1, "attach", "--connect", "qemu:///nothing", "") == []


def test_the_version_names_the_daemon_that_answers(n1: Host) -> None:
    told = n1.json("--version")
    assert told["libvirt"] == told["libvirt_daemon"] != ""
    assert f"(daemon {told['libvirt_daemon']})" in n1.guestnet("--version").out


def test_a_libvirtd_that_hangs_holds_up_neither(n1: Host) -> None:
    pid = n1.node.libvirtd_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        assert offered(n1, "attach", "") == []
        assert n1.json("--version")["libvirt_daemon"] == ""
        assert time.monotonic() - begun < 5
    finally:
        os.kill(pid, signal.SIGCONT)


def test_verbose_tells_what_is_asked_of_libvirt_and_quiet_says_nothing(n1: Host) -> None:
    name = min(n1.xml())
    loud = n1.guestnet("attach", name, "--parent", "nic1", "--config", "--verbose")
    assert loud.code == 0, loud
    assert "libvirt: connecting to qemu:///system\n" in loud.err
    assert f"libvirt: {name}: writing the metadata\n" in loud.err
    quiet = n1.guestnet("--quiet", "detach", name, "--all")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
