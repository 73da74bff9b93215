"""Taking a topology down on one node."""

import socket
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

from guestnet import units
from guestnet.apply import topology as effects
from guestnet.errors import GuestnetError, NotFoundError, raise_together
from guestnet.kernel import lock, netns
from guestnet.kernel.place import Places
from guestnet.machine import machine_id
from guestnet.model import Link
from guestnet.plan import topology as plan
from guestnet.plan.host import Host, made_for_guests
from guestnet.plan.layout import Topology
from guestnet.plan.steps import DeleteLink
from guestnet.topology import boot, leaving, vlans
from guestnet.topology import state as states
from guestnet.topology.deploy import Options, Outcome, must_be_root
from guestnet.topology.observe import rooms_of
from guestnet.undo import Undo


def down(name: str, options: Options, *, topology: Topology | None = None) -> Outcome:
    """Take away what is on this host of the topology of that name, and put back the sysctls it changed.

    Links and namespaces are known by their marks, so that no file is needed; with ``topology`` the guests' NICs are
    known too after a reboot. What cannot be taken stops nothing else; the first such error is raised at the end, with
    the others as its notes.
    """
    begun = time.monotonic()
    must_be_root(options)
    with Places() as places:
        work = _Down(name=name, options=options, places=places, known=states.read(name))
        work.guests(topology)
        sources = vlans.sources(places.here.links, options.uri, work.notes)
        with lock.held(notice=options.notice) if not options.dry_run else nullcontext():
            work.links(sources)
    work.unit()
    raise_together(work.failures)
    return Outcome(
        topology=name, node=work.known.node if work.known is not None else "", steps=tuple(work.steps), rows=(),
        notes=tuple(work.notes), seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _Down:
    """The taking down of a topology, which goes on past what fails."""

    name: str
    options: Options
    places: Places
    known: states.State | None
    steps: list[object] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[GuestnetError] = field(default_factory=list)

    def guests(self, topology: Topology | None) -> None:
        """Take the NICs from the guests that have them."""
        wanted = dict.fromkeys(self.known.guests if self.known is not None else ())
        here = self._node(topology) if topology is not None else ""
        for node in topology.nodes if topology is not None else ():
            if topology is not None and node.name == here:
                nics = plan.guests(topology, node, machine_id(), self.options.parents)
                wanted |= dict.fromkeys((nic.guest, str(nic.request.mac or "")) for nic in nics)
        if not wanted:
            return
        from guestnet import attachment

        how = attachment.Options(
            uri=self.options.uri, dry_run=self.options.dry_run, timeout=self.options.timeout,
            waiting=self.options.waiting, notice=self.options.notice,
        )  # fmt: skip
        self._note(leaving.nics(wanted, how))

    def _note(self, gone: leaving.Gone) -> None:
        self.steps += gone.steps
        self.notes += gone.notes
        self.failures += gone.failures

    def unit(self) -> None:
        """Take away the unit that brings it up at boot."""
        steps = () if self.options.keep_unit else units.deletion(boot.unit_name(self.name))
        self.steps += steps
        try:
            with Undo() as undo:
                units.carry_out(() if self.options.dry_run else steps, undo)
        except GuestnetError as error:
            self.failures.append(error)

    def _node(self, topology: Topology) -> str:
        """Which node of the file this host is: as said, as it was when it came up, or by its name."""
        known = self.known.node if self.known is not None else ""
        try:
            return self.options.node or known or topology.node_here(socket.gethostname()).name
        except NotFoundError as error:
            self.notes.append(f"no guest's NIC is looked for: {error.message}")
            return ""

    def links(self, sources: frozenset[str] | None) -> None:
        """Delete links and namespaces, then the VLANs left unused, then put the sysctls back. With the lock held."""
        rooms = rooms_of(self.places, Topology(name=self.name, nodes=()).mark, ())
        begun = dict(self.known.links if self.known is not None else ())
        steps = plan.down(self.name, plan.Seen(host=Host(links=rooms[plan.HERE].links), rooms=rooms), begun)
        lower = {
            link.parent
            for room, contents in rooms.items()
            for link in contents.links
            if link.parent is not None
            and link.parent_netnsid == contents.host
            and (room != plan.HERE or _within(link, steps))
        }
        lower |= {link.index for link in rooms[plan.HERE].links if link.name in begun and made_for_guests(link)}
        self._run(steps)
        if sources is not None:
            self._vlans(lower, sources)
        if self.known is None or self.options.dry_run or self.failures:
            return
        self._note(leaving.sysctls(self.known, dry_run=False))
        if not self.failures:
            for name in self.known.namespaces:  # the empty file of one whose maker was killed
                if not netns.exists(name) and (netns.DIRECTORY / name).exists():
                    netns.remove(name)
            states.remove(self.name)

    def _run(self, steps: Iterable[plan.Step]) -> None:
        wanted = tuple(steps)
        self.steps += wanted
        if self.options.dry_run or not wanted:
            return
        try:
            with Undo() as undo:
                effects.run(wanted, effects.Ground(self.places), undo, self.options.watch)
        except GuestnetError as error:
            self.failures.append(error)

    def _vlans(self, lower: set[int], sources: frozenset[str]) -> None:
        going = vlans.unused(self.places.here.links, lower, sources)
        if self.options.dry_run:
            if any(made_for_guests(link) for link in self.places.here.links.all() if link.index in lower):
                self.notes.append("VLANs that nothing else uses go with it")
            return
        self._run(plan.Within(netns=plan.HERE, step=DeleteLink(name=link.name, index=link.index)) for link in going)


def _within(link: Link, steps: Iterable[plan.Step]) -> bool:
    return any(
        isinstance(step, plan.Within)
        and step.netns == plan.HERE
        and isinstance(step.step, DeleteLink)
        and step.step.index == link.index
        for step in steps
    )
