"""The verbs on a guest's NICs: attach, detach, set. Each observes, plans, applies and verifies, under one lock."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

from guestnet import apply, gc, templates
from guestnet.errors import MEDDLED, ConflictError, GuestnetError, NotFoundError, NotPermittedError
from guestnet.guest import xml
from guestnet.guest.domain import Domain, Hypervisor, is_usual
from guestnet.kernel import lock, tap
from guestnet.kernel.link import Links
from guestnet.machine import machine_id
from guestnet.model import Attachment, Backend, Guest, Kind, Link, Mode, Request
from guestnet.plan import attach as attaching
from guestnet.plan import change as changing
from guestnet.plan import detach as detaching
from guestnet.plan import situation
from guestnet.plan import steps as plan
from guestnet.plan.host import Host, made_for_guests
from guestnet.plan.parent import stands_on
from guestnet.plan.situation import Situation, direct_sources, nics
from guestnet.undo import Undo


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One NIC as it is after a verb: ``pci`` is its address in the running guest, empty where it is not live."""

    mac: str
    ifname: str
    parent: str
    mode: str
    model: str
    backend: str
    live: bool
    config: bool
    pci: str
    carrier: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verb did: the NICs it was about, the steps it took (or would take, in a dry run), and the seconds."""

    guest: str
    nics: tuple[Nic, ...]
    steps: tuple[plan.Step, ...]
    notes: tuple[str, ...]
    live: bool
    config: bool
    seconds: float
    dry_run: bool = False


@dataclass(slots=True, kw_only=True)
class Options:
    """How a verb goes about its work, the same for all of them.

    ``timeout`` is what the guest gets to let go of a NIC, in seconds; ``waiting`` hears how many it has taken.
    ``notice`` hears what else is waited for. ``watch`` is called around each step. With ``hook`` the links of a guest
    that does not run are left to libvirt's hook, which an attach installs where it is missing.
    """

    uri: str
    live: bool = False
    config: bool = False
    dry_run: bool = False
    timeout: float = apply.UNPLUG_TIMEOUT
    watch: apply.Watch | None = None
    waiting: Callable[[float], None] | None = None
    notice: Callable[[str], None] | None = None
    hook: bool = False


def attach(
    guest: str, requests: tuple[Request, ...], options: Options, *, own_templates: dict[Backend, bytes] | None = None
) -> Outcome:
    """Give the guest these NICs: macvtaps made, plugged in, remembered, and read back.

    The same call again takes no steps. On any failure links, device nodes and both XMLs are as they were.
    """
    begun = time.monotonic()
    kept, own = templates.interfaces(own_templates), frozenset(own_templates or ())
    with at_work(guest, options) as work:
        others = _macs(work.others())
        hook = work.doors.hook = _Hook(work)

        def plan_now(now: Situation) -> attaching.Attaching:
            if any(request.mode is Mode.PASSTHRU for request in requests):
                now = replace(now, host=work.with_other_uses(now.host))
            now = replace(now, other_macs=others, hook=hook.ready, no_hook=hook.missing_at)
            return attaching.attach(requests, now, live=options.live, config=options.config, templates=kept, own=own)

        made, shown = work.carry_out(plan_now, lambda made: [nic.mac for nic in made.nics])
        new_hook = any(isinstance(step, plan.InstallHook) for step in made.steps)
        notes = (*made.notes, *(hook.warnings() if new_hook else ()))
    if options.dry_run:
        shown = _with_planned(made.nics, shown)
    return _outcome(guest, made, made.steps, shown, options, begun, notes=notes)


def change(guest: str, name: str, wanted: changing.Change, options: Options) -> Outcome:
    """Change a NIC where kernel and libvirt can: mode, link state, MTU downwards, bandwidth.

    On any failure it is as it was.
    """
    begun = time.monotonic()
    with at_work(guest, options) as work:
        made, shown = work.carry_out(
            lambda now: changing.change(name, wanted, now, live=options.live, config=options.config),
            lambda made: [made.nic.mac],
            # a stopped guest's macvtap is not there after a reboot of the host
            look=lambda made: any(isinstance(step, plan.SetMode | plan.SetMtu) for step in made.steps),
        )
    return _outcome(guest, made, made.steps, shown, options, begun, notes=made.notes)


def detach(guest: str, names: tuple[str, ...], options: Options, *, everything: bool = False) -> Outcome:
    """Take NICs from the guest, named by MAC or interface name; then their links, and VLANs of ours left unused.

    Raises TimedOutError when the running guest does not let go; nothing was taken from it then. Links that stand
    though their guest is gone can be taken by the name the guest had.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        try:
            work = stack.enter_context(at_work(guest, options))
        except NotFoundError:
            return _detach_orphans(guest, names, options, everything=everything)
        now = work.situation()
        made = detaching.detach(names, now, everything=everything, live=options.live, config=options.config)
        shown = nics_of([nic.mac for nic in made.nics], now.host, now.guest)
        steps = made.steps
        if not options.dry_run:
            steps = _take(made, now, work)
            shown = tuple(_taken(nic, made) for nic in shown)
    return _outcome(guest, made, steps, shown, options, begun, notes=made.notes)


def _with_planned(planned: Iterable[Attachment], there: tuple[Nic, ...]) -> tuple[Nic, ...]:
    """These NICs, those that are not there yet as they would be made: in neither XML, with no link."""
    found = {nic.mac: nic for nic in there}
    return tuple(
        found.get(one.mac)
        or Nic(
            mac=one.mac, ifname=one.ifname, parent=one.parent, mode=one.mode, model=one.model, backend=one.backend,
            live=False, config=False, pci="", carrier=None,
        )
        for one in planned
    )  # fmt: skip


class _Hook:
    """libvirt's hook, as far as it is to be used. ``missing_at`` is where it has to be installed, else empty."""

    def __init__(self, work: "Work") -> None:
        self._work = work
        self.ready, self.missing_at = False, ""
        if not work.options.hook or not is_usual(work.options.uri) or os.geteuid() != 0:
            return
        from guestnet import launcher  # brings much that other verbs do without

        self._before = launcher.status()
        self.ready = self._before.ready
        self.missing_at = "" if self.ready else self._before.path

    @property
    def used(self) -> bool:
        """Whether it is to make the links of a guest that does not run."""
        return self.ready or bool(self.missing_at)

    def install(self) -> None:
        """Put it there, and let libvirt look for it."""
        from guestnet import launcher

        try:
            launcher.install()
        except ConflictError as error:
            raise ConflictError(error.message, hint=f"{error.hint}; or do without: --no-hook") from error
        launcher.tell()

    def warnings(self) -> tuple[str, ...]:
        """What a person should know who has it installed."""
        from guestnet import launcher

        changeable = launcher.exposed(*launcher.running())
        if not changeable:
            return ()
        return (f"libvirt runs the hook as root, and others than root may change {changeable}",)

    def put_back(self) -> None:
        """Take it away again, where it was not there before and no guest has come to need it."""
        from guestnet import launcher

        others = (text for guest in self._work.others() for text in (guest.live, guest.config) if text is not None)
        if not any(xml.NAMESPACE in text for text in others):
            launcher.put_back(self._before)

    def check(self) -> None:
        """Raise GuestnetError where a guest that counts on it would start without."""
        from guestnet import launcher

        if not launcher.status().ready:
            raise GuestnetError(
                f"the hook {self._before.path} is not in use after the work was done",
                hint="guestnet hook status says why; or do without: --no-hook",
            )


def _take(made: detaching.Detaching, now: Situation, work: "Work") -> tuple[plan.Step, ...]:
    """Carry a detach out, and give the steps. Which links and VLANs go is planned anew when the guest has let go of
    its NICs: by then a VLAN may have another user, or have lost it."""
    letting_go = tuple(step for step in made.steps if isinstance(step, plan.GuestStep))
    plugged = frozenset(nic.record.ifname for nic in nics(now.guest, now.host) if nic.live is not None)
    others = work.others() if any(made_for_guests(link) for link in now.host.links) else ()
    with Undo() as undo:
        apply.run(letting_go, work.doors, undo, work.options.watch)
        after = work.domain.snapshot()
        there = {str(nic.mac): nic for nic in nics(after, now.host)}
        for record in made.nics:
            nic = there.get(record.mac)
            if nic and ((made.live and nic.live) or (made.config and nic.config)):
                raise GuestnetError(f"the NIC {record.mac} of {after.name} is still there after the detach")
        with undo.part("links", work.locked) as part:
            host = Host(links=work.links.all(), sources=direct_sources(others))
            going = detaching.links_left(made.nics, after, host)
            if any(link.kind == Kind.VLAN for link in going):
                going = detaching.links_left(made.nics, after, work.with_other_uses(host))
            for link in going:
                if link.kind == Kind.MACVTAP and link.name not in plugged:
                    _check_not_held(link, after.name)
            deletions = detaching.delete_links(going)
            apply.run(deletions, work.doors, part, work.options.watch)
    return (*letting_go, *deletions)


def _check_not_held(link: Link, guest: str) -> None:
    held = tap.held([link]).get(link.index, ())
    if held:
        raise ConflictError(
            f"{link.name} is held open by {', '.join(map(str, held))}, though {guest} has no NIC that names it",
            hint=f"see what it is: ps {held[0].pid}",
        )


def _taken(nic: Nic, made: detaching.Detaching) -> Nic:
    """The NIC as it is after the detach."""
    live, config = nic.live and not made.live, nic.config and not made.config
    return replace(nic, live=live, config=config, pci=nic.pci if live else "", carrier=nic.carrier if live else None)


def _outcome(
    guest: str,
    made: attaching.Attaching | changing.Changing | detaching.Detaching,
    steps: tuple[plan.Step, ...],
    shown: tuple[Nic, ...],
    options: Options,
    begun: float,
    notes: tuple[str, ...] = (),
) -> Outcome:
    return Outcome(
        guest=guest, nics=shown, steps=steps, notes=notes, live=made.live, config=made.config,
        seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip


_Made = TypeVar("_Made", attaching.Attaching, changing.Changing)


@dataclass(slots=True, kw_only=True)
class Work:
    """What a verb on one guest has at hand, with the lock of that guest held."""

    options: Options
    links: Links
    hypervisor: Hypervisor
    domain: Domain
    doors: apply.Doors

    def locked(self) -> AbstractContextManager[object]:
        """The lock of the host's links; libvirt is not to be called with it held."""
        return nullcontext() if self.options.dry_run else lock.held(notice=self.options.notice)

    def host(self) -> Host:
        """The links as they are now."""
        there = self.links.all()
        return Host(links=there, wireless=self.links.wireless(there) if os.geteuid() == 0 else frozenset())

    def with_other_uses(self, host: Host) -> Host:
        """The host with what uses its links and is no link here: addresses of its own, and other namespaces, which
        takes a look into each of them."""
        return replace(host, used_elsewhere=self.links.used_elsewhere(), addressed=self.links.addressed())

    def fresh_doors(self) -> apply.Doors:
        """The doors without what they know of links, which is out of date once the host's lock was given back."""
        return apply.Doors(links=self.links, target=self.links)

    def situation(self) -> Situation:
        """What a plan looks at, as it is now."""
        return Situation(guest=self.domain.snapshot(), host=self.host(), machine_id=machine_id())

    def others(self) -> tuple[Guest, ...]:
        """The other guests."""
        return tuple(guest for guest in self.hypervisor.guests() if guest.uuid != self.domain.uuid)

    def carry_out(
        self,
        decide: Callable[[Situation], _Made],
        macs: Callable[[_Made], Sequence[str]],
        *,
        look: Callable[[_Made], bool] = lambda _made: True,
    ) -> tuple[_Made, tuple[Nic, ...]]:
        """Plan and take the steps, and verify what they made; the NICs of these MACs as they are then.

        The links are looked at, planned for and changed under the host's lock, then the guest is changed without it.
        ``look`` says whether the macvtaps are verified too. In a dry run, and where there is no step, the NICs are
        as they are.
        """
        guest = self.domain.snapshot()
        with Undo() as undo:
            with undo.part("links", self.locked) as part:
                now = Situation(guest=guest, host=self.host(), machine_id=machine_id())
                made = decide(now)
                on_links = tuple(step for step in made.steps if isinstance(step, plan.LinkStep))
                self.links.check_support(step.new.kind for step in on_links if isinstance(step, plan.AddLink))
                if not self.options.dry_run:
                    apply.run(on_links, self.doors, part, self.options.watch)
            if self.options.dry_run or not made.steps:
                return made, nics_of(macs(made), now.host, guest)
            others = tuple(step for step in made.steps if not isinstance(step, plan.LinkStep))
            apply.run(others, self.doors, undo, self.options.watch)
            return made, _verified(
                macs(made), self.doors, self.domain, live=made.live, config=made.config, links=look(made)
            )


@contextmanager
def at_work(guest: str, options: Options) -> Iterator[Work]:
    """The guest, with its lock held for the block unless it is a dry run. Raises NotFoundError with the near names."""
    if os.geteuid() != 0 and not options.dry_run:
        raise NotPermittedError("making links and plugging NICs in needs root", hint="run this with sudo")
    with Links() as links, Hypervisor(options.uri) as hypervisor:
        domain = hypervisor.domain(guest)
        mine = nullcontext() if options.dry_run else lock.guest(domain.uuid, guest, notice=options.notice)
        doors = apply.Doors(links=links, target=links, domain=domain, timeout=options.timeout, waiting=options.waiting)
        with mine:
            if not options.dry_run:
                domain.settle()
            yield Work(options=options, links=links, hypervisor=hypervisor, domain=domain, doors=doors)


def _macs(guests: Iterable[Guest]) -> dict[str, str]:
    """The names of these guests by the MACs of their NICs."""
    texts = ((guest, text) for guest in guests for text in (guest.live, guest.config) if text is not None)
    return {nic.mac: guest.name for guest, text in texts for nic in xml.interfaces(text)}


def nics_of(macs: Sequence[str], host: Host, guest: Guest) -> tuple[Nic, ...]:
    """The NICs of these MACs that the guest has."""
    there = {str(nic.mac): nic for nic in nics(guest, host)}
    shown = []
    for nic in (there[mac] for mac in macs if mac in there):
        ifname = nic.live.target if nic.live is not None else nic.record.ifname
        link = host.find(ifname) if ifname else None
        shown.append(
            Nic(
                mac=nic.mac, ifname=ifname, parent=nic.record.parent, mode=nic.record.mode, model=nic.interface.model,
                backend=nic.record.backend, live=nic.live is not None, config=nic.config is not None,
                pci=nic.live.address if nic.live is not None else "", carrier=link.carrier if link else None,
            )
        )  # fmt: skip
    return tuple(shown)


def _verified(
    macs: Sequence[str], doors: apply.Doors, domain: Domain, *, live: bool, config: bool, links: bool
) -> tuple[Nic, ...]:
    """The NICs as they are after the work. What is not as it was planned is an error, and is undone."""
    guest, host = domain.snapshot(), Host(links=doors.links.all())
    there = {str(nic.mac): nic for nic in nics(guest, host)}
    for mac in macs:
        nic = there.get(mac)
        if nic is None or (live and nic.live is None) or (config and nic.config is None):
            raise GuestnetError(f"the NIC {mac} of {domain.name} is not in its XML after the work was done")
        if links and nic.live is None and doors.hook is not None and doors.hook.used:
            doors.hook.check()
        elif links:
            _check_link(nic, host, guest, live=live)
    return nics_of(macs, host, guest)


def _check_link(nic: situation.Nic, host: Host, guest: Guest, *, live: bool) -> None:
    record = nic.record
    direct = record.backend is Backend.DIRECT
    if direct and not live:
        return
    name = nic.live.target if direct and nic.live is not None else record.ifname
    link = host.find(name)
    if link is None or not stands_on(link, record.parent, record.outer, host):
        raise GuestnetError(
            f"the macvtap {name} of {guest.name} is not on {record.parent} here after the work was done",
            hint="libvirtd may run in another network namespace: run guestnet where it runs",
        )
    if direct:
        return
    wanted = (record.mac, record.mode, True, guest.uuid)
    if (link.mac, link.mode, link.up, link.guest_uuid) != wanted:
        state = "up" if link.up else "down"
        raise GuestnetError(
            f"the macvtap {name} of {guest.name} is not as it was made: MAC {link.mac}, mode {link.mode}, {state}, "
            f"marked {link.alias!r}",
            hint=MEDDLED,
        )


def _detach_orphans(guest: str, names: tuple[str, ...], options: Options, *, everything: bool) -> Outcome:
    """Delete the links of a guest that is gone, by the name that their alias says.

    libvirt may know less than there is, such as one that has just started: so a link that is in use stays, with a
    ConflictError.
    """
    begun = time.monotonic()
    with Links() as links:
        any_there = any(link.guest_name == guest for link in links.all())
    steps: tuple[plan.Step, ...] = ()
    if any_there:
        how = gc.Options(
            uri=options.uri, dry_run=options.dry_run, sure=True, watch=options.watch, notice=options.notice
        )
        steps = gc.collect_of(guest, () if everything else names, how).steps
    if not steps:
        with Hypervisor(options.uri) as hypervisor:
            hypervisor.domain(guest)  # says that there is no such guest, and the near names
    note = f"{guest} is gone, its links {'would be' if options.dry_run else 'are'} deleted"
    return Outcome(
        guest=guest, nics=(), steps=steps, notes=(note,), live=False,
        config=False, seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip
