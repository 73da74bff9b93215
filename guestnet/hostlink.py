"""The verbs on the host's own links: add, change, delete. guestnet.linklist shows what there is."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from guestnet import apply
from guestnet.errors import MEDDLED, ConflictError, GuestnetError, NotFoundError, NotPermittedError
from guestnet.kernel import lock, netns, tap
from guestnet.kernel.link import Links
from guestnet.linklist import Row, number_of_ours, rows_of
from guestnet.model import Kind, Mode, Owner
from guestnet.plan import hostlink as plan
from guestnet.plan.host import Host, made_for_guests
from guestnet.plan.steps import AddLink, LinkStep
from guestnet.undo import Undo


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verb did: the links it was about, the steps it took (or would take, in a dry run), and the seconds."""

    names: tuple[str, ...]
    links: tuple[Row, ...]
    steps: tuple[LinkStep, ...]
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool = False


@dataclass(slots=True, kw_only=True)
class Options:
    """How a verb goes about its work: ``netns`` names the namespace of the links, None is the one it runs in."""

    netns: str | None = None
    dry_run: bool = False
    watch: apply.Watch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """The namespace a verb runs in and the one its links are in, which are one and the same unless ``into`` is set."""

    here: Links
    there: Links
    into: int | None
    name: str

    def hosts(self) -> tuple[Host, Host]:
        """The links of both as they are now."""
        here = Host(links=self.here.all())
        return here, here if self.into is None else Host(links=self.there.all())

    def rows(self, names: Sequence[str]) -> tuple[Row, ...]:
        """The links of these names where they belong, as they are now, in the order of the names."""
        now = self.there.all()
        there = {name: link for link in now for name in (*link.altnames, link.name)}
        number = self.number
        lowers = {} if number is None else {(number, link.index): link.readable for link in self.here.all()}
        return rows_of(now, (there[name] for name in names if name in there), self.name, lowers)

    @property
    def number(self) -> int | None:
        """The number by which the links there call the namespace the verb runs in, None where it is their own."""
        return None if self.into is None else number_of_ours(self.there)

    def run(self, made: plan.Plan, undo: Undo, watch: apply.Watch | None) -> None:
        """Carry a plan out."""
        here = apply.Doors(links=self.here, target=self.here)
        there = apply.Doors(links=self.here, target=self.there, into=self.into, parents=here.parents)
        apply.run(made.here, here, undo, watch)
        apply.run(made.there, there, undo, watch)


def add(wanted: plan.Wanted, options: Options) -> Outcome:
    """Make links on a parent, all or none: made in the namespace asked for, marked, dressed, and read back."""
    begun = time.monotonic()
    plan.check_wanted(wanted)
    with _at_work(options) as places:
        made, rows = _added(wanted, places, options)
        return _outcome(made, rows, begun, options)


def _added(wanted: plan.Wanted, places: _Places, options: Options) -> tuple[plan.Plan, tuple[Row, ...]]:
    """The plan, carried out, and the links it made. What the plan saw and was gone when its turn came, such as a VLAN
    that somebody deleted, is planned for again, once."""
    failed: tuple[plan.Plan, GuestnetError] | None = None
    while True:
        made = _planned(wanted, places)
        if failed is not None and made.steps == failed[0].steps:
            raise failed[1]
        if options.dry_run:
            return made, ()
        try:
            with Undo() as undo:
                places.run(made, undo, options.watch)
                rows = places.rows(made.links)
                _verify_made(made, rows)
                return made, rows
        except (NotFoundError, ConflictError) as error:
            if failed is not None or getattr(error, "__notes__", None):
                raise
            failed = made, error


def _planned(wanted: plan.Wanted, places: _Places) -> plan.Plan:
    here, there = places.hosts()
    if os.geteuid() == 0:
        here = replace(here, wireless=places.here.wireless(here.links))
    if wanted.mode is Mode.PASSTHRU:
        here = replace(here, used_elsewhere=places.here.used_elsewhere())
    made = plan.add(wanted, here, there, netns=places.name, number=places.number)
    places.here.check_support(step.new.kind for step in made.steps if isinstance(step, AddLink))
    return made


def change(kind: Kind, name: str, wanted: plan.Change, options: Options, *, foreign: bool = False) -> Outcome:
    """Change a link where the kernel can, move it into the namespace asked for, and read it back."""
    begun = time.monotonic()
    with _at_work(options) as places:
        here, there = places.hosts()
        elsewhere = None if places.into is None else there
        made = plan.change(kind, name, wanted, here, elsewhere, foreign=foreign)
        rows: tuple[Row, ...] = ()
        if not options.dry_run:
            with Undo() as undo:
                places.run(made, undo, options.watch)
                rows = places.rows(made.links)
                _verify_changed(name, wanted, rows)
        return _outcome(made, rows, begun, options)


def delete(
    kind: Kind, names: tuple[str, ...], options: Options, *, foreign: bool = False, force: bool = False
) -> Outcome:
    """Delete links; a macvtap that a process has open only by ``force``.

    One that may not or cannot be deleted stops no other: the first such error is raised at the end, and has the others,
    and what was deleted, as its notes.
    """
    begun = time.monotonic()
    with _at_work(options) as places:
        _, host = places.hosts()
        lowers = [host.below(link) for link in map(host.find, names) if link is not None]
        if kind is Kind.VLAN or any(made_for_guests(lower) for lower in lowers if lower is not None):
            host = replace(host, used_elsewhere=places.there.used_elsewhere(), addressed=places.there.addressed())
        holders = None
        if not force and os.geteuid() == 0:  # who has it open is for root to see
            named = (link for link in map(host.find, names) if link is not None)
            holders = tap.held(named, namespace=places.into)
        made = plan.delete(kind, names, host, foreign=foreign, holders=holders)
        rows = places.rows(made.links)
        failures = list(made.failures)
        if not options.dry_run:
            try:
                with Undo() as undo:
                    places.run(made, undo, options.watch)
            except GuestnetError as error:
                failures.append(error)
            left = {row.name for row in places.rows(made.links)}
            rows = tuple(row for row in rows if row.name not in left)
        if failures:
            first, *others = failures
            for other in others:
                first.add_note(other.message)
            if rows and not options.dry_run:
                first.add_note(f"deleted: {', '.join(row.name for row in rows)}")
            raise first
        return _outcome(made, rows, begun, options)


@contextmanager
def _at_work(options: Options) -> Iterator[_Places]:
    if os.geteuid() != 0 and not options.dry_run:
        raise NotPermittedError("making, changing and deleting links needs root", hint="run this with sudo")
    with ExitStack() as stack:
        if not options.dry_run:
            stack.enter_context(lock.held())
        into = None
        if options.netns is not None:
            fd = stack.enter_context(netns.opened(options.netns))
            with netns.own() as own:
                into = None if os.path.sameopenfile(fd, own) else fd
        here = stack.enter_context(Links())
        there = here if into is None else stack.enter_context(Links(into))
        yield _Places(here=here, there=there, into=into, name=options.netns or "")


def _verify_made(made: plan.Plan, rows: tuple[Row, ...]) -> None:
    there = {row.device: row for row in rows}
    for step in made.there:
        if not isinstance(step, AddLink):
            continue
        new = step.new
        row = there.get(new.name)
        if row is None:
            raise GuestnetError(f"{new.name} is gone right after it was made", hint=MEDDLED)
        _compare(row, mode=new.mode or "", mac=new.mac, mtu=new.mtu, up=new.up, alias=new.alias, owner=Owner.HOST)
        if new.kind is Kind.VLAN:
            _compare(row, name=new.readable, vlan=new.vlan, vlan_protocol=new.protocol, reorder_hdr=True)


def _verify_changed(name: str, wanted: plan.Change, rows: tuple[Row, ...]) -> None:
    if not rows:
        raise GuestnetError(f"{name} is gone after the change", hint=MEDDLED)
    _compare(rows[0], mode=wanted.mode, mac=wanted.mac, mtu=wanted.mtu, up=wanted.up)


def _compare(row: Row, **wanted: object) -> None:
    for word, value in wanted.items():
        if value is not None and getattr(row, word) != value:
            raise GuestnetError(
                f"the {word} of {row.name} is {getattr(row, word)} and not {value}, which it was set to", hint=MEDDLED
            )


def _outcome(made: plan.Plan, rows: tuple[Row, ...], begun: float, options: Options) -> Outcome:
    return Outcome(
        names=made.links, links=rows, steps=made.steps, notes=made.notes, seconds=time.monotonic() - begun,
        dry_run=options.dry_run,
    )  # fmt: skip
