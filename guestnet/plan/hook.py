"""What the hook does when a guest starts, and when it has stopped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from guestnet.errors import ConflictError, GuestnetError, NotFoundError
from guestnet.guest.handed import Handed, Nic, Refused
from guestnet.guest.xml import Record
from guestnet.model import Backend, Kind, Link, Mode, Multicast, NewLink, Owner, guest_alias
from guestnet.plan.host import Host
from guestnet.plan.parent import (
    Parent,
    check_guest_mode,
    check_mac,
    check_mtu,
    check_parent,
    describe,
    make_link,
    make_parent,
    parent_link,
    parent_on_record,
)
from guestnet.plan.steps import DeleteLink, LinkStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The steps that make what one NIC needs. ``stands`` says that the guest could start on its link as it is."""

    nic: Nic
    steps: tuple[LinkStep, ...]
    stands: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparing:
    """The plan for a start: what to do for each NIC that is not ready, in this order, and the NICs that are refused."""

    works: tuple[Work, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Releasing:
    """The plan for a guest that has stopped: the deletions, and why a link stays, in words."""

    steps: tuple[DeleteLink, ...]
    kept: tuple[str, ...]


def prepare(
    guest: Handed,
    host: Host,
    *,
    held: Mapping[int, str] | None = None,
    strange: frozenset[int] = frozenset(),
    here: Callable[[str], str] | None = None,
) -> Preparing:
    """What a guest that is about to start needs and has not.

    ``held`` are the ifindexes of its links that a process has open, and which; ``strange`` those whose node in /dev is
    missing or another's. ``here`` gives the name that a parent which is not there has on this host.
    """
    works: list[Work] = []
    refused: list[Refused] = []
    for nic in guest.nics:
        try:
            parent = _parent(nic.record, host, here)
            if nic.record.backend is Backend.DIRECT:
                steps = _direct(nic, parent, host)
            else:
                steps = _macvtap(nic.record, parent, guest, host, held or {}, strange)
        except GuestnetError as error:
            fatal = nic.record.backend is Backend.MACVTAP
            why = f"{error.message}{f' ({error.hint})' if error.hint else ''}"
            refused.append(Refused(nic=f"NIC {nic.record.mac}", why=why, device=nic.device, fatal=fatal))
            continue
        if steps:
            works.append(Work(nic=nic, steps=steps, stands=_stands(nic.record, parent, guest, host, strange)))
            host = host.after(steps)
    return Preparing(works=tuple(works), refused=tuple(refused))


def links_of(guest: Handed, host: Host) -> tuple[Link, ...]:
    """The guest's macvtaps: those with its mark, and what a ``prepare`` that was killed made for a NIC and could not
    mark any more."""
    wanted = {(nic.record.ifname, nic.record.mac) for nic in guest.nics if nic.record.backend is Backend.MACVTAP}
    return tuple(
        link
        for link in host.links
        if link.kind == Kind.MACVTAP
        and (link.guest_uuid == guest.uuid or (_is_unmarked(link) and (link.name, link.mac) in wanted))
    )


def _is_unmarked(link: Link) -> bool:
    """Whether its maker was ended before it could say for whom it is."""
    return link.ours and not link.alias


def release(guest: Handed, host: Host, *, held: Mapping[int, str]) -> Releasing:
    """What goes when a guest has stopped: its links that no process has open, and the VLANs that nothing uses then."""
    mine = links_of(guest, host)
    going = [link for link in mine if link.index not in held]
    # of type='direct' no link is ours, and one that was to be made may not have come about
    lower = filter(None, (parent_link(nic.record.parent, nic.record.outer, host) for nic in guest.nics))
    doomed = (*going, *host.unused_vlans(going, lower))
    return Releasing(
        steps=tuple(DeleteLink(name=link.name, index=link.index) for link in doomed),
        kept=tuple(f"{link.name} is kept, {held[link.index]} has it open" for link in mine if link not in going),
    )


def reconnect(guest: Handed, host: Host) -> tuple[str, ...]:
    """What is out of line with the links of a guest that runs, in words."""
    found = []
    for nic in guest.nics:
        record = nic.record
        if record.backend is Backend.DIRECT:
            continue
        link = host.find(record.ifname)
        lower = host.below(link) if link is not None else None
        if link is None:
            found.append(f"NIC {record.mac}: its macvtap {record.ifname} is gone, the NIC is dead")
        elif link.guest_uuid != guest.uuid:
            found.append(f"NIC {record.mac}: {link.name} does not carry the guest's mark")
        elif link.mac != record.mac:
            found.append(f"NIC {record.mac}: {link.name} has the MAC {link.mac}, nothing reaches the guest")
        elif not link.up or (lower is not None and not lower.up):
            found.append(f"NIC {record.mac}: {link.name if not link.up else lower.name if lower else ''} is down")
    return tuple(found)


def _parent(record: Record, host: Host, here: Callable[[str], str] | None) -> Parent:
    try:
        return parent_on_record(record.parent, record.outer, host)
    except NotFoundError:
        name = record.parent if here is None else here(record.parent)
        if name == record.parent:
            raise
        return parent_on_record(name, record.outer, host)


def _direct(nic: Nic, parent: Parent, host: Host) -> tuple[LinkStep, ...]:
    if nic.interface.source not in (nic.record.parent, parent.device):
        raise ConflictError(f"its <interface> is on {nic.interface.source}, the record says {nic.record.parent}")
    if parent.link is not None:
        return make_parent(parent)
    check_parent(parent, host)
    return make_parent(parent)


def _macvtap(
    record: Record, parent: Parent, guest: Handed, host: Host, held: Mapping[int, str], strange: frozenset[int]
) -> tuple[LinkStep, ...]:
    check_guest_mode(record.mode)
    if record.mode is Mode.PASSTHRU and parent.base.mac != record.mac:
        raise ConflictError(f"in mode passthru it would have the MAC of {parent.name}, {parent.base.mac}")
    there = host.find(record.ifname)
    steps: list[LinkStep] = []
    if there is not None:
        half = _is_unmarked(there) and there.mac == record.mac
        if there.owner is not Owner.FOREIGN and there.guest_uuid != guest.uuid and not half:
            whose = f", of the guest {there.guest_name}" if there.guest_name else ""
            raise ConflictError(f"its name {record.ifname} is taken by {describe(there, host)}{whose}")
        if there.index in held:
            raise ConflictError(f"{held[there.index]} has {record.ifname} open already")
        fits = _fits(there, record, parent, host) and there.index not in strange
        if fits and (there.owner is Owner.FOREIGN or _is_dressed(there, record, guest)):
            return make_parent(parent)
        if there.owner is Owner.FOREIGN:
            raise ConflictError(
                f"its name {record.ifname} is taken by {describe(there, host)}, which is not guestnet's"
            )
        steps.append(DeleteLink(name=there.name, index=there.index))
        host = host.after(steps)
    check_parent(parent, host, mode=record.mode)
    check_mtu(record.mtu, parent)
    if record.mode is not Mode.PASSTHRU:
        check_mac(record.mac, parent, host)
    new = NewLink(
        kind=Kind.MACVTAP, name=record.ifname, parent=parent.device, mode=record.mode, mac=record.mac, mtu=record.mtu,
        multicast=record.multicast, alias=guest_alias(guest.uuid, guest.name),
    )  # fmt: skip
    return (*steps, *make_parent(parent), *make_link(new, quiet=True))


def _stands(record: Record, parent: Parent, guest: Handed, host: Host, strange: frozenset[int]) -> bool:
    """Whether the NIC's macvtap is there, no other guest's and what its record says, dressed or not."""
    link = host.find(record.ifname) if record.backend is Backend.MACVTAP else None
    return (
        link is not None
        and link.index not in strange
        and (link.owner is Owner.FOREIGN or link.guest_uuid == guest.uuid)
        and _fits(link, record, parent, host)
    )


def _fits(link: Link, record: Record, parent: Parent, host: Host) -> bool:
    """Whether the guest would be where its record says on this link, whoever made it."""
    lower = host.below(link)
    wanted = (Kind.MACVTAP, record.mac, record.mode)
    return (link.kind, link.mac, link.mode) == wanted and lower is not None and lower == parent.link


def _is_dressed(link: Link, record: Record, guest: Handed) -> bool:
    """Whether a link of ours is as it is when it was just made."""
    return (
        link.up
        and link.guest_uuid == guest.uuid
        and record.mtu in (None, link.mtu)
        and bool(link.allmulti) == (record.multicast is Multicast.ALL)
    )
