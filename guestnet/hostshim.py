"""The verbs on the host's own shim: add, list, delete. It is what lets a host and its guests talk."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from guestnet import templates, units
from guestnet.apply import topology as effects
from guestnet.errors import MEDDLED, GuestnetError, NotFoundError, NotPermittedError
from guestnet.inet import Assigned
from guestnet.kernel import files, lock, sysctl
from guestnet.kernel.place import Places
from guestnet.machine import machine_id
from guestnet.model import Kind, Link
from guestnet.plan import shim as plan
from guestnet.plan.host import Host
from guestnet.plan.steps import DeleteLink
from guestnet.plan.topology import HERE, Contents, Step, Within
from guestnet.plan.unit import DeleteUnit, WriteUnit, command_line
from guestnet.topology import vlans
from guestnet.topology.observe import wait_addresses
from guestnet.undo import Undo

_TEMPLATE = "systemd/guestnet-host.service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A shim: the parent, addresses and routes it has, the guests it reaches and those it does not, by their links, and
    whether it comes back at boot. ``state`` is "up", or what is amiss."""

    name: str
    parent: str
    mac: str
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    guests: tuple[str, ...]
    unreached: tuple[str, ...]
    persists: bool
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verb did: the shim as it is then, the steps, the unit that was written or taken away, the seconds."""

    name: str
    rows: tuple[Row, ...]
    steps: tuple[Step | WriteUnit | DeleteUnit, ...]
    unit: str
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything is other than before."""
        return bool(self.steps) and not self.dry_run


@dataclass(slots=True, kw_only=True)
class Options:
    """How a verb goes about its work."""

    uri: str
    dry_run: bool = False
    persist: bool = False
    keep_unit: bool = False
    notice: Callable[[str], None] | None = None


def add(wanted: plan.Wanted, options: Options) -> Outcome:
    """Make the host's shim on a parent, or give the one there is what it has not; with ``persist`` also the unit that
    makes it again at boot. On a failure everything is as it was."""
    begun = time.monotonic()
    plan.check_words(wanted)
    _must_be_root(options)
    with Places() as places, Undo() as undo:
        with undo.part("the host's link", lambda: _locked(options)) as part:
            made = _planned(wanted, places)
            unit = plan.unit(made, templates.read(_TEMPLATE).decode(), units.ME)
            written = units.planned(unit) if options.persist else ()
            if made.steps:
                places.here.links.check_support([Kind.MACVLAN])
            if not options.dry_run and made.steps:
                effects.run(made.steps, effects.Ground(places), part)
                left = _planned(wanted, places).steps
                if left:
                    raise GuestnetError(f"it is not as it was made, there is still to do: {left[0]}", hint=MEDDLED)
        if not options.dry_run and made.steps:
            wait_addresses(lambda: _assigned(places, made.name))
        if not options.dry_run:
            units.carry_out(written, undo)
        rows = tuple(row for row in _rows(places) if row.name == made.name)
    return Outcome(
        name=made.name, rows=rows, steps=(*made.steps, *written), unit=_unit(written, options),
        notes=(*made.notes, *(units.notes() if options.persist else _left_out(made, unit))),
        seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip


def _left_out(made: plan.Plan, unit: WriteUnit) -> tuple[str, ...]:
    """What the unit that an earlier ``--persist`` wrote does not bring back at boot, for a person."""
    if not units.at_boot(unit.name):
        return ()
    there = files.content(units.DIRECTORY / unit.name) or b""
    new = [str(one) for one in (*made.addresses, *made.routes) if command_line([str(one)]).encode() not in there]
    return (f"at boot {made.name} is made without {', '.join(new)}: --persist writes that too",) if new else ()


def rows() -> tuple[Row, ...]:
    """The shims there are, and those that a unit makes and that are not there."""
    with Places() as places:
        found = _rows(places)
    names = {plan.unit_name(row.name) for row in found}
    return (*found, *(_row_of(unit) for unit in units.ours(plan.UNIT) if unit not in names))


def _row_of(unit: str) -> Row:
    """A shim of which there is the unit alone."""
    return Row(
        name=unit, parent="", mac="", addresses=(), routes=(), guests=(), unreached=(), persists=units.at_boot(unit),
        state="not there: its unit has not made it",
    )  # fmt: skip


def delete(name: str, options: Options) -> Outcome:
    """Take a shim away, by its name or its parent's, with its unit, and with a VLAN that guestnet made and nobody uses
    then. Of one that its unit has not made, the unit."""
    begun = time.monotonic()
    _must_be_root(options)
    with Places() as places:
        notes: list[str] = []
        door = places.here.links
        needed = vlans.sources(door, options.uri, notes)
        with _locked(options), Undo() as undo:
            host = Host(links=door.all())
            try:
                link = plan.delete(name, host)
            except NotFoundError:
                found = next((unit for unit in units.ours(plan.UNIT) if unit in plan.units_for(name)), None)
                if found is None or options.keep_unit:
                    raise
                return _unit_deleted(found, options, begun)
            row = next(one for one in _rows(places) if one.name == link.name)
            steps: list[Step | WriteUnit | DeleteUnit] = [_deletion(link)]
            gone = () if options.keep_unit else units.deletion(plan.unit_name(link.name))
            if not options.dry_run:
                effects.run([_deletion(link)], effects.Ground(places), undo)
                if needed is not None and link.parent is not None:
                    more = [_deletion(one) for one in vlans.unused(door, {link.parent}, needed)]
                    effects.run(more, effects.Ground(places), undo)
                    steps += more
                units.carry_out(gone, undo)
    return Outcome(
        name=link.name, rows=(row,), steps=(*steps, *gone), unit=_unit(gone, options), notes=tuple(notes),
        seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip


def _unit_deleted(unit: str, options: Options, begun: float) -> Outcome:
    row, gone = _row_of(unit), units.deletion(unit)
    with Undo() as undo:
        if not options.dry_run:
            units.carry_out(gone, undo)
    return Outcome(
        name=unit, rows=(row,), steps=gone, unit=_unit(gone, options), notes=(), seconds=time.monotonic() - begun,
        dry_run=options.dry_run,
    )  # fmt: skip


def _unit(steps: tuple[WriteUnit | DeleteUnit, ...], options: Options) -> str:
    return "".join(step.name for step in steps if not options.dry_run)


def _locked(options: Options) -> AbstractContextManager[object]:
    return nullcontext() if options.dry_run else lock.held(notice=options.notice)


def _must_be_root(options: Options) -> None:
    if os.geteuid() != 0 and not options.dry_run:
        raise NotPermittedError("making and deleting links needs root", hint="run this with sudo")


def _deletion(link: Link) -> Within:
    return Within(netns=HERE, step=DeleteLink(name=link.name, index=link.index))


def _contents(places: Places) -> Contents:
    here = places.here
    return Contents(links=here.links.all(), addresses=here.addresses.all(), routes=here.routes.all())


def _assigned(places: Places, name: str) -> list[tuple[str, Link, Assigned]]:
    link = places.here.links.find(name)
    return [
        (HERE, link, one)
        for one in places.here.addresses.all()
        if link is not None and one.index == link.index and one.by_hand
    ]


def _planned(wanted: plan.Wanted, places: Places) -> plan.Plan:
    contents = _contents(places)
    wireless = places.here.links.wireless(contents.links) if os.geteuid() == 0 else frozenset[str]()
    host = Host(links=contents.links, wireless=wireless)
    names = [link.name for link in plan.shims(host)]
    settings = sysctl.read(key for name in ("default", *names) for key in plan.sysctls_of(name))
    return plan.add(wanted, host, contents, machine_id(), settings)


def _rows(places: Places) -> tuple[Row, ...]:
    contents = _contents(places)
    host = Host(links=contents.links)
    found = []
    for link in plan.shims(host):
        lower = host.below(link)
        taps = [one for one in host.above(lower) if one.kind == Kind.MACVTAP] if lower is not None else []
        deaf = plan.unreached(lower, host) if lower is not None else ()
        addresses = [one for one in contents.addresses if one.index == link.index]
        found.append(
            Row(
                name=link.name, parent=lower.readable if lower is not None else "?", mac=link.mac,
                addresses=tuple(str(one.address) for one in addresses if one.by_hand),
                routes=tuple(str(one) for one in plan.routes_of(link, contents)),
                guests=tuple(one.guest_name or one.name for one in taps if one not in deaf),
                unreached=tuple(one.guest_name or one.name for one in deaf),
                persists=units.at_boot(plan.unit_name(link.name)),
                state="down" if not link.up else "up" if link.carrier else "no carrier",
            )
        )  # fmt: skip
    return tuple(found)
