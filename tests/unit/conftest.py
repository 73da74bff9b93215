"""The command line inside this process, for tests that need no other machine than words."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import settings

from guestnet import cli, machine

# a busy machine is no failure, and nothing is left in the working directory
settings.register_profile("guestnet", deadline=None, database=None)
settings.load_profile("guestnet")

MACHINE_ID = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left behind: its exit status and both of its outputs."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All of it as a person at a terminal sees it, and the exit status where it is not 0."""
        return self.out + self.err + (f"exit status {self.status}\n" if self.status else "")


Guestnet = Callable[..., Answer]


@pytest.fixture
def guestnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Guestnet]:
    """Calls ``guestnet`` with these words, on a machine whose machine-id is known."""
    monkeypatch.setattr(machine, "machine_id", lambda: MACHINE_ID)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}

    def call(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["guestnet", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        shown = capsys.readouterr()
        return Answer(int(leaving.value.code or 0), shown.out, shown.err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
