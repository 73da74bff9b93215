"""The verbs on a QEMU that runs, by its QMP socket: attach, detach, list."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from guestnet import apply
from guestnet.errors import ConflictError, GuestnetError
from guestnet.guest.qmp import GoneError, Monitor, RefusedError
from guestnet.kernel import tap
from guestnet.kernel.link import Links
from guestnet.model import Link, Owner, Request
from guestnet.plan import qemu as plan
from guestnet.plan.host import Host
from guestnet.plan.parent import resolve_parent
from guestnet.qemu import inside
from guestnet.qemu import nics as making
from guestnet.qemu.inside import Row, Seen
from guestnet.qemu.nics import Opened, OpenNic, Options
from guestnet.undo import Undo


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verb did: the NICs it was about, the steps (taken, or not in a dry run) in words, and the seconds."""

    guest: str
    nics: tuple[Row, ...]
    steps: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool = False


@dataclass(slots=True, kw_only=True)
class How:
    """How a verb goes about its work. ``timeout`` is what the guest gets to let go of a NIC, in seconds; ``waiting``
    hears how many it has taken, ``notice`` what else is waited for. ``stuck`` are devices it did not let go of."""

    timeout: float = apply.UNPLUG_TIMEOUT
    dry_run: bool = False
    waiting: Callable[[float], None] | None = None
    notice: Callable[[str], None] | None = None
    stuck: set[str] = field(default_factory=set)


def attach(path: str, requests: Sequence[Request], options: Options, how: How, *, bus: str = "") -> Outcome:
    """Give a running QEMU these NICs: macvtaps made, their taps given to it, plugged in, and looked up there.

    ``bus`` names the bus to plug a NIC into; else free root ports are found. A NIC whose MAC is said, and which it has
    already, is left as it is. On any failure the NICs, the fds and the links are gone again.
    """
    begun = time.monotonic()
    plan.check_requests(requests, options.vhost)
    if not how.dry_run:
        making.need_root("making a NIC")
    with Monitor(path) as qemu:
        seen = inside.look(qemu)
        plan.check_state(seen.status, unplug=False)
        options = replace(options, guest=options.guest or seen.guest)
        missing, kept = _split(requests, seen)
        buses = (bus,) * len(missing) if bus else plan.choose_buses(seen.ports, len(missing), root=seen.root)
        if how.dry_run or not missing:
            wiring = making.planned(missing, options)
            return _outcome(seen.guest, kept, wiring.steps, wiring.nics, buses, wiring.notes, begun, how)
        with Undo() as undo:
            made = making.opened(missing, options)
            undo.push("links", made.close)
            with ExitStack() as ours:
                ours.callback(made.close_fds)
                for one, port in zip(made.nics, buses, strict=True):
                    _plug(qemu, one, port, undo, how)
            rows = (*kept, *_verified(qemu, made, buses))
        nics = [one.plan for one in made.nics]
        return _outcome(seen.guest, rows, made.steps, nics, buses, made.notes, begun, how)


def detach(path: str, names: Sequence[str], how: How, *, everything: bool = False) -> Outcome:
    """Take NICs from a running QEMU, named by MAC, interface name or ID; then their links, and VLANs left unused.

    Raises TimedOutError where the guest does not let go: everything stays as it is then, and the same command does the
    rest if it lets go later.
    """
    begun = time.monotonic()
    if not how.dry_run:
        making.need_root("deleting the links of a NIC")
    with Monitor(path) as qemu:
        seen = inside.look(qemu)
        with Links() as links:
            before = links.all()
        rows = seen.rows(before)
        going = _chosen(names, rows, _left_over(qemu, rows, before), everything=everything)
        ours = {link.name: link for link in before if link.owner is Owner.QEMU}
        doomed = [ours[row.ifname] for row in going]
        present = [row for row in going if row in rows]
        steps = (
            *(f"unplug NIC {row.mac} from {seen.guest}" for row in present),
            *(f"delete {link.name}" for link in doomed),
        )
        if present:
            plan.check_state(seen.status, unplug=True)
        for row in present:
            if not inside.can_be_unplugged(qemu, row):
                raise ConflictError(
                    f"the NIC {row.mac} is on the bus {row.bus}, which takes no hot-plug",
                    hint="stop the guest to take it away",
                )
        if not how.dry_run:
            done: list[Link] = []
            try:
                for row, link in zip(going, doomed, strict=True):
                    if row in present:
                        qemu.unplug(row.id, how.timeout, how.waiting)
                    _quietly(qemu, "netdev_del", id=row.id)
                    done.append(link)
            finally:
                _delete(done, how)
        return Outcome(
            guest=seen.guest, nics=tuple(going), steps=steps, notes=(), dry_run=how.dry_run,
            seconds=time.monotonic() - begun,
        )  # fmt: skip


def listed(path: str) -> tuple[Row, ...]:
    """The NICs of a running QEMU."""
    with Monitor(path) as qemu, Links() as links:
        return inside.look(qemu).rows(links.all())


def _outcome(
    guest: str,
    rows: tuple[Row, ...],
    links: Iterable[object],
    nics: Sequence[plan.Nic],
    buses: Sequence[str],
    notes: tuple[str, ...],
    begun: float,
    how: How,
) -> Outcome:
    plugs = (f"plug NIC {nic.mac} into {bus or 'the root bus'}" for nic, bus in zip(nics, buses, strict=True))
    return Outcome(
        guest=guest, nics=rows, steps=(*map(str, links), *plugs), notes=notes, seconds=time.monotonic() - begun,
        dry_run=how.dry_run,
    )  # fmt: skip


# Plugging in


def _split(requests: Sequence[Request], seen: Seen) -> tuple[list[Request], tuple[Row, ...]]:
    """The NICs to plug in, and those that are there. Raises ConflictError for one that is elsewhere."""
    if all(request.mac is None for request in requests):
        return list(requests), ()
    with Links() as links:
        host = Host(links=links.all())
    there = {row.mac: row for row in seen.rows(host.links)}
    kept = []
    for request in requests:
        if request.mac not in there:
            continue
        row = there[request.mac]
        parent = resolve_parent(request.parent, request.vlan, host, request.outer)
        if not row.ifname or row.parent != parent.readable:
            where = f"on {row.parent}, not on {parent.readable}" if row.ifname else "on no macvtap of guestnet's"
            raise ConflictError(
                f"the guest has the NIC {row.mac} already, {where}", hint="detach it first, or give another --mac"
            )
        kept.append(row)
    return [request for request in requests if request.mac not in there], tuple(kept)


def _plug(qemu: Monitor, nic: OpenNic, bus: str, undo: Undo, how: How) -> None:
    """Give the fds, make the netdev, plug in the device; the inverse of each does nothing where there is nothing."""
    name = nic.plan.id
    queues = [(f"{name}-{number}", fd) for number, fd in enumerate(nic.fds)]
    kernel = [(f"{name}-vhost-{number}", fd) for number, fd in enumerate(nic.vhost_fds)]
    for fdname, fd in (*queues, *kernel):
        undo.push(f"fd {fdname} of QEMU", qemu.drop_fd, fdname)
        qemu.give_fd(fdname, fd)
    undo.push(f"netdev {name} of QEMU", _drop_netdev, qemu, name, how)
    backend = plan.netdev(nic.plan, [fdname for fdname, _ in queues], [fdname for fdname, _ in kernel])
    qemu.execute("netdev_add", **backend)
    undo.push(f"device {name} of QEMU", _pull, qemu, name, how)
    try:
        qemu.execute("device_add", **plan.device(nic.plan, bus))
    except RefusedError as error:
        if not bus:
            error.hint = plan.PORT_HINT
        raise


def _pull(qemu: Monitor, device: str, how: How) -> None:
    try:
        if not qemu.gone and qemu.has(device):
            how.stuck.add(device)
            qemu.unplug(device, how.timeout, how.waiting)
            how.stuck.discard(device)
    except GoneError:
        how.stuck.discard(device)


def _drop_netdev(qemu: Monitor, name: str, how: How) -> None:
    if name in how.stuck:
        raise GuestnetError("the guest has its NIC still")
    _quietly(qemu, "netdev_del", id=name)


def _quietly(qemu: Monitor, command: str, **words: object) -> None:
    """Take something back that may not be there, from a QEMU that may not be there."""
    if qemu.gone:
        return
    try:
        qemu.execute(command, **words)
    except (RefusedError, GoneError):
        return


def _verified(qemu: Monitor, made: Opened, buses: Sequence[str]) -> tuple[Row, ...]:
    """The NICs as QEMU has them. One that it has not, or that is not on its macvtap, is an error."""
    with Links() as links:
        now = links.all()
    found = []
    for nic, bus in zip(made.nics, buses, strict=True):
        row = inside.row_of(qemu, nic.plan, bus, now)
        if row is None or (row.mac, row.ifname) != (nic.mac, nic.ifname):
            raise GuestnetError(f"QEMU has no NIC {nic.mac} on {nic.ifname} after it was plugged in")
        found.append(row)
    return tuple(found)


# Taking away


def _chosen(names: Sequence[str], rows: Sequence[Row], left_over: Sequence[Row], *, everything: bool) -> list[Row]:
    if everything:
        return [row for row in (*rows, *left_over) if row.ifname]
    found: list[Row] = []
    for name in names:
        row = next(
            (row for row in (*rows, *left_over) if name.lower() in (row.mac, row.id) or name == row.ifname), None
        )
        if row is None:
            raise plan.unknown_nic(name, [row.ifname or row.mac for row in (*rows, *left_over)])
        if not row.ifname:
            raise ConflictError(
                f"the NIC {name} is on no macvtap of guestnet's", hint="take it away by the means it was made with"
            )
        if row not in found:
            found.append(row)
    return found


def _left_over(qemu: Monitor, rows: Sequence[Row], links: Sequence[Link]) -> tuple[Row, ...]:
    """NICs that are gone but for their netdev: the guest let go of them when nobody was waiting any more."""
    if os.geteuid() != 0:
        return ()  # who has a tap open is for root to see
    shown = {row.ifname for row in rows}
    ours = [link for link in links if link.owner is Owner.QEMU and link.name not in shown]
    held = tap.held(ours)
    return tuple(
        inside.on_link(Row(id=plan.id_of(link.mac), mac=link.mac, model="", bus="", queues=1), link, links)
        for link in ours
        if any(holder.pid == qemu.pid for holder in held.get(link.index, ()))
    )


def _delete(links: Sequence[Link], how: How) -> None:
    if not links:
        return
    left = making.remove(links, how.notice)
    if left:
        link, holders = left[0]
        raise ConflictError(
            f"{link.name} stays: {', '.join(map(str, holders))} has it open",
            hint="`guestnet gc` deletes it once nobody has",
        )
