"""Runs on a node of the lab: verbs of guestnet that are killed, and what comes after.

    python -m tests.libvirt.crash steps GUEST PARENT
    python -m tests.libvirt.crash moments GUEST PARENT COUNT SEED

"steps" kills an attach and a detach before, in and after each of their steps, and an attach for good around and within
the one step that it has more, the installation of libvirt's hook; "moments" kills at random times. After each kill
either the same command is given again, or gc and repair. Prints one JSON object a line: what was killed where, how the
guest's NICs, the links of ours and all other links are then. Everything is done in forked children.
"""

import itertools
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from guestnet import attachment, gc, inventory, launcher, repair
from guestnet.errors import GuestnetError
from guestnet.guest.domain import Domain
from guestnet.kernel import tap
from guestnet.kernel.link import Links
from guestnet.model import Request
from guestnet.plan.steps import InstallHook, Step
from tests.libvirt.fault import Fault

URI = "qemu:///system"
PATIENCE = 60.0  # seconds any child gets

PHASES = {
    "attach": ("begin", "inside", "end"),
    "detach": ("begin", "inside", "end"),
    # the file is written; libvirt has looked for it and what it was asked with is still there
    "attach for good": ("begin", "_put", "_ask", "end"),
}
"""Where each verb is killed at a step: before and after it, and right after an effect within it."""

Work = Callable[[], Any]


def in_a_child(work: Work, *, kill_after: float | None = None) -> Any:
    """What the work gives, done in a child of its own; {"killed": True} where the child was killed, by itself or after
    so many seconds."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reads)
            try:
                told = work()
            except GuestnetError as error:
                told = {"code": int(error.code), "message": error.message, "notes": getattr(error, "__notes__", [])}
            os.write(writes, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writes)
    begun = time.monotonic()
    ready = select.select([reads], [], [], PATIENCE if kill_after is None else kill_after)[0]
    if not ready:
        os.kill(pid, signal.SIGKILL)
    said = bytearray()
    while part := os.read(reads, 1 << 16):
        said += part
    os.close(reads)
    _, status = os.waitpid(pid, 0)
    if not said:
        assert os.WIFSIGNALED(status), "a child ended without a word"
        assert kill_after is not None or time.monotonic() - begun < PATIENCE, "a child hung"
        return {"killed": True}
    return json.loads(bytes(said))


def verb(word: str, guest: str, parent: str, watch: Any = None) -> Any:
    """An attach, for good with libvirt's hook, or a detach of all; what it says."""
    options = attachment.Options(uri=URI, watch=watch, hook=word == "attach for good")
    if word.startswith("attach"):
        done = attachment.attach(guest, (Request(parent=parent),), options)
    else:
        done = attachment.detach(guest, (), options, everything=True)
    return {"code": 0, "steps": [str(step) for step in done.steps]}


def collect() -> Any:
    """A gc."""
    return {"code": 0, "steps": [str(step) for step in gc.collect(gc.Options(uri=URI)).steps]}


def mend(guest: str) -> Any:
    """A repair."""
    return {"code": 0, "steps": [str(step) for step in repair.repair(guest, attachment.Options(uri=URI)).steps]}


def seen(guest: str) -> Any:
    """The guest's NICs, the links of ours, and all that is not this guest's: other rows, other links."""
    rows = inventory.rows(URI)
    with Links() as links:
        there = links.all()
    return {
        "nics": [[row.interface, row.live, row.config, list(row.problems)] for row in rows if row.guest == guest],
        "ours": [link.name for link in there if link.ours],
        "others": [[row.guest, row.interface, row.live, row.config, list(row.problems)] for row in rows
                   if row.guest != guest],
        "links": [[link.index, link.name, link.up, link.mac, link.mtu, link.alias] for link in there
                  if link.guest_name != guest and not (link.ours and not link.alias)],
    }  # fmt: skip


def kill_at(word: str, guest: str, parent: str, phase: str, number: int) -> Any:
    """The verb, which kills itself at that boundary: of an attach for good at one of the hook's installation."""
    inside = phase not in ("begin", "end")
    fault = Fault("inside" if inside else phase, number, lambda _what: os.kill(os.getpid(), signal.SIGKILL))
    if word == "attach for good":
        if inside:
            fault.into(launcher, phase)

        def watch(when: str, step: Step) -> None:
            if isinstance(step, InstallHook):
                fault.watch(when, step)

        return verb(word, guest, parent, watch)
    fault.into(Links, "add", "_change", "delete")
    fault.into(Domain, "attach", "set_metadata", "unplug", "detach_config")
    fault.into(tap, "make_node", "device_of")
    return verb(word, guest, parent, fault.watch)


def after(guest: str, word: str, parent: str, *, again: bool) -> dict[str, Any]:
    """What is done after a kill, and what is there then."""
    told: dict[str, Any] = {"left": in_a_child(lambda: seen(guest))}
    if again:
        told["again"] = in_a_child(lambda: verb(word, guest, parent))
    else:
        told["gc"] = in_a_child(collect)
        told["collected"] = in_a_child(lambda: seen(guest))
        # a guest that was asked to let go of a NIC does so in its own time
        deadline = time.monotonic() + PATIENCE / 4
        while True:
            told["repair"] = in_a_child(lambda: mend(guest))
            told["seen"] = in_a_child(lambda: seen(guest))
            if not any(row[3] for row in told["seen"]["nics"]) or time.monotonic() > deadline:
                break
    if again:
        told["seen"] = in_a_child(lambda: seen(guest))
    if word == "attach for good":
        told["hook"] = in_a_child(hook)
    told["detach"] = in_a_child(lambda: verb("detach", guest, parent))
    told["gc at last"] = in_a_child(collect)
    told["at last"] = in_a_child(lambda: seen(guest))
    if word == "attach for good":
        in_a_child(launcher.uninstall)
        told["hook at last"] = in_a_child(hook)
    return told


def hook() -> Any:
    """Whether libvirt's hook does its work, and every file that libvirt would call."""
    files = [str(path) for path in launcher.DIRECTORY.rglob("*") if path.is_file()]
    return {"ready": launcher.status().ready, "files": sorted(files)}


def tell(**what: Any) -> None:
    """One line of the answer."""
    print(json.dumps(what), flush=True)


def steps(guest: str, parent: str) -> None:
    """Kill at every boundary."""
    for word, phases in PHASES.items():
        for again in (True, False):
            for number, phase in ((number, phase) for number in itertools.count() for phase in phases):
                if word == "detach":
                    in_a_child(lambda: verb("attach", guest, parent))
                told = in_a_child(lambda: kill_at(word, guest, parent, phase, number))  # noqa: B023
                if "killed" not in told and phase == "begin":  # there is no such step
                    in_a_child(lambda: verb("detach", guest, parent))
                    in_a_child(launcher.uninstall)
                    break
                tell(verb=word, phase=phase, number=number, told=told, **after(guest, word, parent, again=again))


def moments(guest: str, parent: str, count: int, seed: int) -> None:
    """Kill at random moments."""
    dice = random.Random(seed)  # noqa: S311
    longest = {}
    for word in ("attach", "detach"):
        begun = time.monotonic()
        in_a_child(lambda: verb(word, guest, parent))  # noqa: B023
        longest[word] = (time.monotonic() - begun) * 1.1
    for number in range(count):
        word = dice.choice(("attach", "detach"))
        if word == "detach":
            in_a_child(lambda: verb("attach", guest, parent))
        seconds = dice.uniform(0, longest[word])
        told = in_a_child(lambda: verb(word, guest, parent), kill_after=seconds)  # noqa: B023
        again = dice.random() < 0.5
        tell(
            verb=word, phase="moment", number=number, seconds=seconds, told=told,
            **after(guest, word, parent, again=again),
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "steps":
        steps(*sys.argv[2:4])
    else:
        moments(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
