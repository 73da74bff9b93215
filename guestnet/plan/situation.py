"""What the plans for a guest look at: the host, the guest and its NICs."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from guestnet.errors import ConflictError, UsageError
from guestnet.guest import xml
from guestnet.model import Backend, Guest, Link, Mac, Mode, Multicast, Owner
from guestnet.plan.host import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that attach, detach and set look at: the host, the guest, the MACs of other guests, and who we are.

    ``hook`` says that the hook makes the links of a guest when it starts; ``no_hook`` is where it is to be installed so
    that it does, empty where it need not or shall not be.
    """

    host: Host
    guest: Guest
    machine_id: str
    other_macs: dict[str, str] = field(default_factory=dict)
    hook: bool = False
    no_hook: str = ""


def is_of_guest(link: Link, guest: Guest, mac: str) -> bool:
    """Whether an attach of this guest made the link for its NIC ``mac``, one that was killed before it could say so
    included."""
    unmarked = link.ours and not link.alias and link.mac == mac
    return unmarked or (link.owner is Owner.GUEST and link.guest_uuid == guest.uuid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One NIC of a guest on record or of type direct: what the record, the live and the persistent <interface> say."""

    record: xml.Record
    live: xml.Interface | None
    config: xml.Interface | None
    recorded: bool = True

    @property
    def mac(self) -> Mac:
        """Its address."""
        return self.record.mac

    @property
    def interface(self) -> xml.Interface:
        """The live <interface>, or the persistent one where it is not live."""
        found = self.live or self.config
        assert found is not None
        return found


def nics(guest: Guest, host: Host) -> tuple[Nic, ...]:
    """The guest's NICs that are ours or of type direct, in the order of its XML.

    One on a macvtap that carries this guest's mark is ours even where its record is lost. A record without <interface>
    (somebody detached it behind our back) is no NIC; see ``lost_records``.
    """
    texts = (guest.live, guest.config)
    records = _records(guest)
    live, config = ({nic.mac: nic for nic in xml.interfaces(text)} if text else {} for text in texts)
    found = []
    for mac in dict.fromkeys((*live, *config)):
        shown = live.get(mac) or config[mac]
        record = records.get(mac) or _unrecorded(shown, guest, host)
        if record is not None:
            found.append(Nic(record=record, live=live.get(mac), config=config.get(mac), recorded=mac in records))
    return tuple(found)


def _records(guest: Guest) -> dict[str, xml.Record]:
    """The records by MAC; one that is live counts before the configuration's."""
    texts = [text for text in (guest.config, guest.live) if text]
    return {record.mac: record for text in texts for record in xml.records(text, guest.name)}


def _unrecorded(shown: xml.Interface, guest: Guest, host: Host) -> xml.Record | None:
    """The record an <interface> without one would have: of type direct by itself, else by the link it names."""
    try:
        mac = Mac(shown.mac)
        if shown.type == "direct":
            return xml.Record(
                mac=mac, parent=shown.source, mode=Mode.parse(shown.source_mode or "vepa"), ifname="",
                backend=Backend.DIRECT, multicast=Multicast.FILTERED,
            )  # fmt: skip
    except UsageError:  # an address or a mode that libvirt takes and we do not: nothing of ours
        return None
    link = host.find(shown.target) if shown.target and not shown.managed else None
    return None if link is None or link.guest_uuid != guest.uuid else _of_link(link, mac, shown.mtu, host)


def _of_link(link: Link, mac: Mac, mtu: int | None, host: Host) -> xml.Record:
    lower = host.below(link)
    return xml.Record(
        mac=mac, parent=lower.readable if lower is not None else "?", mode=link.mode or Mode.BRIDGE, ifname=link.name,
        backend=Backend.MACVTAP, multicast=Multicast.ALL if link.allmulti else Multicast.FILTERED, mtu=mtu,
    )  # fmt: skip


def direct_sources(guests: Iterable[Guest]) -> frozenset[str]:
    """The links on which libvirt itself makes macvtaps for these guests, now or at their next start."""
    texts = (text for guest in guests for text in (guest.live, guest.config) if text is not None)
    return frozenset(nic.source for text in texts for nic in xml.interfaces(text) if nic.type == "direct")


def lost_records(guest: Guest, host: Host) -> tuple[xml.Record, ...]:
    """The records of a guest that no <interface> belongs to any more."""
    macs = {nic.mac for nic in nics(guest, host)}
    return tuple(record for record in _records(guest).values() if record.mac not in macs)


def unmatched_records(guest: Guest) -> dict[str, tuple[str, ...]]:
    """Where a NIC has an <interface> without its record, or a record without its <interface>, in words, by MAC."""
    found: dict[str, tuple[str, ...]] = {}
    for where, text in (("what runs", guest.live), ("the configuration", guest.config)):
        if text is None:
            continue
        plugged = {nic.mac for nic in xml.interfaces(text)}
        known = {record.mac for record in xml.records(text, guest.name)}
        for mac in plugged - known:
            found[mac] = (*found.get(mac, ()), f"its record is gone from the metadata of {where}")
        for mac in known - plugged:
            found[mac] = (*found.get(mac, ()), f"on record, but its <interface> is gone from {where}")
    return found


def stray_links(guest: Guest, host: Host) -> tuple[xml.Record, ...]:
    """The macvtaps that carry the guest's mark and that neither an <interface> nor a record of its names.

    As the records they would have; the MAC is the link's.
    """
    named = {nic.record.ifname for nic in nics(guest, host)} | {record.ifname for record in _records(guest).values()}
    return tuple(
        _of_link(link, Mac(link.mac), None, host)
        for link in host.links
        if link.guest_uuid == guest.uuid and link.kind == "macvtap" and link.name not in named
    )


def scope(guest: Guest, *, live: bool, config: bool) -> tuple[bool, bool]:
    """Whether a change is for what runs, for the next start, or both: as asked, else as virsh does it.

    Raises ConflictError for live where it does not run, for config where it is transient, and for a running guest
    that takes no change now.
    """
    if not live and not config:
        live, config = guest.live is not None, guest.config is not None
    if live and guest.live is None:
        raise ConflictError(f"{guest.name} does not run", hint="leave --live out: the change is for its next start")
    if config and guest.config is None:
        raise ConflictError(
            f"{guest.name} is transient, it has no configuration", hint="leave --config out: the change is live only"
        )
    if live and guest.unfit:
        raise ConflictError(f"{guest.name} {guest.unfit}", hint="wait, resume or stop it, or use --config alone")
    return live, config
