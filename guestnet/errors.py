"""The errors a person sees: what went wrong, about which name, why, and what to do next."""

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process says to a script when it ends."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_PERMITTED = 4
    CONFLICT = 5
    TIMED_OUT = 6


HOOK_REFUSED = 9
"""The exit status by which the hook says that its guest must not start; its launcher passes any other failure over."""

MEDDLED = "something else on this host changes it: look at udev rules and network managers"
"""The hint where what was made is not so any more when it is looked at."""


class GuestnetError(Exception):
    """A failure that is not a bug of ours: everything begun has been undone when it reaches the caller.

    ``message`` is one sentence that names the thing it is about and the reason. ``hint`` is the next command or the
    next thing to look at, or empty where there is none to give. ``code`` is the exit status of the command line.
    """

    code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def raise_together(failures: Sequence[GuestnetError]) -> None:
    """Raise the first of these failures with the others as its notes; do nothing where there is none."""
    if failures:
        first, *others = failures
        for other in others:
            first.add_note(other.message)
        raise first


class UsageError(GuestnetError):
    """The words of the call are wrong; nothing was read or changed."""

    code = ExitCode.USAGE


class NotFoundError(GuestnetError):
    """The guest, link, namespace or file that was named is not there."""

    code = ExitCode.NOT_FOUND


class NotPermittedError(GuestnetError):
    """The caller may not do this."""

    code = ExitCode.NOT_PERMITTED


class ConflictError(GuestnetError):
    """What was named is in use, or what was asked contradicts what is there."""

    code = ExitCode.CONFLICT


class TimedOutError(GuestnetError):
    """The other side did not answer before the deadline."""

    code = ExitCode.TIMED_OUT
