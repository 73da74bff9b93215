"""Runs on a node of the lab: many verbs of guestnet at once, each in a process of its own.

    python -m tests.libvirt.many SECONDS < JOBS

JOBS is a JSON list of lists of words: ["attach", GUEST, PARENT, MAC], ["attach for good", GUEST, PARENT] (with the
hook), ["detach", GUEST, NIC…], ["gc"], ["repair", GUEST], ["start", GUEST] (paused) or ["stop", GUEST]. Each is done
by a forked child, so that all begin in the same moment. Prints a JSON list of the answers: [exit code, message,
seconds]. Whoever has not ended after SECONDS is killed, and has the code -1.
"""

import json
import os
import select
import sys
import time
from typing import Any

import libvirt

from guestnet import attachment, gc, repair
from guestnet.errors import GuestnetError
from guestnet.model import Mac, Request

URI = "qemu:///system"


def do(verb: str, *words: str) -> None:
    """One job."""
    options = attachment.Options(uri=URI)
    match verb:
        case "attach":
            guest, parent, *mac = words
            attachment.attach(guest, (Request(parent=parent, mac=Mac(mac[0]) if mac else None),), options)
        case "attach for good":
            guest, parent = words
            attachment.attach(guest, (Request(parent=parent),), attachment.Options(uri=URI, hook=True, timeout=1))
        case "start" | "stop":
            _power(words[0], on=verb == "start")
        case "detach":
            guest, *names = words
            attachment.detach(guest, tuple(names), options, everything=not names)
        case "repair":
            repair.repair(words[0], options)
        case "gc":
            gc.collect(gc.Options(uri=URI))
        case _:
            raise AssertionError(f"what is {verb!r}?")


def _power(guest: str, *, on: bool) -> None:
    """Start the guest or end it; nothing where it is so."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open(URI)
    domain = connection.lookupByName(guest)
    try:
        if on:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        else:
            domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise


def child(words: list[str], begin: int, answer: int) -> None:
    """Wait for the others, do the job, and say how it went."""
    os.read(begin, 1)  # ends when the parent closes the other end
    begun = time.monotonic()
    told: list[Any] = [0, ""]
    try:
        do(*words)
    except GuestnetError as error:
        told = [int(error.code), " | ".join([error.message, *getattr(error, "__notes__", [])])]
    except BaseException as error:
        told = [99, f"{type(error).__name__}: {error}"]
    os.write(answer, json.dumps([*told, time.monotonic() - begun]).encode())


def at_once(jobs: list[list[str]], seconds: float) -> list[Any]:
    """The answers to all the jobs, in their order."""
    begin, go = os.pipe()
    answers: list[int] = []
    children: list[int] = []
    for words in jobs:
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(go)
                child(words, begin, writes)
            finally:
                os._exit(0)
        os.close(writes)
        answers.append(reads)
        children.append(pid)
    os.close(begin)
    os.close(go)
    deadline = time.monotonic() + seconds
    told: list[Any] = []
    for pid, reads in zip(children, answers, strict=True):
        ready = select.select([reads], [], [], max(deadline - time.monotonic(), 0))[0]
        said = os.read(reads, 1 << 16) if ready else b""
        if not ready:
            os.kill(pid, 9)
        os.close(reads)
        os.waitpid(pid, 0)
        told.append(json.loads(said) if said else [-1, "it did not end", seconds])
    return told


if __name__ == "__main__":
    print(json.dumps(at_once(json.load(sys.stdin), float(sys.argv[1]))))
