"""tests/vm/run: a command in the test machine, its output live, its exit status ours."""

import argparse
import os
import sys
import time

from guestnet.errors import GuestnetError
from guestnet.lab.image import image
from tests.vm.machine import MEMORY, Machine, MachineDiedError, Stream, prepare

_FDS = {Stream.OUT: 1, Stream.ERR: 2}


def main() -> int:
    """Run what the command line asks for; its exit status, or 1 where the machine ended before the command."""
    parser = argparse.ArgumentParser(prog="tests/vm/run", description="Run a command in the test machine.")
    parser.add_argument("--memory", metavar="MB", type=int, default=MEMORY, help=f"the machine's memory ({MEMORY})")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=540.0, help="end it after this time (540)")
    parser.add_argument("command", nargs="...", help="the command and its words")
    options = parser.parse_args()
    if not options.command:
        parser.error("run what? e.g. tests/vm/run ip -d link")
    if os.geteuid() != 0:
        _say("error: sharing this machine's root with another takes root: run it with sudo")
        return 4
    try:
        image(_say)  # no network in there: a lab finds its image in the cache
        machine = Machine(prepare(_say), options.command, memory=options.memory)
    except (GuestnetError, OSError) as error:
        _say(f"error: the machine cannot be made: {error}")
        if isinstance(error, GuestnetError) and error.hint:
            _say(f"hint: {error.hint}")
        return 1
    deadline = time.monotonic() + options.timeout
    with machine:
        while machine.status is None:
            try:
                pieces = machine.read(max(0.0, deadline - time.monotonic()))
            except MachineDiedError:
                return _lost(machine, "the machine died")
            if time.monotonic() >= deadline and machine.status is None:
                return _lost(machine, f"the machine was ended after {options.timeout:g} s")
            for stream, data in pieces:
                if stream in _FDS:
                    _write(_FDS[stream], data)
    return machine.status


def _lost(machine: Machine, why: str) -> int:
    _say(f"error: {why}; its console ends with:")
    _write(2, machine.console().encode() + b"\n")
    return 1


def _say(line: str) -> None:
    _write(2, f"tests/vm/run: {line}\n".encode())


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
