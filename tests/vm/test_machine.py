"""The test machine from outside: what a command and what a test in it look like here, and how both may end."""

import os
import select
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.vm import features
from tests.vm.machine import REPO, prepare

pytestmark = pytest.mark.root

RUN = REPO / "tests/vm/run"
SLOW = 200.0
"""Seconds that a machine may take here where the processors are shared with much else."""


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    """The first one on a computer downloads a kernel, and says so: not in the middle of a test of what is said."""
    prepare()


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RUN, *words], check=False, capture_output=True, text=True, timeout=SLOW, env={**os.environ, **environment}
    )


def test_a_command_has_its_streams_apart_and_its_status() -> None:
    script = (
        'pwd; echo "$GUESTNET_WORD"; cat; uname -r; cat /etc/machine-id; seq 200000; sleep 999 & '
        "ls -d /dev/kvm /dev/vhost-net /dev/net/tun; printf 'no newline' >&2; echo reopened >/dev/stdout; exit 7"
    )
    done = run("sh", "-c", script, GUESTNET_WORD="two words")
    first, word, kernel, machine, *numbers = done.stdout.splitlines()
    assert (first, word, machine) == (str(REPO), "two words", Path("/etc/machine-id").read_text().strip())
    assert kernel != os.uname().release
    assert numbers[:200_000] == [str(number) for number in range(1, 200_001)]
    assert numbers[200_000:] == ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "reopened"]
    assert (done.returncode, done.stderr.removeprefix("tests/vm/run: ")) == (7, "no newline")


def test_to_ask_for_a_kind_of_link_makes_no_link() -> None:
    """On a computer where nothing says that dummy, ifb and bonding make none when they are loaded."""
    ask = f"from tests.vm import features; print(all(map(features.has, {sorted(features.NO_LINKS)})))"
    script = 'rm -r /run/modprobe.d /lib/modprobe.d/systemd.conf; modprobe -r dummy; python -c "$1"; ls /sys/class/net'
    done = run("sh", "-c", script, "sh", ask)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "bonding_masters", "lo"]), done


def test_a_kernel_that_panics_fails_the_command_with_the_consoles_end() -> None:
    done = run("sh", "-c", "echo before; echo c >/proc/sysrq-trigger")
    assert (done.returncode, done.stdout) == (1, "before\n")
    assert "error: the machine died; its console ends with:" in done.stderr
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr


def test_a_command_that_hangs_is_ended_at_its_time() -> None:
    begun = time.monotonic()
    done = run("--timeout", "5", "sleep", "999")
    assert done.returncode == 1
    assert "error: the machine was ended after 5 s" in done.stderr
    assert time.monotonic() - begun < SLOW / 2


def test_a_machine_that_cannot_be_made_says_why() -> None:
    done = run("true", GUESTNET_CACHE="/dev/null/cache")
    assert done.returncode == 1
    assert "error: the machine cannot be made: [Errno 20] Not a directory" in done.stderr


def test_output_comes_as_it_is_made_and_qemu_goes_with_whoever_started_it() -> None:
    with subprocess.Popen([RUN, "sh", "-c", "echo first; sleep 999"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], SLOW)[0]
        assert os.read(process.stdout.fileno(), 99) == b"first\n"
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        qemu = os.pidfd_open(int(child))
        try:
            process.send_signal(signal.SIGKILL)
            assert select.select([qemu], [], [], SLOW)[0]
        finally:
            os.close(qemu)


# Tests in it

HERE = """
import os, pytest

KERNEL = {kernel!r}

@pytest.mark.kernel(*{features!r})
def test_everything(): assert os.uname().release != KERNEL

@pytest.mark.kernel_without("macvtap")
def test_without(run_guestnet, parent):
    assert os.uname().release != KERNEL
    assert run_guestnet("macvtap", "add", "mt0", "--parent", "nic0", netns=parent.name).code == 1

@pytest.mark.kernel("veth", "macvtap")
def test_what_is_here(): assert os.uname().release == KERNEL

def test_anything(): assert os.uname().release == KERNEL
"""

THERE = """
import pytest, subprocess, sys
pytestmark = pytest.mark.kernel("machine")

@pytest.fixture(scope="module")
def once():
    print("made once")
    yield
    print("taken down once")

here = []

def test_passes(once): here.append(1)

def test_fails(once):
    print("said on stdout")
    print("said on stderr", file=sys.stderr)
    number = 6 * 9
    assert number == 42

@pytest.mark.xfail
def test_known(): raise ValueError

def test_skips(): pytest.skip("no time")

@pytest.mark.parametrize("word", ["a b", "x::y[z]", "n\\nl"])
def test_words(word): assert word

def test_leaves(): subprocess.run("ip link add gntest0 type dummy".split(), check=True)

@pytest.mark.kernel("no_such_thing")
def test_a_missing_thing(): pass

def test_kills_the_first():
    if here:
        with open("/proc/sysrq-trigger", "w") as file: file.write("c")

def test_kills(once):
    with open("/proc/sysrq-trigger", "w") as file: file.write("c")

def test_after(once): pass

def test_after_that(): pass
"""


def run_tests(directory: Path, *words: str, **environment: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """The exit status of pytest over the directory's files, each test's outcome and what is said of it, and all said.

    With a network namespace of its own, as tests elsewhere may make and delete links meanwhile.
    """
    line = ["unshare", "--net", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    line += ["-o", "addopts=", "-o", "junit_logging=all", "--rootdir", str(directory), "--junitxml=report.xml", *words]
    kept = {key: value for key, value in os.environ.items() if key not in ("CI", "PYTEST_ADDOPTS")}
    done = subprocess.run(
        line, cwd=directory, capture_output=True, text=True, timeout=2 * SLOW, check=False,
        env={**kept, "PYTHONPATH": str(REPO), **environment},
    )  # fmt: skip
    found = {}
    for case in ET.parse(directory / "report.xml").iter("testcase"):  # noqa: S314 - pytest wrote it
        last = next((part for part in case if part.tag in {"failure", "error", "skipped"}), None)
        text = "\n".join([case.get("message", ""), *(part.text or "" for part in case)])
        found[case.get("name", "")] = ("passed" if last is None else last.tag, text)
    return done.returncode, found, done.stdout + done.stderr


def test_tests_run_where_the_kernel_has_what_they_name(tmp_path: Path) -> None:
    names = sorted({*features.LINK_KINDS, *features.NODES, *features.QDISCS})
    (tmp_path / "test_here.py").write_text(HERE.format(kernel=os.uname().release, features=names))
    (tmp_path / "test_there.py").write_text(THERE)
    code, found, said = run_tests(tmp_path, "-v")
    outcomes = {name: outcome for name, (outcome, _) in found.items()}
    assert code == 1, said
    assert outcomes == {
        "test_everything": "passed", "test_without": "passed", "test_what_is_here": "passed",
        "test_anything": "passed", "test_passes": "passed", "test_fails": "failure", "test_known": "skipped",
        "test_skips": "skipped", "test_words[a b]": "passed", "test_words[x::y[z]]": "passed",
        "test_words[n\\nl]": "passed", "test_leaves": "error", "test_a_missing_thing": "error",
        "test_kills_the_first": "passed", "test_kills": "failure", "test_after": "failure",
        "test_after_that": "failure",
    }, said  # fmt: skip
    assert list(found)[:2] == ["test_what_is_here", "test_anything"]  # the machine's come after those of here
    for expected in ("assert number == 42", "E       assert 54 == 42", "said on stdout", "said on stderr"):
        assert expected in found["test_fails"][1]
    assert "no time" in found["test_skips"][1]
    assert "{'links': ['gntest0']} == {}" in found["test_leaves"][1]
    assert "the test machine's kernel has no no_such_thing either" in found["test_a_missing_thing"][1]
    assert "the machine died" in found["test_kills"][1]
    assert "Kernel panic - not syncing: sysrq triggered crash" in found["test_kills"][1]
    assert "test machine: it is started once more, for 4 tests; the machine died" in said
    for after in ("test_after", "test_after_that"):
        assert found[after][1].endswith(": the machine died, as the first of these failures shows")
    assert [name for name, (_, text) in found.items() if "made once" in text] == ["test_passes"]


def test_a_machine_in_which_no_test_ends_is_ended(tmp_path: Path) -> None:
    (tmp_path / "test_there.py").write_text(THERE)
    code, found, said = run_tests(tmp_path, "-x", "--machine-silence=1", "-k", "passes or fails")
    assert (code, list(found)) == (1, ["test_passes"]), said
    assert "the machine was ended after 1 s without a report" in found["test_passes"][1]


def test_where_no_machine_can_be_made_its_tests_fail_for_that_reason(tmp_path: Path) -> None:
    (tmp_path / "test_there.py").write_text(THERE)
    code, found, said = run_tests(tmp_path, "-k", "passes or fails", GUESTNET_CACHE="/dev/null/cache")
    assert (code, [outcome for outcome, _ in found.values()]) == (1, ["failure", "failure"]), said
    assert "the test machine cannot be made: [Errno 20] Not a directory" in found["test_passes"][1]


def test_collecting_boots_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_there.py").write_text(THERE)
    code, _, said = run_tests(tmp_path, "--collect-only", "-q", GUESTNET_CACHE="/dev/null/cache")
    assert code == 0
    assert "test_there.py::test_words[x::y[z]]" in said
