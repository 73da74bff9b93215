"""What takes longer than a second says so where somebody looks on: on a terminal, and not to who wants it quiet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO, Namespace

pytestmark = pytest.mark.root

NOBODY = """
name: nobody
nodes:
  n1:
    parents: {lan: nic0}
    endpoints: {a: {kind: host, parent: lan, addresses: [192.0.2.1/24]}}
  n2:
    parents: {lan: nic0}
    endpoints: {b: {kind: host, parent: lan, addresses: [192.0.2.2/24]}}
"""
"""Its pings are answered by nobody, and waited for three seconds."""


class Called:
    """A guestnet in a namespace with its stderr on a terminal."""

    def __init__(self, place: Namespace, *words: str) -> None:
        inside, outside = os.openpty()
        self.shown = open(inside, "rb", buffering=0)  # noqa: SIM115 - closed by `ended`
        command = ["ip", "netns", "exec", place.name, sys.executable, "-m", "guestnet", *words]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=outside, text=True, cwd=REPO,
            env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(outside)

    def ended(self) -> tuple[int, str, str]:
        """Its exit status, and what it has said on stdout and to the terminal."""
        with self.process, self.shown:
            told = b""
            try:
                while some := self.shown.read(4096):
                    told += some
            except OSError:  # EIO: the last one to write to it has closed it
                pass
            out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out, told.decode()


def test_pings_that_are_waited_for_are_told_on_a_terminal_and_not_to_who_wants_it_quiet(
    parent: Namespace, tmp_path: Path
) -> None:
    file = tmp_path / "nobody.yaml"
    file.write_text(NOBODY, encoding="utf-8")
    words = ("topology", "status", str(file), "--node", "n1", "--check")
    called = [Called(parent, *words), Called(parent, *words, "--quiet"), Called(parent, *words, "--json")]
    (status, out, told), quiet, json = [one.ended() for one in called]
    assert (status, "! no answer" in out) == (1, True)
    assert "waiting for answers to pings, 1 s" in told
    assert "waiting for answers to pings, 0 s" not in told
    assert told.endswith("\x1b[2K"), "the line goes again"
    assert "pings" not in out
    assert (quiet[0], quiet[2]) == (json[0], json[2]) == (1, "")
