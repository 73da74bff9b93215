"""What completion and --version ask of libvirt: an answer at once, or none."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import libvirt
import pytest

from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.guest_runs_on]


def offered(host: Host, *line: str) -> list[str]:
    """What the last of these words could become, on that host."""
    done = host.guestnet("completion", "words", "--", *line)
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


def offered_soon(host: Host, *line: str) -> list[str]:
    """The same, for which TAB may be pressed again: a busy machine's libvirt may not answer at once."""
    deadline = time.monotonic() + 30
    while not (found := offered(host, *line)) and time.monotonic() < deadline:
        pass
    return found


COMMAND = (sys.executable, "-m", "guestnet", "completion", "words", "--")
ROUNDS = 5


BARE = (sys.executable, "-c", "pass")


def quickest(host: Host, *commands: Sequence[str]) -> list[float]:
    """The seconds that each takes on that host as a whole process, without those for the way there: the quickest of
    some, taken in turn, for what else the machine does makes all of them slower and none quicker."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as is installed
    all_of_them = (("true",), *commands)
    taken: list[list[float]] = [[] for _ in all_of_them]
    for _ in range(ROUNDS):
        for command, spent in zip(all_of_them, taken, strict=True):
            begun = time.perf_counter()
            subprocess.run(host.node.argv(command), check=True, capture_output=True, timeout=60, env=kept)
            spent.append(time.perf_counter() - begun)
    way, *found = map(min, taken)
    return [one - way for one in found]


@pytest.fixture
def many_guests(n1: Host) -> Iterator[list[str]]:
    """The names of all guests of a host that has twenty and more."""
    plain = "<domain type='qemu'><name>{}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
    connection = libvirt.open(n1.node.uri)
    made = [connection.defineXML(plain.format(f"many{number:02}")) for number in range(20)]
    try:
        yield sorted(n1.xml())
    finally:
        for domain in made:
            domain.undefine()
        connection.close()


def test_who_presses_tab_waits_for_no_more_than_150_ms(n1: Host, many_guests: list[str]) -> None:
    name = many_guests[-1]
    assert offered_soon(n1, "attach", "") == many_guests
    lines = (["attach", ""], ["attach", name, "--parent", ""], ["detach", name, ""])
    bare, *completed = quickest(n1, BARE, *([*COMMAND, *line] for line in lines))
    # an interpreter by itself takes 9 ms, or as much longer as the machine is slower
    assert max(completed) < 150 / 9 * bare, (bare, completed)


def test_guests_are_offered_to_everybody_who_may_ask_libvirt(n1: Host) -> None:
    guests = sorted(n1.xml())
    assert offered_soon(n1, "attach", "") == guests
    assert offered_soon(n1, "show", guests[0][:-1]) == [name for name in guests if name.startswith(guests[0][:-1])]
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
        bare, completed = quickest(n1, BARE, [*COMMAND, "attach", ""])
        assert completed < 0.15 + 150 / 9 * bare, (bare, completed)
        assert offered(n1, "attach", "") == []
        begun = time.monotonic()
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
