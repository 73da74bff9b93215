"""Effects: carries out steps, each with its inverse on the undo stack. Decides nothing.

An inverse goes on the stack on the line before its effect and does nothing where the effect did not come about: so an
effect that was cut short in its middle, by a signal or by a lost answer, is taken back like any other.
"""

from collections.abc import Callable, Iterable

from guestnet.apply import links
from guestnet.apply.doors import UNPLUG_TIMEOUT, Doors, GuestDoor
from guestnet.errors import GuestnetError
from guestnet.plan import steps as plan
from guestnet.undo import Undo

__all__ = ["UNPLUG_TIMEOUT", "Doors", "GuestDoor", "Watch", "run"]

Watch = Callable[[str, plan.Step], None]
"""Called with "begin" and "end" around each step; what it raises ends the work like a failed step."""


def run(steps: Iterable[plan.Step], doors: Doors, undo: Undo, watch: Watch | None = None) -> None:
    """Carry out the steps in their order.

    What fails raises, and ``undo`` takes back what was done. From the first deletion of a link on there is no way
    back: nothing is undone then, the other deletions are done all the same, and every failure is told.
    """
    failures: list[GuestnetError] = []
    for step in steps:
        if watch is not None:
            watch("begin", step)
        if isinstance(step, plan.DeleteLink):
            undo.keep()
            try:
                links.delete(step, doors.target)
            except GuestnetError as error:
                failures.append(error)
        else:
            _one(step, doors, undo)
        if watch is not None:
            watch("end", step)
    if failures:
        first, *others = failures
        for other in others:
            first.add_note(other.message)
        raise first


def _one(step: plan.Step, doors: Doors, undo: Undo) -> None:
    if isinstance(step, plan.GuestStep):
        from guestnet.apply import guests  # brings lxml, which steps on links alone do without

        if doors.domain is None:
            raise GuestnetError("this needs a guest")
        guests.carry_out(step, doors.domain, doors, undo)
    elif isinstance(step, plan.InstallHook):
        if doors.hook is None:
            raise GuestnetError("this needs libvirt's hook")
        undo.push("the hook", doors.hook.put_back)
        doors.hook.install()
    else:
        links.carry_out(step, doors, undo)
