"""The command line as a process: help, errors, exit status."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guestnet import __version__, cli, report, templates
from guestnet.errors import ExitCode, GuestnetError
from tests.unit.conftest import Guestnet

REPO = Path(__file__).resolve().parents[2]
COMMANDS = sorted(cli._COMMANDS)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """``guestnet`` with these words, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "guestnet", *words], capture_output=True, text=True, cwd=REPO, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "words", [(), *((name,) for name in COMMANDS)], ids=lambda words: " ".join(words) or "guestnet"
)
def test_help_says_what_a_command_does_and_what_it_takes(words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" ".join(("Usage: guestnet", *words)))
    assert done.stderr == ""


@pytest.mark.parametrize("words", [("xml", "interface"), ("xml", "domain"), ("xml", "network")], ids=" ".join)
def test_help_of_a_command_below_a_command(words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(" ".join(("Usage: guestnet", *words)))


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    assert [name for name in COMMANDS if f"  {name} " not in shown] == []


def test_the_version_is_told() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"guestnet {__version__}\n")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("atach",), "there is no command 'atach'", "did you mean attach"),
        (("qqq",), "there is no command 'qqq'", "guestnet --help lists the commands"),
        (("--nosuch",), "No such option", "guestnet --help"),
        (("attach", "vm1", "--parnt", "ens3"), "No such option", "guestnet attach --help"),
        (("attach", "vm1"), "Missing option '--parent'", "guestnet attach --help"),
        (("attach",), "Missing", "guestnet attach --help"),
        (("xml", "intrface"), "No such command", "guestnet xml --help"),
        (("xml", "interface", "vm1", "--parent"), "requires an argument", "guestnet --help"),
        (("attach", "vm1", "--parent", "ens3", "--mac", "x"), "'x' is not a MAC address", "write six bytes"),
        (
            ("attach", "vm1", "--parent", "ens3", "--timeout", "0"),
            "Invalid value for '--timeout'",
            "guestnet attach --help",
        ),
        (("xml", "interface", "vm1", "--parent", "a\udcffb"), "is not an interface name", "use letters"),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, tuple) else "",
)
def test_words_that_are_wrong_end_with_status_2_and_the_next_thing_to_do(
    words: tuple[str, ...], message: str, hint: str
) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert first.startswith("guestnet: ")
    assert message in first
    assert last.startswith("hint: ")
    assert hint in last


@pytest.mark.parametrize(
    "words",
    [("atach", "--json"), ("attach", "vm1", "--json"), ("xml", "interface", "vm1", "--parent", "lo", "--json")],
    ids=" ".join,
)
def test_with_json_an_error_is_an_object_on_stdout(words: tuple[str, ...]) -> None:
    done = run(*words)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == done.returncode != 0
    assert error["message"]
    assert error["hint"]
    assert error["notes"] == []
    assert done.stderr == ""


def test_a_reader_that_goes_away_is_no_error_worth_words() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "guestnet", "xml", "domain", "vm1"],
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    report.line("vm\x1b[2J\x9b1m é\nnext")
    report.error(GuestnetError("no guest \udcff\r"), json_wanted=False)
    shown = capsys.readouterr()
    assert shown.out == "vm\\x1b[2J\\x9b1m é\nnext\n"
    assert shown.err == "guestnet: no guest \\udcff\\r\n"


def test_a_signal_is_told_with_what_could_not_be_undone(monkeypatch: pytest.MonkeyPatch, guestnet: Guestnet) -> None:
    def ended(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGHUP)
        except BaseException as error:
            error.add_note("not undone: this")
            raise

    monkeypatch.setattr(templates, "read", ended)
    answer = guestnet("xml", "network", "lab", "--parent", "ens3")
    assert (answer.status, answer.err.splitlines()[1]) == (128 + signal.SIGHUP, "  not undone: this")


def test_a_connection_that_is_no_uri_is_a_usage_error(guestnet: Guestnet) -> None:
    assert guestnet("list", "--connect", "qemu://[x").status == ExitCode.USAGE
