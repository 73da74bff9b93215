"""The plan of a detach."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from guestnet.errors import ConflictError, NotFoundError
from guestnet.guest import xml
from guestnet.model import Backend, Guest, Link
from guestnet.plan.host import Host
from guestnet.plan.metadata import rewrite_metadata
from guestnet.plan.parent import parent_link
from guestnet.plan.situation import Nic, Situation, is_of_guest, lost_records, nics, scope, stray_links
from guestnet.plan.steps import DeleteLink, Step, Unplug, UnplugConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Detaching:
    """The plan of one detach: the NICs that go, the steps, and what a person should be told."""

    nics: tuple[xml.Record, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    live: bool
    config: bool


def detach(names: tuple[str, ...], now: Situation, *, everything: bool, live: bool, config: bool) -> Detaching:
    """The plan that takes NICs (named by MAC or interface name) from a guest, or all of them.

    The guest lets go first, then configuration and metadata, then the links: a link is deleted when neither what runs
    nor the configuration has the NIC any more, nor another NIC on that link, and a VLAN of ours with its last user.
    Raises NotFoundError for a NIC the guest has not, ConflictError for one whose MAC another NIC of the guest has too.
    """
    guest = now.guest
    live, config = _scope(guest, live=live, config=config)
    existing = nics(guest, now.host)
    lost = (*lost_records(guest, now.host), *stray_links(guest, now.host))
    chosen = (
        [nic for nic in existing if nic.recorded or nic.record.backend is Backend.MACVTAP]
        if everything
        else [_named(name, existing, lost, guest) for name in names]
    )
    forgotten = list(lost) if everything else [nic for nic in chosen if isinstance(nic, xml.Record)]
    chosen = [nic for nic in dict.fromkeys(chosen) if isinstance(nic, Nic)]
    for nic in chosen:
        _check_alone(nic, guest)
    steps: list[Step] = []
    for nic in chosen:
        if live and nic.live is not None:
            steps.append(Unplug(guest=guest.name, mac=nic.mac))
    for nic in chosen:
        if config and nic.config is not None:
            steps.append(UnplugConfig(guest=guest.name, mac=nic.mac))
    macs = frozenset(nic.mac for nic in chosen) | frozenset(record.mac for record in forgotten)
    steps += rewrite_metadata(
        guest, drop_live=macs if live else frozenset(), drop_config=macs if config else frozenset()
    )
    left = tuple(
        interface
        for text, here in ((guest.live, live), (guest.config, config))
        for interface in xml.interfaces(text or "<domain/>")
        if not (here and interface.mac in macs)
    )
    records = (*(nic.record for nic in chosen), *forgotten)
    steps += delete_links(unused_links(records, guest, left, now.host))
    notes = tuple(
        f"{nic.interface.target or nic.mac} stays, it is libvirt's own (type='direct'): guestnet detach {guest.name} "
        f"{nic.mac}"
        for nic in existing
        if everything and nic not in chosen
    )
    return Detaching(nics=records, steps=tuple(steps), notes=notes, live=live, config=config)


def _scope(guest: Guest, *, live: bool, config: bool) -> tuple[bool, bool]:
    if not live and not config and guest.unfit:
        # a guest that cannot let go now must not lose its configuration either
        scope(guest, live=True, config=False)
    return scope(guest, live=live, config=config)


def named_nic(name: str, guest: Guest, host: Host) -> Nic:
    """The NIC of the guest with that MAC or interface name. Raises NotFoundError, which lists those there are."""
    found = _named(name, nics(guest, host), (), guest)
    assert isinstance(found, Nic)
    _check_alone(found, guest)
    return found


def _check_alone(nic: Nic, guest: Guest) -> None:
    """Raise ConflictError where the guest has two NICs of that MAC (such as a <teaming> pair): one of them is not ours,
    and libvirt's NICs are told apart by their MAC."""
    for text in (guest.live, guest.config):
        if text is not None and sum(1 for other in xml.interfaces(text) if other.mac == nic.mac) > 1:
            raise ConflictError(
                f"{guest.name} has several NICs with the MAC {nic.mac}, and only one of them is guestnet's",
                hint=f"give the other one another MAC: virsh edit {guest.name}",
            )


def _named(name: str, existing: tuple[Nic, ...], lost: tuple[xml.Record, ...], guest: Guest) -> Nic | xml.Record:
    key = name.lower().replace("-", ":")
    for nic in existing:
        shown = nic.live.target if nic.live is not None else ""
        if key == nic.mac or name in (nic.record.ifname, shown):
            return nic
    for record in lost:
        if key == record.mac or name == record.ifname:
            return record
    known = ", ".join(nic.record.ifname or nic.mac for nic in existing)
    raise NotFoundError(
        f"{guest.name} has no NIC {name} of guestnet's",
        hint=f"it has {known}" if known else f"it has none; virsh domiflist {guest.name} shows those of others",
    )


def links_left(records: Iterable[xml.Record], guest: Guest, host: Host) -> list[Link]:
    """The links that stay without use when a guest, as it is after the detach, has let go of these NICs."""
    texts = (text for text in (guest.live, guest.config) if text is not None)
    return unused_links(records, guest, [nic for text in texts for nic in xml.interfaces(text)], host)


def unused_links(records: Iterable[xml.Record], guest: Guest, left: Iterable[xml.Interface], host: Host) -> list[Link]:
    """The macvtaps of these NICs, where they are this guest's and none of the <interface>s that are left names them;
    and the VLANs that nothing uses then."""
    left = tuple(left)
    named = {interface.target for interface in left}
    host = replace(host, sources=host.sources | {nic.source for nic in left if nic.type == "direct"})
    going: list[Link] = []
    lower: list[Link] = []
    for record in records:
        if record.backend is Backend.DIRECT:
            lower += filter(None, [parent_link(record.parent, record.outer, host)])
            continue
        link = host.find(record.ifname) if record.ifname not in named else None
        # the MAC does not tell: whoever holds the tap can change it. Without alias it does: the link was made by an
        # attach that was killed before it could say whose it is
        if link is not None and is_of_guest(link, guest, record.mac) and link not in going:
            going.append(link)
    return [*going, *host.unused_vlans(going, lower)]


def delete_links(links: Iterable[Link]) -> tuple[DeleteLink, ...]:
    """The steps that delete these very links."""
    return tuple(DeleteLink(name=link.name, index=link.index) for link in links)
