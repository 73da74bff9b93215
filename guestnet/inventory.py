"""list and show: every NIC of ours or of type direct, as XML, metadata and kernel have it, and what is out of line."""

import os
from dataclasses import dataclass

from guestnet.errors import GuestnetError, NotFoundError, NotPermittedError
from guestnet.guest.domain import Hypervisor, is_usual
from guestnet.kernel import tap
from guestnet.kernel.link import Links
from guestnet.model import Backend, Counters, Guest, Link, Multicast, Owner
from guestnet.plan.host import Host
from guestnet.plan.parent import parent_link, parent_on_record, stands_on
from guestnet.plan.repair import rename_back, renamed
from guestnet.plan.situation import Nic, lost_records, nics, unmatched_records


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One NIC. ``vlan`` is the VLAN ID of its parent; ``carrier`` is None where there is no link; ``link`` is the
    carrier the guest is shown; ``problems`` are sentences, none where all is as it should be."""

    guest: str
    state: str
    interface: str
    parent: str
    vlan: int | None
    mode: str
    mac: str
    model: str
    queues: int
    mtu: int | None
    backend: str
    multicast: str
    live: bool
    config: bool
    link: str
    pci: str
    carrier: bool | None
    counters: Counters | None
    problems: tuple[str, ...]


def rows(uri: str, guest: str | None = None, nic: str | None = None) -> tuple[Row, ...]:
    """The NICs of all guests, or of one, or one of them; with all guests also the links whose guest is gone.

    Raises NotFoundError where the guest, or a NIC of that MAC or interface name, is not there.
    """
    with Links() as links, Hypervisor(uri) as hypervisor:
        guests = (hypervisor.domain(guest).snapshot(secrets=False),) if guest is not None else hypervisor.guests()
        host = Host(links=links.all(counters=True))
    view = _View(uri=uri, host=host, held=_held(host))
    found: list[Row] = []
    seen: set[int] = set()
    for one in guests:
        for row, link in _rows_of(one, view):
            found.append(row)
            if link is not None:
                seen.add(link.index)
    uuids = {one.uuid: one for one in guests}
    for link in host.links:
        if link.owner is Owner.GUEST and link.index not in seen and (guest is None or link.guest_uuid in uuids):
            found.append(_orphan(link, uuids.get(link.guest_uuid), host))
    if nic is not None:
        found = [row for row in found if nic == row.interface or nic.lower() == row.mac]
        if not found:
            raise NotFoundError(f"{guest} has no NIC {nic}", hint=f"guestnet list {guest} shows its NICs")
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What a NIC is compared with. ``held`` are the ifindexes of the macvtaps that a process has open, None where that
    is not known."""

    uri: str
    host: Host
    held: frozenset[int] | None

    def hook(self) -> bool:
        """Whether the hook makes the links of a guest when it starts."""
        from guestnet import launcher  # brings much that is seldom needed here

        return is_usual(self.uri) and launcher.installed()


def _held(host: Host) -> frozenset[int] | None:
    """The ifindexes of the macvtaps that a process has open; None for who may not see that, which is root's."""
    if os.geteuid() != 0:
        return None
    try:
        return frozenset(tap.held(host.links))
    except NotPermittedError:  # a process that does not let itself be looked at
        return None


def _rows_of(guest: Guest, view: _View) -> list[tuple[Row, Link | None]]:
    host = view.host
    try:
        own, lost, unmatched = nics(guest, host), lost_records(guest, host), unmatched_records(guest)
    except GuestnetError as error:
        row = _row(guest=guest.name, state=guest.state, problems=(error.message,))
        return [(row, None)]
    found = [_nic_row(nic, guest, view, unmatched.get(nic.mac, ())) for nic in own]
    for record in lost:
        link = host.find(record.ifname) if record.ifname else None
        row = _row(
            guest=guest.name, state=guest.state, interface=record.ifname, parent=record.parent, mode=record.mode,
            mac=record.mac, link_of=link, host=host,
            problems=(f"on record, but its <interface> is gone from the XML: guestnet repair {guest.name} forgets it",),
            lower=parent_link(record.parent, record.outer, host) if link is None else None,
        )  # fmt: skip
        found.append((row, link))
    return found


def _nic_row(nic: Nic, guest: Guest, view: _View, unmatched: tuple[str, ...]) -> tuple[Row, Link | None]:
    record, shown, host = nic.record, nic.interface, view.host
    ifname = nic.live.target if nic.live is not None else record.ifname
    link = host.find(ifname) if ifname else None
    moved = renamed(nic, guest, host, view.held)
    problems = (
        _problems(nic, guest, link, view)
        if moved is None
        else (f"{ifname} is called {moved.name} now: {rename_back(moved, ifname)}",)
    )
    link = moved or link
    row = _row(
        guest=guest.name, state=guest.state, interface=ifname, parent=record.parent, mode=record.mode, mac=record.mac,
        model=shown.model, queues=shown.queues, backend=record.backend,
        multicast=record.multicast if record.backend is Backend.MACVTAP else "",
        live=nic.live is not None, config=nic.config is not None, link=shown.link,
        pci=nic.live.address if nic.live is not None else "",
        problems=(*problems, *(f"{one}: guestnet repair {guest.name}" for one in unmatched if nic.recorded)),
        link_of=link, host=host, lower=parent_link(record.parent, record.outer, host) if link is None else None,
    )  # fmt: skip
    return row, link


def _problems(nic: Nic, guest: Guest, link: Link | None, view: _View) -> tuple[str, ...]:
    record, host = nic.record, view.host
    repair = f"guestnet repair {guest.name}"
    if link is None:
        if nic.live is not None:
            return (f"its macvtap is gone, the NIC is dead: {repair}",)
        if record.backend is Backend.MACVTAP and not view.hook():
            return (f"there is no {record.ifname}, the guest cannot start: {repair}",)
        try:
            parent_on_record(record.parent, record.outer, host)  # the rest is made at its start
        except GuestnetError as error:
            return (f"{error.message}: the guest cannot start",)
        return ()
    found = []
    if nic.live is not None and view.held is not None and link.index not in view.held:
        found.append(f"no process has {link.name} open, the NIC is dead: {repair}")
    if record.backend is Backend.MACVTAP and nic.interface.target != record.ifname:
        found.append(f"its <interface> names {nic.interface.target}, on record is {record.ifname}")
    lower = host.below(link)
    if link.mac != record.mac:
        found.append(f"{link.name} has the MAC {link.mac}, the guest has {record.mac}: nothing reaches it")
    if link.mode is not record.mode:
        found.append(f"{link.name} is in mode {link.mode}, on record is {record.mode}")
    if lower is not None and not stands_on(link, record.parent, record.outer, host):
        found.append(f"{link.name} is on {lower.readable}, on record is {record.parent}")
    if lower is not None and not lower.reorder_hdr:
        found.append(f"{lower.readable} has REORDER_HDR off: frames that the guest tags leave in any other VLAN")
    if lower is not None and not lower.up:
        found.append(f"no carrier: {lower.readable} is down")
    elif not link.up:
        found.append(f"{link.name} is down")
    elif not link.carrier:
        found.append(f"no carrier on {record.parent}")
    if record.backend is Backend.MACVTAP:
        if not nic.recorded:
            found.append(f"its record is gone from the metadata: {repair}")
        if link.guest_uuid != guest.uuid:
            copied = f"guestnet detach {guest.name} {record.mac}, then attach again"
            found.append(
                f"{link.name} does not carry this guest's mark"
                + (f" but that of {link.guest_name}: {copied}" if link.guest_name not in ("", guest.name) else "")
            )
        if record.multicast is Multicast.ALL and not link.allmulti:
            found.append(f"{link.name} filters multicast: IPv6 does not work")
        if record.mtu is not None and link.mtu != record.mtu:
            found.append(f"{link.name} has the MTU {link.mtu}, the guest was told {record.mtu}")
    return tuple(found)


def _orphan(link: Link, guest: Guest | None, host: Host) -> Row:
    if guest is None:
        name, problem = link.guest_name, "its guest is gone"
        problem += ": guestnet gc deletes it"
    else:
        name, problem = guest.name, f"no <interface> of its guest names it: guestnet repair {guest.name} deletes it"
    return _row(
        guest=name, state=guest.state if guest is not None else "gone", interface=link.name, mode=link.mode or "",
        mac=link.mac, problems=(problem,), link_of=link, host=host,
    )  # fmt: skip


def _row(
    *, guest: str, state: str, problems: tuple[str, ...], interface: str = "", parent: str = "", mode: str = "",
    mac: str = "", model: str = "", queues: int = 1, backend: str = Backend.MACVTAP, multicast: str = "",
    live: bool = False, config: bool = False, link: str = "", pci: str = "", link_of: Link | None = None,
    host: Host | None = None, lower: Link | None = None,
) -> Row:  # fmt: skip
    """``lower`` is the parent that is on record, which counts where there is no link."""
    if link_of is not None and host is not None:
        lower = host.below(link_of)
    return Row(
        guest=guest, state=state, interface=interface, parent=parent or (lower.readable if lower is not None else ""),
        vlan=lower.vlan if lower is not None else None, mode=mode, mac=mac, model=model, queues=queues,
        mtu=link_of.mtu if link_of is not None else None, backend=backend, multicast=multicast, live=live,
        config=config, link=link, pci=pci, carrier=link_of.carrier if link_of is not None else None,
        counters=link_of.counters if link_of is not None else None, problems=problems,
    )  # fmt: skip
