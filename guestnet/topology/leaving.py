"""What a topology needs no more of what it was given: NICs of guests, sysctls of the host. It goes down, or its file
says them no more."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from guestnet.apply import topology as effects
from guestnet.errors import GuestnetError, NotFoundError
from guestnet.inet import sysctl_words
from guestnet.kernel import sysctl
from guestnet.plan import topology as plan
from guestnet.topology import state as states


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The steps taken (or that would be), what a person should be told, and what could not be done."""

    steps: tuple[object, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[GuestnetError, ...] = ()


def nics(pairs: Collection[tuple[str, str]], how: Any) -> Gone:
    """Take NICs, each by its guest and its MAC, from the guests; ``how`` are the options of a detach.

    One that is gone is no failure; a failure with one guest stops nothing else.
    """
    if not pairs:
        return Gone()
    from guestnet import attachment, inventory

    steps: list[object] = []
    notes: list[str] = []
    failures: list[GuestnetError] = []
    for guest in dict.fromkeys(guest for guest, _ in pairs):
        try:
            macs = tuple(row.mac for row in inventory.rows(how.uri, guest) if (guest, row.mac) in pairs)
            if macs:
                steps += attachment.detach(guest, macs, how).steps
        except NotFoundError as error:
            notes.append(error.message)
        except GuestnetError as error:
            failures.append(error)
    return Gone(steps=tuple(steps), notes=tuple(notes), failures=tuple(failures))


def sysctls(known: states.State, *, dry_run: bool) -> Gone:
    """Put back the sysctls of that state, as far as no other topology needs them and nobody else has set them since.

    With the lock of the host's links held. What cannot be put back stops nothing else.
    """
    try:
        handing = states.hand_over(known)
    except GuestnetError as error:
        return Gone(failures=(error,))
    for heir in () if dry_run else handing.heirs:
        states.write(heir)
    steps: list[object] = []
    notes: list[str] = []
    failures: list[GuestnetError] = []
    for name, values in handing.back.items():
        now, before = sysctl.read([name])[name], dict(values)[name]
        if now in (None, before):
            continue
        if now != known.set_to.get(name, now):
            notes.append(f"{sysctl_words(name)} stays {now}: somebody else set it since")
            continue
        try:
            if not dry_run:
                effects.restore(values)
            steps.append(plan.SetSysctl(netns=plan.HERE, name=name, value=before))
        except GuestnetError as error:
            failures.append(error)
    return Gone(steps=tuple(steps), notes=tuple(notes), failures=tuple(failures))
