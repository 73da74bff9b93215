"""Runs on a node of the lab: an attach in which one step fails, and what it leaves.

    python -m tests.libvirt.fault GUEST PHASE NUMBER PARENT…

PHASE is "begin" (before the step), "inside" (the step's first effect is done, then its answer is lost) or "end".
Prints one JSON object: the steps of the plan, the error, and the process's open files before and after.
"""

import contextlib
import gc
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from guestnet import attachment
from guestnet.guest.domain import Domain
from guestnet.kernel import tap
from guestnet.kernel.link import Links
from guestnet.model import Request
from guestnet.plan.steps import Step


class InjectedError(Exception):
    """The failure a test asked for."""


def injected(what: str) -> None:
    """Fail."""
    raise InjectedError(what)


class Fault:
    """Fails once, at the phase and step asked for; ``fail`` does it, by raising an InjectedError unless it is given."""

    def __init__(self, phase: str, number: int, fail: Callable[[str], None] = injected) -> None:
        self.phase, self.number, self.fail = phase, number, fail
        self.seen = -1
        self.armed = False

    def watch(self, phase: str, step: Step) -> None:
        self.seen += phase == "begin"
        if self.seen != self.number:
            return
        if self.phase == phase:
            self.fail(f"{phase} {step}")
        self.armed = self.phase == "inside" and phase == "begin"

    def into(self, owner: Any, *names: str) -> None:
        """Make these functions fail where this is the step: carried out, but without an answer."""
        for name in names:
            setattr(owner, name, self._after(getattr(owner, name)))

    def _after(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = effect(*args, **kwargs)
            if self.armed:
                self.armed = False
                self.fail("inside")
            return result

        return run


def open_files() -> list[str]:
    """What this process has open, by what it is; the fd that lists them left out."""
    gc.collect()  # a traceback holds on to the connection
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(re.sub(r"\[[0-9]+\]", "", name) for name in found)


def main() -> None:
    guest, phase, number, *parents = sys.argv[1:]
    fault = Fault(phase, int(number))
    fault.into(Links, "add", "_change", "delete")
    fault.into(Domain, "attach", "set_metadata")
    fault.into(tap, "make_node", "device_of")
    steps: list[str] = []
    dry = attachment.Options(uri="qemu:///system", dry_run=True)
    requests = tuple(Request(parent=parent) for parent in parents)
    steps += [str(step) for step in attachment.attach(guest, requests, dry).steps]
    before = open_files()
    options = attachment.Options(uri="qemu:///system", watch=fault.watch)
    error = ""
    try:
        attachment.attach(guest, requests, options)
    except InjectedError as failure:
        error = " ".join([str(failure), *getattr(failure, "__notes__", [])])
    after = open_files()
    print(json.dumps({"steps": steps, "error": error, "fds": [before, after]}))


if __name__ == "__main__":
    main()
