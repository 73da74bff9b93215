"""Golden files: what a command answers, written down beside the command.

A file has what it needs first, then one command or several, each with its answer below it:

    $ guestnet xml interface vm1 --parent ens3
    <interface type="ethernet">
      ...

``GUESTNET_REGOLD=1 pytest tests/unit`` writes the answers anew; read the difference before you believe it.
"""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

DIRECTORY = Path(__file__).with_suffix("")


def cases(kind: str) -> Sequence[Path]:
    """The golden files of that kind."""
    return sorted((DIRECTORY / kind).glob("**/*.txt"))


def title(path: Path) -> str:
    """What a test calls the file."""
    return path.stem


def split(text: str) -> tuple[str, list[str]]:
    """The head of a file, and its commands without the answers."""
    head, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    return head, [part.partition("\n")[0] for part in parts]


def check(path: Path, answer: Callable[[list[str]], str]) -> None:
    """Compare the answers of a file's commands with those written in it, or write them where that is wished."""
    before = path.read_text()
    head, commands = split(before)
    assert commands, f"{path} has no command"
    after = head
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "guestnet", f"{path} calls {program}"
        after += f"$ {command}\n{answer(words)}"
    if os.environ.get("GUESTNET_REGOLD"):
        path.write_text(after)
    assert after == before
