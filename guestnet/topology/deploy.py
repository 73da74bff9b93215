"""Bringing a topology up on one node, and seeing what of it is so."""

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from guestnet import units
from guestnet.apply import topology as effects
from guestnet.errors import MEDDLED, GuestnetError, NotFoundError, NotPermittedError, raise_together
from guestnet.inet import Assigned
from guestnet.kernel import lock, netns, sysctl
from guestnet.kernel.place import Places
from guestnet.machine import machine_id
from guestnet.model import Link, Mode
from guestnet.plan import topology as plan
from guestnet.plan.host import Host
from guestnet.plan.layout import Node, Topology, Where
from guestnet.plan.reach import Reach
from guestnet.plan.steps import AddLink, Plug
from guestnet.plan.unit import WriteUnit
from guestnet.topology import boot, leaving
from guestnet.topology import state as states
from guestnet.topology.observe import rooms_of, wait_addresses
from guestnet.undo import Undo

_ROUNDS = 3  # an address that goes takes others of its subnet with it (inet_del_ifa): they are planned for again


@dataclass(slots=True, kw_only=True)
class Options:
    """How a verb goes about its work. ``node`` is the node that this host is, its name otherwise; ``parents`` are links
    that stand in for those of the file, by the parent's name. The rest is as for an attach."""

    uri: str
    node: str | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False
    timeout: float = 30.0
    watch: Callable[[str, Any], None] | None = None
    waiting: Callable[[float], None] | None = None
    notice: Callable[[str], None] | None = None
    hook: bool = False
    persist: bool = False
    keep_unit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One endpoint of this node as it is; ``state`` is "up", or all that is amiss."""

    name: str
    kind: str
    inside: str
    link: str
    parent: str
    mode: str
    mac: str
    addresses: tuple[str, ...]
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verb did on a node: the steps it took (or would take, in a dry run), the endpoints as they are then, what
    a person should be told, the seconds, and whether it comes up at boot."""

    topology: str
    node: str
    steps: tuple[object, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    seconds: float
    persists: bool = False
    dry_run: bool = False


def up(topology: Topology, options: Options, *, source: str = "") -> Outcome:
    """Bring this node's part of a topology up, from whatever there is of it, and read it back.

    The same call again takes no steps. With ``persist`` a systemd unit does it at each boot. On a failure what was made
    is taken away; what stood in the way of the file, and was deleted for it, stays deleted. Raises what the plan and
    the kernel refuse, and ConflictError where another on the wire has one of the addresses.
    """
    begun = time.monotonic()
    with _at_work(topology, options) as work:
        nics = work.nics()
        written, notes = work.unit(source)
        coming = work.attach(nics, dry_run=True)
        going = work.take_nics(nics, dry_run=True)
        raise_together(going.failures)
        if options.dry_run:
            made = work.planned(nics)
            left = work.forget(nics)
            steps = (*going.steps, *made.steps, *_steps(coming), *left.steps, *written)
            told = (*_notes(made, coming), *going.notes, *left.notes, *notes)
            return work.outcome(steps, work.rows(made, coming), told, begun)
        if going.steps:
            going = work.take_nics(nics)
            raise_together(going.failures)
        with Undo() as undo:
            with undo.part(f"the links of {topology.name}", work.locked) as part:
                made = work.converge(nics, part, source)
            done = work.attach(nics, undo=undo) if _steps(coming) else coming
            work.wait_addresses()
            after = work.planned(nics)
            _verify(after.steps)
            units.carry_out(written, undo)
        with work.locked():
            left = work.forget(nics)
        raise_together(left.failures)
        steps = (*going.steps, *made.steps, *_steps(done), *left.steps, *written)
        told = (*_notes(made, done), *going.notes, *left.notes, *notes)
        return work.outcome(steps, work.rows(after, done), told, begun)


def status(topology: Topology, options: Options) -> Outcome:
    """What of this node's part of a topology is so, and what is not; nothing is changed. A guest that is not there is
    no error here."""
    begun = time.monotonic()
    with _at_work(topology, replace(options, dry_run=True)) as work:
        nics = work.nics()
        there, gone = [], {}
        for nic in nics:
            try:
                there += work.attach((nic,), dry_run=True)
            except GuestnetError as error:
                gone[nic.endpoint.name] = error.message
        going = work.take_nics(nics)
        made = work.planned(nics)
        left = work.forget(nics)
        failures = (failure.message for failure in (*going.failures, *left.failures))
        steps = (*going.steps, *made.steps, *_steps(there), *left.steps)
        return work.outcome(steps, work.rows(made, there, gone), (*made.notes, *left.notes, *failures), begun)


def must_be_root(options: Options) -> None:
    """Raise NotPermittedError for who may change nothing and wants to."""
    if os.geteuid() != 0 and not options.dry_run:
        raise NotPermittedError("making links and namespaces needs root", hint="run this with sudo")


@contextmanager
def _at_work(topology: Topology, options: Options) -> Iterator["_Work"]:
    must_be_root(options)
    node = topology.node(options.node) if options.node is not None else topology.node_here(socket.gethostname())
    with Places() as places:
        yield _Work(topology=topology, node=node, options=options, places=places, machine_id=machine_id())


def _verify(steps: Iterable[plan.Step]) -> None:
    left = [str(step) for step in steps]
    if left:
        raise GuestnetError(f"it is not as it was made, there is still to do: {'; '.join(left[:3])}", hint=MEDDLED)


def _steps(outcomes: Iterable[Any]) -> tuple[object, ...]:
    return tuple(step for outcome in outcomes for step in outcome.steps)


def _pairs(nics: Iterable[plan.GuestWanted]) -> list[tuple[str, str]]:
    """By guest and MAC, as they are kept."""
    return [(nic.guest, str(nic.request.mac or "")) for nic in nics]


def _notes(made: plan.Plan, outcomes: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*made.notes, *(note for outcome in outcomes for note in outcome.notes))))


@dataclass(slots=True, kw_only=True)
class _Work:
    """What a verb has at hand: the file, which node of it this is, and the namespaces."""

    topology: Topology
    node: Node
    options: Options
    places: Places
    machine_id: str
    links: tuple[plan.Wanted, ...] = ()

    def locked(self) -> AbstractContextManager[object]:
        """The lock of the host's links; libvirt is not to be called with it held."""
        return lock.held(notice=self.options.notice)

    def nics(self) -> tuple[plan.GuestWanted, ...]:
        """The NICs of guests on this node. Raises where a parent of the node is not there, before a guest is asked."""
        plan.parents(self.node, Host(links=self.places.here.links.all()), self.options.parents)
        return plan.guests(self.topology, self.node, self.machine_id, self.options.parents)

    def planned(self, nics: tuple[plan.GuestWanted, ...]) -> plan.Plan:
        """What is to do, from what is there now."""
        door = self.places.here.links
        there = door.all()
        host = Host(links=there, wireless=door.wireless(there) if os.geteuid() == 0 else frozenset())
        if any(endpoint.mode is Mode.PASSTHRU for endpoint in self.node.endpoints):
            host = replace(host, used_elsewhere=door.used_elsewhere())
        self.links = plan.wanted(self.topology, self.node, host, self.machine_id, self.options.parents)
        rooms = rooms_of(self.places, self.topology.mark, (one.room for one in self.links))
        values: dict[tuple[str, str], str | None] = {}
        siblings: dict[str, states.Values] = {}
        for room in rooms:
            names = dict.fromkeys(name for one in self.links if one.room == room for name in one.sysctls)
            found = sysctl.read(names, namespace=self.places.at(room).fd) if names else {}
            values |= {(room, name): value for name, value in found.items()}
            if room == plan.HERE:
                for name in names:
                    others = sysctl.read(sysctl.siblings(name))
                    siblings[name] = tuple((one, value) for one, value in others.items() if value is not None)
        seen = plan.Seen(host=host, rooms=rooms, sysctls=values, siblings=siblings)
        made = plan.up(self.topology, self.links, nics, seen)
        return replace(made, notes=(*made.notes, *_reach_notes(self.topology, self.node)))

    def unit(self, source: str) -> tuple[tuple[WriteUnit, ...], tuple[str, ...]]:
        """The step that has it come up at boot, where that is wished, and what a person should know then."""
        if not self.options.persist:
            return (), ()
        more = [*(() if self.options.hook else ("--no-hook",)), "--connect", self.options.uri]
        guests = any(endpoint.kind is Where.GUEST for endpoint in self.node.endpoints)
        host = Host(links=self.places.here.links.all())
        wanted = boot.unit(self.topology, self.node, host, source, self.options.parents, more if guests else ())
        return units.planned(wanted), boot.notes(source)

    def converge(self, nics: tuple[plan.GuestWanted, ...], undo: Undo, source: str) -> plan.Plan:
        """Take the steps there are, and those that they bring about; the first plan, with all steps taken."""
        first = made = self.planned(nics)
        self._check_support(made.steps)
        ground = effects.Ground(self.places, self._keep(made, nics, undo, source))
        steps: list[plan.Step] = []
        for _ in range(_ROUNDS):
            if not made.steps:
                break
            steps += made.steps
            effects.run(made.steps, ground, undo, self.options.watch)
            made = self.planned(nics)
        return replace(first, steps=tuple(steps))

    def _check_support(self, steps: Iterable[plan.Step]) -> None:
        new = [step.step.new for step in steps if isinstance(step, plan.Within) and isinstance(step.step, AddLink)]
        self.places.here.links.check_support(one.kind for one in new)

    def _keep(self, made: plan.Plan, nics: tuple[plan.GuestWanted, ...], undo: Undo, source: str) -> tuple[str, ...]:
        """Write down what taking it down will have to know, before anything is done; give the namespaces that an
        earlier one was about to make."""
        before = states.read(self.topology.name)
        known = before or states.State(name=self.topology.name)
        was = {step.name: step.before for step in made.steps if isinstance(step, plan.SetSysctl) and step.before}
        shared = self._shared()
        values = {name: was.get(name, ((name, value),)) for name, value in shared.items()}
        new = replace(
            known, node=self.node.name, source=source or known.source, sysctls={**values, **known.sysctls},
            set_to={**known.set_to, **shared},
            namespaces=tuple(dict.fromkeys((*known.namespaces, *(one.room for one in self.links if one.room)))),
            links=tuple(dict.fromkeys((*known.links, *self._here()))),
            guests=tuple(dict.fromkeys((*known.guests, *_pairs(nics)))),
        )  # fmt: skip
        if new != before:
            undo.push("what is kept of the topology", states.put_back, self.topology.name, before)
            states.write(new)
        return known.namespaces

    def _shared(self) -> dict[str, str]:
        """The sysctls of this host, not of a link that comes and goes with the topology, and their values."""
        return {
            name: value
            for one in self.links
            if one.room == plan.HERE and one.endpoint.kind is not Where.QEMU
            for name, value in one.sysctls.items()
            if not one.own(name)
        }

    def _known(self) -> states.State | None:
        """What is kept of the topology; an ordinary user who only looks sees nothing of it."""
        try:
            return states.read(self.topology.name)
        except NotPermittedError:
            if not self.options.dry_run:
                raise
            return None

    def take_nics(self, nics: tuple[plan.GuestWanted, ...], *, dry_run: bool | None = None) -> leaving.Gone:
        """Take the NICs that guests were given and that the file says no more."""
        known = self._known()
        past = [pair for pair in (known.guests if known is not None else ()) if pair not in _pairs(nics)]
        if not past:
            return leaving.Gone()
        return leaving.nics(past, self._how(self.options.dry_run if dry_run is None else dry_run))

    def forget(self, nics: tuple[plan.GuestWanted, ...]) -> leaving.Gone:
        """Put back the sysctls that the file says no more, and forget of them and of guests' NICs; after planned()."""
        known = self._known()
        if known is None:
            return leaving.Gone()
        shared = self._shared()
        past = {name: values for name, values in known.sysctls.items() if name not in shared}
        gone = leaving.sysctls(replace(known, sysctls=past), dry_run=self.options.dry_run) if past else leaving.Gone()
        new = replace(
            known, guests=tuple(pair for pair in known.guests if pair in _pairs(nics)),
            sysctls={name: values for name, values in known.sysctls.items() if name in shared},
            set_to={name: value for name, value in known.set_to.items() if name in shared},
        )  # fmt: skip
        if new != known and not self.options.dry_run and not gone.failures:
            states.write(new)
        return gone

    def _here(self) -> Iterator[tuple[str, str]]:
        """The links that this node's own namespace gets, by name and MAC; of VLANs the name alone."""
        for one in self.links:
            yield from ((vlan.name, "") for vlan in one.parent.vlans)
            if one.room == plan.HERE:
                yield one.name, str(one.mac or "")

    def attach(self, nics: Iterable[plan.GuestWanted], *, dry_run: bool = False, undo: Undo | None = None) -> list[Any]:
        """Give the guests their NICs, each guest all at once; what an attach says of each."""
        by_guest: dict[str, list[plan.GuestWanted]] = {}
        for nic in nics:
            by_guest.setdefault(nic.guest, []).append(nic)
        if not by_guest:
            return []
        from guestnet import attachment

        how = self._how(dry_run)
        outcomes = []
        for guest, theirs in by_guest.items():
            watched = how if undo is None else replace(how, watch=_taking_back(undo, how))
            outcomes.append(attachment.attach(guest, tuple(nic.request for nic in theirs), watched))
        return outcomes

    def _how(self, dry_run: bool) -> Any:
        from guestnet import attachment

        return attachment.Options(
            uri=self.options.uri, dry_run=dry_run, timeout=self.options.timeout, waiting=self.options.waiting,
            notice=self.options.notice, hook=self.options.hook, watch=None if dry_run else self.options.watch,
        )  # fmt: skip

    def wait_addresses(self) -> None:
        """Wait until the addresses can be used. Raises ConflictError where another on the wire has one."""
        wait_addresses(self._addresses)

    def _addresses(self) -> Iterator[tuple[str, Link, Assigned]]:
        for room in dict.fromkeys(one.room for one in self.links):
            place = self.places.at(room)
            names = {one.name for one in self.links if one.room == room}
            ours = {link.index: link for link in place.links.all() if link.name in names}
            for one in place.addresses.all():
                if one.index in ours and one.by_hand:
                    yield room, ours[one.index], one

    def rows(self, made: plan.Plan, done: Iterable[Any], gone: Mapping[str, str] | None = None) -> tuple[Row, ...]:
        """The endpoints as they are, in the file's order."""
        links = {one.endpoint.name: one for one in self.links}
        outcomes = {outcome.guest: outcome for outcome in done}
        rows = []
        for endpoint in self.node.endpoints:
            row = Row(
                name=endpoint.name, kind=endpoint.kind, inside=endpoint.inside, link=endpoint.link, parent="",
                mode=endpoint.mode, mac="", addresses=tuple(str(one) for one in endpoint.addresses), state="up",
            )  # fmt: skip
            if endpoint.name in links:
                rows.append(self._link_row(row, links[endpoint.name], made.amiss.get(endpoint.name, ())))
            else:
                nic = next(nic for nic in made.guests if nic.endpoint is endpoint)
                rows.append(self._guest_row(row, nic, outcomes.get(nic.guest), (gone or {}).get(endpoint.name, "")))
        return tuple(rows)

    def _link_row(self, row: Row, one: plan.Wanted, amiss: Iterable[str]) -> Row:
        there = one.room == plan.HERE or netns.exists(one.room)
        link = self.places.at(one.room).links.find(one.name) if there else None
        words = [*amiss, *(["no carrier"] if link is not None and link.up and not link.carrier else [])]
        mac = link.mac if link is not None else str(one.mac or "")
        return replace(row, link=one.name, parent=one.parent.readable, mac=mac, state="; ".join(words) or "up")

    def _guest_row(self, row: Row, nic: plan.GuestWanted, outcome: Any, gone: str) -> Row:
        row = replace(row, parent=nic.request.parent, mac=str(nic.request.mac or ""))
        if outcome is None:
            return replace(row, state=gone or "missing")
        shown = next((it for it in outcome.nics if it.mac == nic.request.mac), None)
        if shown is None or (outcome.dry_run and outcome.steps):
            return replace(row, state="missing" if outcome.steps else "up")
        state = "no carrier" if shown.carrier is False else "up" if shown.live else "not running"
        return replace(row, link=shown.ifname, state=state)

    def outcome(
        self, steps: tuple[object, ...], rows: tuple[Row, ...], notes: tuple[str, ...], begun: float
    ) -> Outcome:
        """What the verb did."""
        return Outcome(
            topology=self.topology.name, node=self.node.name, steps=steps, rows=rows, notes=notes,
            seconds=time.monotonic() - begun, persists=units.at_boot(boot.unit_name(self.topology.name)),
            dry_run=self.options.dry_run,
        )  # fmt: skip


def _taking_back(undo: Undo, how: Any) -> Callable[[str, Any], None]:
    """The watch of an attach that pushes the inverse of each NIC's plugging: the attach takes back its own until it
    ends, and nothing of it later."""

    def watch(when: str, step: Any) -> None:
        if when == "begin" and isinstance(step, Plug):
            undo.push(f"the NIC {step.mac} of {step.guest}", _unplug, step, replace(how, watch=None))
        if how.watch is not None:
            how.watch(when, step)

    return watch


def _unplug(step: Plug, how: Any) -> None:
    """Take a NIC from where it was plugged in, and from nowhere else; one that is not there is no error."""
    from guestnet import attachment

    if not (step.live and step.config):  # with both it goes from wherever it is: the guest may have stopped since
        how = replace(how, live=step.live, config=step.config)
    with suppress(NotFoundError):
        attachment.detach(step.guest, (str(step.mac),), how)


def _reach_notes(topology: Topology, node: Node) -> list[str]:
    """What of this node will not reach what, as the file has it."""
    notes = []
    for pair in Reach(topology=topology).pairs():
        if pair.source.node != node.name:
            continue
        if pair.problem:
            notes.append(f"{pair.source.title} does not reach {pair.address} of {pair.target.title}: {pair.problem}")
        elif pair.hairpin is not None:
            one, other = pair.hairpin
            notes.append(f"{one} and {other} reach each other only if the switch sends frames back (vepa)")
    return list(dict.fromkeys(notes))
