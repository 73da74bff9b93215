"""The verb gc: deletes links of ours that nobody uses any more, and says of each link why it is one of them or not."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from guestnet import apply
from guestnet.errors import ConflictError, GuestnetError, NotPermittedError, UsageError
from guestnet.guest.domain import Hypervisor, has_guests_on_record, is_usual
from guestnet.kernel import lock, tap
from guestnet.kernel.link import Links
from guestnet.model import HOST_ALIAS, Guest, Kind, Link, Owner
from guestnet.plan.detach import delete_links
from guestnet.plan.host import Host
from guestnet.plan.orphans import Evidence, Verdict, judge
from guestnet.plan.situation import direct_sources
from guestnet.plan.steps import DeleteLink
from guestnet.undo import Undo


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The verdict on each link of ours in this network namespace, the steps taken (or not, in a dry run), and the
    seconds."""

    verdicts: tuple[Verdict, ...]
    steps: tuple[DeleteLink, ...]
    seconds: float
    dry_run: bool = False


@dataclass(slots=True, kw_only=True)
class Options:
    """How the links are judged. ``sure`` says that it is right that libvirt knows no guest, or none of those that
    links are marked for."""

    uri: str
    dry_run: bool = False
    sure: bool = False
    watch: apply.Watch | None = None
    notice: Callable[[str], None] | None = None


def collect(options: Options) -> Outcome:
    """Delete the orphans. One that cannot be deleted stops no other; the first such error is raised at the end.

    Where libvirt cannot be asked or knows no guest, or where another than the host's own knows none of those that links
    are marked for, only the macvtaps of QEMUs without libvirt are deleted; GuestnetError then. A guest that another
    guestnet is at work on keeps its links.
    """
    begun = time.monotonic()
    with _judged(options, some_known=True) as (links, _, verdicts, unasked):
        steps = delete_links(verdict.link for verdict in verdicts if verdict.orphan)
        _carry_out(steps, links, options)
    if unasked is not None:
        for step in steps:
            done = f"would {step}" if options.dry_run else f"{step.name}: deleted"
            unasked.add_note(f"{done}, which is no guest of libvirt's")
        raise unasked
    return Outcome(verdicts=verdicts, steps=steps, seconds=time.monotonic() - begun, dry_run=options.dry_run)


def collect_of(guest: str, names: tuple[str, ...], options: Options) -> Outcome:
    """Delete the orphans of a guest that is gone, by the name it had: all, or those of these names or MACs; and the
    VLANs left unused.

    No steps where there is none. Raises ConflictError, and deletes nothing, where one of them is in use, and what
    ``collect`` raises.
    """
    begun = time.monotonic()
    wanted = {name.lower() for name in names}
    with _judged(options) as (links, host, verdicts, unasked):
        if unasked is not None:
            raise unasked
        chosen = [
            verdict
            for verdict in verdicts
            if verdict.link.guest_name == guest
            and (not names or verdict.link.name in names or verdict.link.mac in wanted)
        ]
        for verdict in chosen:
            if not verdict.orphan:
                raise ConflictError(
                    f"{verdict.link.name} stays, though libvirt knows no guest {guest}: {verdict.why}",
                    hint="virsh list --all shows the guests there are",
                )
        going = [verdict.link for verdict in chosen]
        steps = delete_links((*going, *host.unused_vlans(going)))
        _carry_out(steps, links, options)
    return Outcome(verdicts=tuple(chosen), steps=steps, seconds=time.monotonic() - begun, dry_run=options.dry_run)


@contextmanager
def _judged(
    options: Options, *, some_known: bool = False
) -> Iterator[tuple[Links, Host, tuple[Verdict, ...], GuestnetError | None]]:
    """The verdict on each link of ours; it holds while the block lasts, since the locks do. With ``some_known`` another
    libvirt than the host's own has to know one of the guests that links are marked for.

    Where the guests have to be known, and are not, the last part says why.
    """
    if os.geteuid() != 0:
        raise NotPermittedError("who holds a link open is for root to see", hint="run this with sudo")
    with Links() as links, ExitStack() as stack:
        before = links.all()
        busy: dict[str, str] = {}
        mine: dict[str, lock.Held] = {}
        for uuid in sorted({link.guest_uuid for link in before if link.guest_uuid}):
            try:
                mine[uuid] = stack.enter_context(lock.guest_if_free(uuid))
            except ConflictError as error:
                busy[uuid] = error.message
        # asked with the locks of the guests held, so that no attach is between its link and its <interface>
        guests: tuple[Guest, ...] = ()
        unasked: GuestnetError | None = None
        if any(link.ours and link.owner is not Owner.QEMU and link.alias != HOST_ALIAS for link in before):
            try:
                guests = _guests(before, options, some_known=some_known)
            except UsageError:
                raise
            except GuestnetError as error:
                unasked = error
        with lock.held(notice=options.notice):
            busy |= {uuid: "its guest is being started" for uuid, held in mine.items() if held.stirred()}
            evidence = _evidence(links, before, guests, busy, lock.others(mine))
            if unasked is not None:
                evidence = replace(evidence, unasked=unasked.message)
            yield links, evidence.host, judge(evidence), unasked


def _carry_out(steps: tuple[DeleteLink, ...], links: Links, options: Options) -> None:
    if not options.dry_run:
        with Undo() as undo:
            apply.run(steps, apply.Doors(links=links, target=links), undo, options.watch)


def _guests(links: tuple[Link, ...], options: Options, *, some_known: bool) -> tuple[Guest, ...]:
    try:
        with Hypervisor(options.uri) as hypervisor:
            guests = hypervisor.guests()
    except UsageError:
        raise
    except GuestnetError as error:
        if is_usual(options.uri) and not has_guests_on_record() and not any(link.guest_uuid for link in links):
            return ()
        raise GuestnetError(
            f"nothing is collected, since the guests are not known: {error.message}", hint=error.hint
        ) from error
    marked = [link.guest_uuid for link in links if link.guest_uuid]
    if options.sure or not marked:
        return guests
    if not guests:
        raise GuestnetError(
            f"nothing is collected: libvirt knows no guest at all, yet {len(marked)} of the links are marked as a "
            "guest's",
            hint="virsh list --all shows its guests; if there are none, say so: guestnet gc --yes",
        )
    # of the host's own libvirt a guest that is not known is gone
    if some_known and not is_usual(options.uri) and {guest.uuid for guest in guests}.isdisjoint(marked):
        raise GuestnetError(
            f"nothing is collected: {len(marked)} of the links are marked as a guest's, and libvirt knows none of "
            "these guests",
            hint="the host's own libvirt may have them (--connect qemu:///system); if they are gone: guestnet gc --yes",
        )
    return guests


def _evidence(
    links: Links, before: tuple[Link, ...], guests: tuple[Guest, ...], busy: dict[str, str], others: str
) -> Evidence:
    host = Host(links=links.all())
    ours = [link for link in host.links if link.ours]
    if any(link.kind in (Kind.VLAN, Kind.MACVLAN) for link in ours):
        host = replace(host, used_elsewhere=links.used_elsewhere())
    host = replace(host, addressed=links.addressed(), sources=direct_sources(guests))
    return Evidence(
        host=host, before=before, guests=guests, busy=busy, holders=tap.held(ours),
        others=f"another guestnet is at work: {others}" if others else "",
    )  # fmt: skip
