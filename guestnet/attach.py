"""The verbs on a guest's NICs: attach, detach, set. Each observes, plans, applies and verifies, under one lock."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

from guestnet import apply, templates
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError
from guestnet.guest import xml
from guestnet.guest.domain import Domain, Hypervisor
from guestnet.kernel import lock, tap
from guestnet.kernel.link import Links, no_support
from guestnet.machine import machine_id
from guestnet.model import VLAN_ALIAS, Backend, Guest, Link, Mode, Request
from guestnet.plan import attach as attaching
from guestnet.plan import change as changing
from guestnet.plan import detach as detaching
from guestnet.plan import situation
from guestnet.plan import steps as plan
from guestnet.plan.host import Host
from guestnet.plan.situation import Situation, nics
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
    ``notice`` hears what else is waited for. ``watch`` is called around each step.
    """

    uri: str
    live: bool = False
    config: bool = False
    dry_run: bool = False
    timeout: float = apply.UNPLUG_TIMEOUT
    watch: apply.Watch | None = None
    waiting: Callable[[float], None] | None = None
    notice: Callable[[str], None] | None = None


def attach(
    guest: str, requests: tuple[Request, ...], options: Options, *, own_templates: dict[Backend, bytes] | None = None
) -> Outcome:
    """Give the guest these NICs: macvtaps made, plugged in, remembered, and read back.

    The same call again takes no steps. On any failure links, device nodes and both XMLs are as they were.
    """
    begun = time.monotonic()
    with _at_work(guest, options, others=True) as (doors, domain, now):
        if any(request.mode is Mode.PASSTHRU for request in requests):
            now = replace(now, host=_with_other_uses(now.host, doors.links))
        made = attaching.attach(
            requests, now, live=options.live, config=options.config, templates=templates.interfaces(own_templates)
        )
        _check_support(made.steps, doors.links)
        macs = [nic.mac for nic in made.nics]
        shown = _carry_out(made, macs, doors, domain, now, options)
    return _outcome(guest, made, shown, options, begun, notes=made.notes)


def change(guest: str, name: str, wanted: changing.Change, options: Options) -> Outcome:
    """Change a NIC where kernel and libvirt can: mode, link state, MTU downwards, bandwidth.

    On any failure it is as it was.
    """
    begun = time.monotonic()
    with _at_work(guest, options) as (doors, domain, now):
        made = changing.change(name, wanted, now, live=options.live, config=options.config)
        touched = any(isinstance(step, plan.SetMode | plan.SetMtu) for step in made.steps)
        shown = _carry_out(made, [made.nic.mac], doors, domain, now, options, links=touched)
    return _outcome(guest, made, shown, options, begun, notes=made.notes)


def detach(guest: str, names: tuple[str, ...], options: Options, *, everything: bool = False) -> Outcome:
    """Take NICs from the guest, named by MAC or interface name; then their links, and VLANs of ours left unused.

    Raises TimedOutError when the running guest does not let go; nothing was taken from it then. Links that stand
    though their guest is gone can be taken by the name the guest had.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        try:
            doors, domain, now = stack.enter_context(_at_work(guest, options))
        except NotFoundError:
            return _detach_orphans(guest, names, options, everything=everything)
        if any(link.alias == VLAN_ALIAS for link in now.host.links):
            now = replace(now, host=_with_other_uses(now.host, doors.links))
        made = detaching.detach(names, now, everything=everything, live=options.live, config=options.config)
        shown = _nics([nic.mac for nic in made.nics], now.host, now.guest)
        if not options.dry_run:
            with Undo() as undo:
                apply.run(made.steps, doors, undo, options.watch)
                after = {str(nic.mac): nic for nic in nics(domain.snapshot(), now.host)}
                for nic in made.nics:
                    left = after.get(nic.mac)
                    if left and ((made.live and left.live) or (made.config and left.config)):
                        raise GuestnetError(f"the NIC {nic.mac} of {guest} is still there after the detach")
            shown = tuple(_taken(nic, made) for nic in shown)
    return _outcome(guest, made, shown, options, begun)


def _taken(nic: Nic, made: detaching.Detaching) -> Nic:
    """The NIC as it is after the detach."""
    live, config = nic.live and not made.live, nic.config and not made.config
    return replace(nic, live=live, config=config, pci=nic.pci if live else "", carrier=nic.carrier if live else None)


def _carry_out(
    made: attaching.Attaching | changing.Changing,
    macs: Sequence[str],
    doors: apply.Doors,
    domain: Domain,
    now: Situation,
    options: Options,
    *,
    links: bool = True,
) -> tuple[Nic, ...]:
    """Take the steps and verify what they made; the NICs as they are then, or as they are in a dry run.

    Without ``links`` the macvtaps are not looked at: a stopped guest's is not there after a reboot of the host.
    """
    if options.dry_run or not made.steps:
        return _nics(macs, now.host, now.guest)
    with Undo() as undo:
        apply.run(made.steps, doors, undo, options.watch)
        return _verified(macs, doors, domain, live=made.live, config=made.config, links=links)


def _outcome(
    guest: str,
    made: attaching.Attaching | changing.Changing | detaching.Detaching,
    shown: tuple[Nic, ...],
    options: Options,
    begun: float,
    notes: tuple[str, ...] = (),
) -> Outcome:
    return Outcome(
        guest=guest, nics=shown, steps=made.steps, notes=notes, live=made.live, config=made.config,
        seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip


@contextmanager
def _at_work(guest: str, options: Options, *, others: bool = False) -> Iterator[tuple[apply.Doors, Domain, Situation]]:
    """The doors to what the verb changes, and the situation it plans from; with the MACs of ``others`` if asked."""
    if os.geteuid() != 0 and not options.dry_run:
        raise NotPermittedError("making links and plugging NICs in needs root", hint="run this with sudo")
    with ExitStack() as stack:
        if not options.dry_run:
            stack.enter_context(lock.held(notice=options.notice))
        links = stack.enter_context(Links())
        hypervisor = stack.enter_context(Hypervisor(options.uri))
        domain = hypervisor.domain(guest)
        doors = apply.Doors(links=links, target=links, domain=domain, timeout=options.timeout, waiting=options.waiting)
        there = links.all()
        now = Situation(
            host=Host(links=there, wireless=links.wireless(there) if os.geteuid() == 0 else frozenset()),
            guest=domain.snapshot(),
            machine_id=machine_id(),
            other_macs=_other_macs(hypervisor, guest) if others else {},
        )
        yield doors, domain, now


def _with_other_uses(host: Host, links: Links) -> Host:
    """The host with what uses its links and is no link here: addresses of its own, and other namespaces, which takes a
    look into each of them."""
    return replace(host, used_elsewhere=links.used_elsewhere(), addressed=links.addressed())


def _other_macs(hypervisor: Hypervisor, guest: str) -> dict[str, str]:
    found = {}
    for other in hypervisor.guests():
        if other.name != guest:
            for text in (other.live, other.config):
                if text is not None:
                    found.update({nic.mac: other.name for nic in xml.interfaces(text)})
    return found


def _check_support(steps: tuple[plan.Step, ...], links: Links) -> None:
    for kind in dict.fromkeys(step.new.kind for step in steps if isinstance(step, plan.AddLink)):
        if not links.supports(kind):
            raise no_support(kind)


def _nics(macs: Sequence[str], host: Host, guest: Guest) -> tuple[Nic, ...]:
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
        if links:
            _check_link(nic, host, guest, live=live)
    return _nics(macs, host, guest)


def _check_link(nic: situation.Nic, host: Host, guest: Guest, *, live: bool) -> None:
    record = nic.record
    direct = record.backend is Backend.DIRECT
    if direct and not live:
        return
    name = nic.live.target if direct and nic.live is not None else record.ifname
    link = host.find(name)
    lower = host.below(link) if link is not None else None
    if link is None or lower is None or lower.name != record.parent:
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
            hint="something else on this host changes it: look at udev rules and network managers",
        )


def _detach_orphans(guest: str, names: tuple[str, ...], options: Options, *, everything: bool) -> Outcome:
    """Delete the links of a guest that is gone: those whose alias says this name and a UUID no guest has.

    libvirt may know less than there is, such as one that has just started. So a link that some process holds open, or
    that the XML of any guest names, stays: ConflictError.
    """
    begun = time.monotonic()
    work = nullcontext() if options.dry_run else lock.held(notice=options.notice)
    with work, Links() as links, Hypervisor(options.uri) as hypervisor:
        guests = hypervisor.guests()
        host = _with_other_uses(Host(links=links.all()), links)
        orphans = [
            link
            for link in host.links
            if link.guest_name == guest
            and link.guest_uuid not in {other.uuid for other in guests}
            and (everything or link.name in names or link.mac in {name.lower() for name in names})
        ]
        if not orphans:
            hypervisor.domain(guest)  # says that there is no such guest, and the near names
        for link in orphans:
            _check_unused(link, guests)
        doomed = (*orphans, *host.unused_vlans(orphans))
        steps = tuple(plan.DeleteLink(name=link.name, index=link.index) for link in doomed)
        if not options.dry_run:
            with Undo() as undo:
                apply.run(steps, apply.Doors(links=links, target=links), undo, options.watch)
    return Outcome(
        guest=guest, nics=(), steps=steps, notes=(f"{guest} is gone, its links are deleted",), live=False,
        config=False, seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip


def _check_unused(link: Link, guests: Sequence[Guest]) -> None:
    for other in guests:
        for text in (other.live, other.config):
            if text is not None and any(nic.target == link.name for nic in xml.interfaces(text)):
                raise ConflictError(f"{link.name} is a NIC of the guest {other.name}", hint="detach it from that guest")
    pids = tap.holders(tap.device_of(link))
    if pids:
        raise ConflictError(
            f"{link.name} is held open by process {pids[0]}, though libvirt knows no guest {link.guest_name}",
            hint=f"see what it is (ps {pids[0]}), and whether libvirt has all its guests (virsh list --all)",
        )
