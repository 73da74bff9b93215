"""The verb repair: makes a guest's NICs again as they are on record."""

import os
import time
from collections.abc import Iterable
from dataclasses import replace

from guestnet import apply, launcher
from guestnet.attachment import Options, Outcome, Work, at_work, nics_of
from guestnet.errors import MEDDLED, GuestnetError, TimedOutError
from guestnet.guest.domain import is_usual
from guestnet.kernel import tap
from guestnet.model import Guest
from guestnet.plan import repair as plan
from guestnet.plan.host import Host, made_for_guests
from guestnet.plan.situation import Situation, direct_sources, nics
from guestnet.plan.steps import Step
from guestnet.undo import Undo


def repair(guest: str, options: Options) -> Outcome:
    """Mend the NICs of a guest: a link that is gone or not as it was made, a NIC that is dead, records that are lost.

    A NIC whose link is gone is plugged in again with the same MAC, name and PCI slot, so the guest has to let go of it.
    Each NIC is mended or left as it was; one that cannot be stops no other: the first such error is raised at the end,
    with the others and what was mended as its notes.
    """
    begun = time.monotonic()
    hook = is_usual(options.uri) and launcher.installed()  # it may ask a program: not with the lock held
    with at_work(guest, options) as work:
        others = work.others()
        now = replace(work.situation(), host=_host(work, others))
        made = plan.repair(now, _evidence(now.host, others, options, hook=hook))
        steps = made.steps
        failures = list(made.failures)
        if not options.dry_run and steps:
            steps = _carry_out(made, now, work, others, failures, hook=hook)
            failures += _still(work, others, failures, hook=hook)
        after = now if options.dry_run else work.situation()
        shown = nics_of([mending.record.mac for mending in made.mendings], after.host, after.guest)
    notes = tuple(dict.fromkeys(note for mending in made.mendings for note in mending.notes))
    if failures:
        first, *rest = failures
        for other in rest:
            first.add_note(other.message)
        if steps and not options.dry_run:
            first.add_note(f"mended: {'; '.join(map(str, steps))}")
        raise first
    return Outcome(
        guest=guest, nics=shown, steps=steps, notes=notes, live=False, config=False,
        seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip


def _carry_out(
    made: plan.Repairing,
    now: Situation,
    work: Work,
    others: tuple[Guest, ...],
    failures: list[GuestnetError],
    *,
    hook: bool,
) -> tuple[Step, ...]:
    """Mend NIC by NIC; the steps that were taken. What cannot be done is added to the failures."""
    taken: list[Step] = []
    options = work.options
    there = {nic.mac: nic for nic in nics(now.guest, now.host)}
    for mending in made.mendings:
        try:
            with Undo() as undo:
                _unplug(mending, work, undo)
                with work.locked(), Undo() as part:
                    host = _host(work, others)
                    evidence = _evidence(host, others, options, hook=hook)
                    links = plan.mend(there[mending.record.mac], now.guest, host, evidence).links
                    apply.run(links, work.fresh_doors(), part, options.watch)
                apply.run(mending.plug, work.doors, undo, options.watch)
        except GuestnetError as error:
            failures.append(error)
        else:
            taken += (*mending.unplug, *links, *mending.plug)
    try:
        with Undo() as undo:
            apply.run(made.metadata, work.doors, undo, options.watch)
        taken += made.metadata
        after = work.domain.snapshot()
        with work.locked(), Undo() as undo:
            host = _host(work, others)
            orphans, _ = plan.orphans_of(after, host, _evidence(host, others, options, hook=hook))
            apply.run(orphans, work.fresh_doors(), undo, options.watch)
        taken += orphans
    except GuestnetError as error:
        failures.append(error)
    return tuple(taken)


def _unplug(mending: plan.Mending, work: Work, undo: Undo) -> None:
    try:
        apply.run(mending.unplug, work.doors, undo, work.options.watch)
    except TimedOutError as error:
        record = mending.record
        raise TimedOutError(
            error.message,
            hint="the request stands: when the guest answers the NIC goes. Then attach it again: guestnet attach "
            f"{work.domain.name} --parent {record.parent} --mac {record.mac}",
        ) from error


def _still(
    work: Work, others: tuple[Guest, ...], failures: Iterable[GuestnetError], *, hook: bool
) -> list[GuestnetError]:
    """What is out of line after the work and was not told yet."""
    now = replace(work.situation(), host=_host(work, others))
    again = plan.repair(now, _evidence(now.host, others, work.options, hook=hook))
    known = {failure.message for failure in failures}
    found = [failure for failure in again.failures if failure.message not in known]
    if again.steps and not known:
        found.append(
            GuestnetError(
                f"{now.guest.name} is not right after the repair, there is still to do: {again.steps[0]}",
                hint=MEDDLED,
            )
        )
    return found


def _host(work: Work, others: Iterable[Guest]) -> Host:
    host = work.host()
    if any(made_for_guests(link) for link in host.links):
        host = replace(work.with_other_uses(host), sources=direct_sources(others))
    return host


def _evidence(host: Host, others: Iterable[Guest], options: Options, *, hook: bool) -> plan.Evidence:
    if options.dry_run and os.geteuid() != 0:
        held = frozenset(link.index for link in host.links)  # who holds a link is for root to see
    else:
        held = frozenset(tap.held(host.links))
    return plan.Evidence(held=held, uuids=frozenset(other.uuid for other in others), hook=hook)
