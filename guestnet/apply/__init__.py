"""Effects: carries out steps, each with its inverse on the undo stack. Decides nothing.

An inverse goes on the stack on the line before its effect and does nothing where the effect did not come about: so an
effect that was cut short in its middle, by a signal or by a lost answer, is taken back like any other.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from guestnet import trail
from guestnet.apply import links
from guestnet.apply.doors import UNPLUG_TIMEOUT, Doors, GuestDoor
from guestnet.errors import GuestnetError, raise_together
from guestnet.plan import steps as plan
from guestnet.undo import Undo

__all__ = ["UNPLUG_TIMEOUT", "Doors", "GuestDoor", "Watch", "in_order", "run"]

_Step = TypeVar("_Step")

Watch = Callable[[str, plan.Step], None]
"""Called with "begin" and "end" around each step; what it raises ends the work like a failed step."""


def run(steps: Iterable[plan.Step], doors: Doors, undo: Undo, watch: Watch | None = None) -> None:
    """Carry out the steps in their order.

    What fails raises, and ``undo`` takes back what was done. The deletion of a link has no way back: what was done
    before it stays. Those that follow one another are all tried, and every failure is told.
    """

    def do(step: plan.Step) -> None:
        _one(step, doors, undo)

    in_order(steps, undo, watch, deletes=lambda step: isinstance(step, plan.DeleteLink), do=do)


def in_order(
    steps: Iterable[_Step],
    undo: Undo,
    watch: Callable[[str, _Step], None] | None,
    *,
    deletes: Callable[[_Step], bool],
    do: Callable[[_Step], None],
) -> None:
    """What ``run`` promises, for steps of any kind: ``deletes`` says which of them have no way back."""
    failures: list[GuestnetError] = []
    for step in steps:
        gone = deletes(step)
        if failures and not gone:
            break
        if watch is not None:
            watch("begin", step)
        trail.tell(step.__str__)
        if gone:
            undo.keep()
            try:
                do(step)
            except GuestnetError as error:
                failures.append(error)
        else:
            do(step)
        if watch is not None:
            watch("end", step)
    raise_together(failures)


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
