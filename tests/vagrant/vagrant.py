"""Vagrant on a host of a lab, and what is said on the way."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestnet.errors import GuestnetError
from guestnet.lab.node import Node

REPO = Path(__file__).resolve().parents[2]
TESTBED = REPO / "vagrant/testbed"
NOTES = REPO / "vagrant/notes"

SECONDS = 90.0


class Vagrant:
    """vagrant on a node, in the directory ``project``, with a home of its own and without a question to anybody.

    It writes into the empty directory ``scratch`` alone.
    """

    def __init__(self, node: Node, project: Path, scratch: Path, **environment: str) -> None:
        self._node = node
        self._project = project
        self._home = scratch / "home"
        self._home.mkdir()
        self._environment = {
            **os.environ,
            "VAGRANT_HOME": str(self._home),
            "VAGRANT_DOTFILE_PATH": str(scratch / "dot"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_NO_COLOR": "1",
            "GUESTNET": str(Path(sys.executable).with_name("guestnet")),
            **environment,
        }

    def run(self, *words: str, seconds: float = SECONDS, **environment: str) -> None:
        """A command, its output shown as it comes. Raises GuestnetError where it fails."""
        status = self.status(*words, seconds=seconds, **environment)
        if status != 0:
            raise GuestnetError(f"vagrant {words[0]} ended with status {status}")

    def status(self, *words: str, seconds: float = SECONDS, **environment: str) -> int:
        """The status of a command, its output shown as it comes."""
        with step(f"on {self._node.name}: vagrant {' '.join(words)}"):
            return self._done(words, seconds, None, environment).returncode

    def ssh(self, machine: str, command: str, *, seconds: float = SECONDS) -> str:
        """What a command in a machine says, shown as well. Raises GuestnetError where it fails."""
        with step(f"in {machine}: {command}"):
            done = self._done(("ssh", machine, "-c", command), seconds, subprocess.PIPE, {})
            for line in done.stdout.splitlines():
                say(f"    {line}")
        if done.returncode != 0:
            raise GuestnetError(f"in {machine}, {command!r} ended with status {done.returncode}")
        return done.stdout

    def key(self) -> Path:
        """The private key of Vagrant's boxes."""
        key = self._home / "insecure_private_key"
        key.chmod(0o600)
        return key

    def _done(
        self, words: tuple[str, ...], seconds: float, out: int | None, environment: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        try:
            return self._node.run(
                ("vagrant", "--no-tty", *words), cwd=str(self._project), timeout=seconds, stdout=out,
                stderr=subprocess.STDOUT, env={**self._environment, **environment},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise GuestnetError(f"vagrant {words[0]} did not end within {seconds:g} s") from None


def must(what: str, so: bool) -> None:
    """GuestnetError where it is not so."""
    if not so:
        raise GuestnetError(f"this is not so: {what}")


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    say(f"* {what}")
    begun = time.monotonic()
    yield
    say(f"    {time.monotonic() - begun:.1f} s")


def say(text: str) -> None:
    """One line."""
    print(text, flush=True)
