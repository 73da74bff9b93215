"""The plan of a change to a NIC that is there."""

from dataclasses import dataclass, replace

from guestnet.errors import ConflictError, NotFoundError, UsageError
from guestnet.guest import xml
from guestnet.model import LIVE_MODES, Backend, Bandwidth, Guest, Kind, Link, LinkState, Mode
from guestnet.plan.detach import named_nic
from guestnet.plan.metadata import rewrite_metadata
from guestnet.plan.parent import Parent, check_guest_mode, check_mtu, describe, parent_link
from guestnet.plan.situation import Nic, Situation, is_of_guest, scope
from guestnet.plan.steps import SetMode, SetMtu, Step, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What shall be different about a NIC; None leaves a thing as it is.

    ``inbound`` and ``outbound`` are a tuple of one: of a rate, or of None to take the limit away.
    """

    mode: Mode | None = None
    link: LinkState | None = None
    mtu: int | None = None
    inbound: tuple[Bandwidth | None] | None = None
    outbound: tuple[Bandwidth | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changing:
    """The plan of one change: the NIC, the steps, and what a person should be told."""

    nic: xml.Record
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    live: bool
    config: bool


def change(name: str, wanted: Change, now: Situation, *, live: bool, config: bool) -> Changing:
    """The plan that changes a NIC (named by MAC or interface name); no steps where it is so already.

    Raises ConflictError, with the reason, for what kernel or libvirt cannot change.
    """
    if wanted == Change():
        raise UsageError("there is nothing to set", hint="give --mode, --link, --mtu, --inbound or --outbound")
    guest = now.guest
    nic = named_nic(name, guest, now.host)
    if not live and not config:
        live, config = nic.live is not None, nic.config is not None
    live, config = scope(guest, live=live, config=config)
    if (live and nic.live is None) or (config and nic.config is None):
        where = "live" if live and nic.live is None else "in the configuration"
        raise NotFoundError(f"the NIC {nic.mac} of {guest.name} is not there {where}", hint="attach it there first")
    link = now.host.find(nic.record.ifname) if nic.record.ifname else None
    if live and link is None and nic.record.backend is Backend.MACVTAP:
        raise ConflictError(
            f"the macvtap {nic.record.ifname} of the running guest {guest.name} is gone, its NIC is dead",
            hint=f"guestnet repair {guest.name}",
        )
    if link is not None:
        _check_ours(link, nic, now)
    steps: list[Step] = []
    notes: list[str] = []
    old_live, old_config = (_record_in(text, nic, guest) for text in (guest.live, guest.config))
    places = [old for old, chosen in ((old_live, live), (old_config, config)) if chosen]
    if wanted.mode is not None and any(wanted.mode is not old.mode for old in places):
        steps += _mode(wanted.mode, nic, guest, link, live=live)
    if wanted.mtu is not None:
        steps += _mtu(wanted.mtu, nic, guest, link, now, live=live)
        if live and any(isinstance(step, SetMtu) for step in steps):
            notes.append(
                f"the running guest still sends frames of its old MTU: lower it there too (ip link set … mtu "
                f"{wanted.mtu}); from its next start on it is told by itself"
            )
    if steps and nic.live is not None and not live:
        # what runs is not to notice
        steps.clear()
        notes.append(
            f"{nic.record.ifname} stays as it is while {guest.name} runs; when it has stopped, this changes it: "
            f"guestnet attach {guest.name} --parent {nic.record.parent} --mac {nic.mac}"
        )
    new_live, new_config = (
        replace(old, mode=wanted.mode or old.mode, mtu=old.mtu if wanted.mtu is None else wanted.mtu)
        for old in (old_live, old_config)
    )
    if nic.recorded:
        steps += rewrite_metadata(guest, add_live=[new_live] if live else [], add_config=[new_config] if config else [])
    for text, here, is_live in ((guest.live, live, True), (guest.config, config, False)):
        if here and text is not None:
            steps += _update(text, nic, wanted, guest, live=is_live)
    return Changing(
        nic=new_live if live else new_config, steps=tuple(steps), notes=tuple(notes), live=live, config=config
    )


def _check_ours(link: Link, nic: Nic, now: Situation) -> None:
    """Raise ConflictError for a link that only has the name in the NIC's record: whoever may edit the guest writes
    that."""
    if link.kind == Kind.MACVTAP and is_of_guest(link, now.guest, nic.mac):
        return
    raise ConflictError(
        f"{link.name} is {describe(link, now.host)}, and not the NIC {nic.mac} of {now.guest.name}",
        hint=f"guestnet repair {now.guest.name}",
    )


def _record_in(text: str | None, nic: Nic, guest: Guest) -> xml.Record:
    """What the metadata there says of the NIC; live and configuration may differ."""
    here = xml.records(text, guest.name) if text is not None else ()
    return next((record for record in here if record.mac == nic.mac), nic.record)


def _mode(mode: Mode, nic: Nic, guest: Guest, link: Link | None, *, live: bool) -> list[Step]:
    old = nic.record.mode
    check_guest_mode(mode)
    if nic.record.backend is Backend.DIRECT and live:
        raise ConflictError(
            f"the macvtap of NIC {nic.mac} is libvirt's (type='direct'), which changes no mode of a NIC in use",
            hint=f"use --config for the next start, or detach it and attach it with --mode {mode}",
        )
    if nic.record.backend is Backend.DIRECT:
        return []
    if old not in LIVE_MODES or mode not in LIVE_MODES:
        raise ConflictError(
            f"the kernel changes no macvtap from mode {old} to {mode}",
            hint=f"detach it and attach it again with --mode {mode}: guestnet detach {guest.name} {nic.mac}",
        )
    return [SetMode(name=link.name, mode=mode)] if link is not None and link.mode is not mode else []


def _mtu(mtu: int, nic: Nic, guest: Guest, link: Link | None, now: Situation, *, live: bool) -> list[Step]:
    if nic.record.backend is Backend.DIRECT:
        raise ConflictError(
            f"libvirt takes no MTU for a macvtap of its own (type='direct', NIC {nic.mac})",
            hint="set the MTU of the parent, or attach without --backend direct",
        )
    record = nic.record
    lower = now.host.below(link) if link is not None else parent_link(record.parent, record.outer, now.host)
    if lower is not None:
        check_mtu(mtu, Parent(name=lower.name, base=lower))
    if link is None:
        return []
    if live and mtu > link.mtu:
        raise ConflictError(
            f"the NIC {nic.mac} of the running guest {guest.name} has the MTU {link.mtu}, and a guest that runs is "
            f"told of none: it cannot be raised to {mtu} now",
            hint="use --config for its next start, or detach it and attach it again",
        )
    return [SetMtu(name=link.name, mtu=mtu)] if mtu != link.mtu else []


def _update(text: str, nic: Nic, wanted: Change, guest: Guest, *, live: bool) -> list[Step]:
    element = xml.interface_element(text, nic.mac)
    before = xml.text_of(element)
    shown = nic.live if live else nic.config
    assert shown is not None
    if wanted.link not in (None, shown.link):
        xml.set_link(element, wanted.link)
    inbound = wanted.inbound[0] if wanted.inbound is not None else shown.inbound
    outbound = wanted.outbound[0] if wanted.outbound is not None else shown.outbound
    if (inbound, outbound) != (shown.inbound, shown.outbound):
        xml.set_bandwidth(element, inbound, outbound)
    if not live and wanted.mtu is not None:
        xml.set_mtu(element, wanted.mtu)
    if not live and wanted.mode is not None and nic.record.backend is Backend.DIRECT:
        xml.set_source_mode(element, wanted.mode)
    after = xml.text_of(element)
    if after == before:
        return []
    return [Update(guest=guest.name, mac=nic.mac, xml=after, live=live, config=not live)]
