"""The verbs on a QEMU that runs, by its QMP socket: attach, detach, list."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from guestnet import apply
from guestnet.errors import ConflictError, GuestnetError
from guestnet.guest.qmp import Call, GoneError, Monitor, RefusedError
from guestnet.kernel import tap
from guestnet.kernel.link import Links
from guestnet.kernel.vhost import PATH as VHOST_NET
from guestnet.model import QUEUES_MAX, Link, Owner, Request, qemu_alias
from guestnet.plan import qemu as plan
from guestnet.plan.host import Host
from guestnet.plan.parent import resolve_parent
from guestnet.qemu import inside, watching
from guestnet.qemu import nics as making
from guestnet.qemu.inside import Row, Seen
from guestnet.qemu.nics import Opened, OpenNic, Options
from guestnet.undo import Undo

_SPARE_FDS = 16  # that QEMU is left for what it opens besides


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
    already, is left as it is; what an attach that was killed has left is taken away first. On any failure the NICs, the
    fds and the links are gone again. A watcher takes the links away when QEMU has ended.
    """
    begun = time.monotonic()
    plan.check_requests(requests, options.vhost)
    if not how.dry_run:
        making.need_root("making a NIC")
    making.check_fd_limit(_fds_for(requests, options.vhost))
    with Monitor(path) as qemu:
        seen = inside.look(qemu)
        plan.check_state(seen.status, unplug=False)
        options = replace(options, guest=options.guest or seen.guest)
        with Links() as door:
            there = door.all()
        missing, kept = _split(requests, seen, there)
        _check_room(qemu.pid, _fds_for(missing, options.vhost))
        buses = (bus,) * len(missing) if bus else plan.choose_buses(seen.ports, len(missing), root=seen.root)
        if how.dry_run or not missing:
            wiring = making.planned(missing, options)
            return _outcome(seen.guest, kept, wiring.steps, wiring.nics, buses, wiring.notes, begun, how)
        cleared = _clear(qemu, seen.rows(there), missing, options.guest, there, how)
        with Undo() as undo:
            made = making.opened(missing, options)
            undo.push("links", made.close)
            watching.watch(made, how.notice)
            with ExitStack() as ours:
                ours.callback(made.close_fds)
                answers = [_plug(qemu, one, port, undo, how) for one, port in zip(made.nics, buses, strict=True)]
            rows = (*kept, *_verified(made, buses, answers))
        nics = [one.plan for one in made.nics]
        return _outcome(seen.guest, rows, made.steps, nics, buses, (*cleared, *made.notes), begun, how)


def detach(path: str, names: Sequence[str], how: How, *, everything: bool = False) -> Outcome:
    """Take NICs from a running QEMU, named by MAC, interface name or ID; then their links, and VLANs left unused.

    Raises TimedOutError where the guest does not let go: everything stays as it is then, and the same command does the
    rest if it lets go later. GoneError where QEMU ends meanwhile; the links go then too.
    """
    begun = time.monotonic()
    if not how.dry_run:
        making.need_root("deleting the links of a NIC")
    with Monitor(path) as qemu:
        seen = inside.look(qemu)
        with Links() as links:
            before = links.all()
        rows = seen.rows(before)
        ours = {link.name: link for link in before if link.owner is Owner.QEMU}
        left_over = _left_over(qemu, rows, ours.values(), before)
        going = _chosen(names, rows, left_over, everything=everything)
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
            left: tuple[tuple[Link, tuple[tap.Holder, ...]], ...] = ()
            try:
                for row, link in zip(going, doomed, strict=True):
                    if row in present:
                        qemu.unplug(row.id, how.timeout, how.waiting)
                    _let_go(qemu, row.id, fds=row not in present)
                    done.append(link)
            except GoneError as error:
                done = doomed
                error.hint = "if QEMU has ended, the macvtaps of these NICs are gone as well"
                raise
            finally:
                left = making.remove(done, how.notice) if done else ()
            if left:
                link, holders = left[0]
                raise ConflictError(_stays(link, holders), hint="`guestnet gc` deletes it once nobody has")
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


def _split(requests: Sequence[Request], seen: Seen, links: Sequence[Link]) -> tuple[list[Request], tuple[Row, ...]]:
    """The NICs to plug in, and those that are there. Raises ConflictError for one that is elsewhere."""
    host = Host(links=tuple(links))
    there = {row.mac: row for row in seen.rows(links)}
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


def _fds_for(requests: Iterable[Request], vhost: plan.Vhost) -> int:
    """How many fds these NICs may need: one for each queue, one more where the kernel moves its frames."""
    each = 1 if vhost is plan.Vhost.OFF or not os.path.exists(VHOST_NET) else 2
    return sum(each * (request.queues or 1) for request in requests)


def _check_room(pid: int, fds: int) -> None:
    """Raise ConflictError where QEMU may not have so many fds more (proc(5), limits). One whose /proc is not seen from
    here says so itself when it gets them."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
        wanted = fds + len(os.listdir(f"/proc/{pid}/fd")) + _SPARE_FDS
    except OSError:
        return
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    if soft.isdecimal() and int(soft) < wanted:
        ceiling = max(int(hard), wanted) if hard.isdecimal() else hard
        raise ConflictError(
            f"with these queues QEMU needs {wanted} open files, and it (process {pid}) may have {soft}",
            hint=f"prlimit --pid {pid} --nofile={wanted}:{ceiling}",
        )


def _clear(
    qemu: Monitor, rows: Sequence[Row], requests: Sequence[Request], guest: str, links: Sequence[Link], how: How
) -> tuple[str, ...]:
    """Take away what an attach that was killed has left in this QEMU: fds and netdevs without a NIC, and their links.

    Gives a note for each. Raises ConflictError where one of the NICs to plug in cannot be rid of it.
    """
    wanted = {request.mac for request in requests}
    ours = {link.name: link for link in links if link.alias == qemu_alias(guest) or link.mac in wanted}
    left_over = _left_over(qemu, rows, ours.values(), links)
    for row in left_over:
        _let_go(qemu, row.id, fds=True)
    stay = dict(making.remove([ours[row.ifname] for row in left_over], how.notice)) if left_over else {}
    for link, holders in stay.items():
        if link.mac in wanted:
            raise ConflictError(
                f"an attach that was ended has left it: {_stays(link, holders)}",
                hint="detach it by the QMP socket by which it was attached",
            )
    staying = {link.name for link in stay}
    return tuple(
        f"{row.ifname} was left by an attach that was ended, and is taken away"
        for row in left_over
        if row.ifname not in staying
    )


def _plug(qemu: Monitor, nic: OpenNic, bus: str, undo: Undo, how: How) -> list[Any]:
    """Give the fds, make the netdev, plug in the device; the inverse of each does nothing where there is nothing.

    What QEMU answers to ``inside.questions`` then.
    """
    name = nic.plan.id
    queues, kernel = _fd_names(name, len(nic.fds)), _fd_names(f"{name}-vhost", len(nic.vhost_fds))
    fds = dict(zip((*queues, *kernel), nic.pass_fds, strict=True))
    for fdname in fds:
        undo.push(f"fd {fdname} of QEMU", qemu.drop_fd, fdname)
    undo.push(f"netdev {name} of QEMU", _drop_netdev, qemu, name, how)
    backend = plan.netdev(nic.plan, queues, kernel)
    if len(fds) == 1:
        qemu.several([("getfd", {"fdname": fdname}), ("netdev_add", backend)], must=2, fd=fds[fdname])
    else:
        # of a netdev that finds the first fd and not the second QEMU keeps the first queue for good (net_init_tap)
        for fdname, fd in fds.items():
            qemu.give_fd(fdname, fd)
        qemu.execute("netdev_add", **backend)
    undo.push(f"device {name} of QEMU", _pull, qemu, name, how)
    try:
        return qemu.several([("device_add", plan.device(nic.plan, bus)), *inside.questions(nic.plan, bus)], must=1)[1:]
    except RefusedError as error:
        if not bus:
            error.hint = plan.PORT_HINT
        raise


def _fd_names(name: str, count: int) -> list[str]:
    """What QEMU is told to call the fds of a NIC."""
    return [f"{name}-{number}" for number in range(count)]


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
    _let_go(qemu, name)


def _let_go(qemu: Monitor, name: str, *, fds: bool = False) -> None:
    """Let QEMU, if it is there, close what it has of a NIC that is not plugged in (any more): its netdev, if it has
    one, and the ``fds`` that no netdev has taken."""
    calls: list[Call] = [("netdev_del", {"id": name})]
    if fds:
        names = (*_fd_names(name, QUEUES_MAX), *_fd_names(f"{name}-vhost", QUEUES_MAX))
        calls += [("closefd", {"fdname": one}) for one in names]
    with suppress(GoneError):
        if not qemu.gone:
            qemu.several(calls)


def _verified(made: Opened, buses: Sequence[str], answers: Sequence[Sequence[Any]]) -> tuple[Row, ...]:
    """The NICs as QEMU has them. One that it has not, or that is not on its macvtap, is an error."""
    with Links() as links:
        now = links.all()
    found = []
    for nic, bus, said in zip(made.nics, buses, answers, strict=True):
        row = inside.row_of(nic.plan, bus, said, now)
        if row is None or (row.mac, row.ifname, row.queues) != (nic.mac, nic.ifname, nic.plan.queues):
            queues = f"{nic.plan.queues} queue{'s'[nic.plan.queues == 1 :]}"
            raise GuestnetError(f"QEMU has no NIC {nic.mac} on {nic.ifname} with {queues} after it was plugged in")
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


def _left_over(qemu: Monitor, rows: Sequence[Row], ours: Iterable[Link], links: Sequence[Link]) -> tuple[Row, ...]:
    """Which of ``ours`` are of NICs that this QEMU has no more, or not yet, but for their netdev or fds: the guest let
    go of them when nobody was waiting, or an attach was killed."""
    shown = {row.mac for row in rows}
    lost = [link for link in ours if link.owner is Owner.QEMU and link.mac not in shown]
    if not lost or os.geteuid() != 0:
        return ()  # who has a tap open is for root to see
    held = tap.held(lost)
    # one that is plugged in just now, by another monitor, is held by its attach too, and after that is there
    lost = [link for link in lost if {holder.pid for holder in held.get(link.index, ())} == {qemu.pid}]
    there = {one["name"] for one in qemu.execute("qom-list", path=inside.PERIPHERAL)} if lost else set()
    return tuple(
        inside.on_link(Row(id=plan.id_of(link.mac), mac=link.mac, model="", bus="", queues=1), link, links)
        for link in lost
        if plan.id_of(link.mac) not in there
    )


def _stays(link: Link, holders: Iterable[tap.Holder]) -> str:
    return f"{link.name} stays: {', '.join(map(str, holders))} has it open"
