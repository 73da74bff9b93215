"""The plan of a repair: what makes a guest's NICs again as they are on record."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from guestnet.errors import ConflictError, GuestnetError
from guestnet.guest import xml
from guestnet.model import (
    ALIAS_PREFIX,
    LIVE_MODES,
    Backend,
    Guest,
    Kind,
    Link,
    Mode,
    Multicast,
    NewLink,
    guest_alias,
)
from guestnet.plan.detach import delete_links, unused_links
from guestnet.plan.host import Host
from guestnet.plan.metadata import rewrite_metadata
from guestnet.plan.parent import (
    Parent,
    check_mac,
    check_mtu,
    check_parent,
    describe,
    make_link,
    make_parent,
    parent_notes,
    parent_on_record,
)
from guestnet.plan.situation import Nic, Situation, lost_records, nics, stray_links
from guestnet.plan.steps import AllowMulticast, LinkStep, Mark, Plug, SetMac, SetMode, SetMtu, Step, Unplug

_OTHER_MAC = "give that one another MAC, or delete it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a repair looks at beside the situation.

    ``held`` are the ifindexes of the macvtaps that a process has open. ``uuids`` are those of all guests. ``hook`` says
    that the hook makes the links of a guest that starts.
    """

    held: Collection[int]
    uuids: Collection[str]
    hook: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mending:
    """What is done for one NIC, in this order: the guest lets go of it, its link is made or mended, it is plugged in
    again."""

    record: xml.Record
    unplug: tuple[Unplug, ...] = ()
    links: tuple[LinkStep, ...] = ()
    plug: tuple[Plug, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in their order."""
        return (*self.unplug, *self.links, *self.plug)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairing:
    """The plan of one repair: for each NIC that is not right, then the metadata, then links that no NIC names.

    ``failures`` say what cannot be mended.
    """

    mendings: tuple[Mending, ...]
    metadata: tuple[Step, ...]
    orphans: tuple[LinkStep, ...]
    failures: tuple[GuestnetError, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in their order."""
        return (*(step for mending in self.mendings for step in mending.steps), *self.metadata, *self.orphans)


def repair(now: Situation, evidence: Evidence) -> Repairing:
    """The plan that mends a guest's NICs; no steps where nothing is out of line that guestnet can put right.

    Raises ConflictError where the metadata is damaged.
    """
    guest, host = now.guest, now.host
    mendings: list[Mending] = []
    failures: list[GuestnetError] = []
    records: list[xml.Record] = []
    for nic in nics(guest, host):
        if not nic.recorded and nic.record.backend is Backend.DIRECT:
            continue  # libvirt's own
        try:
            mending = mend(nic, guest, host, evidence)
        except GuestnetError as error:
            failures.append(error)
            continue
        records.append(nic.record)
        if mending.steps:
            mendings.append(mending)
            host = host.after(mending.links)
    orphans, kept = orphans_of(guest, now.host, evidence)
    return Repairing(
        mendings=tuple(mendings), metadata=_metadata(guest, records), orphans=orphans, failures=(*failures, *kept)
    )


def mend(nic: Nic, guest: Guest, host: Host, evidence: Evidence) -> Mending:
    """What makes one NIC right again. Raises ConflictError or NotFoundError where that cannot be done."""
    record = nic.record
    direct = record.backend is Backend.DIRECT
    if not direct and nic.interface.target != record.ifname:
        raise ConflictError(
            f"the <interface> of NIC {nic.mac} of {guest.name} names {nic.interface.target}, its record "
            f"{record.ifname}",
            hint=f"detach it and attach it again: guestnet detach {guest.name} {nic.mac}",
        )
    if nic.live is None and (direct or evidence.hook):
        return Mending(record=record)  # made at its start
    parent = parent_on_record(record.parent, record.outer, host)
    link = host.find(nic.live.target if nic.live is not None else record.ifname)
    dead = nic.live is not None and (link is None or link.index not in evidence.held)
    moved = renamed(nic, guest, host, evidence.held)
    if moved is not None:
        raise ConflictError(
            f"{record.ifname}, the NIC {nic.mac} of {guest.name}, is called {moved.name} now",
            hint=rename_back(moved, record.ifname),
        )
    if direct:
        if dead:
            check_parent(parent, host, mode=record.mode)
        links = make_parent(parent)
    else:
        new = NewLink(
            kind=Kind.MACVTAP, name=record.ifname, parent=parent.device, mode=record.mode, mac=record.mac,
            mtu=record.mtu, multicast=record.multicast, alias=guest_alias(guest.uuid, guest.name),
        )  # fmt: skip
        if link is not None:
            _check_ours(link, guest, host, evidence)
        if link is not None and _can_be_mended(link, new, parent):
            links = mend_link(link, new, parent, host)
        elif link is not None and nic.live is None and link.index in evidence.held:
            raise ConflictError(
                f"{link.name} is {describe(link, host)}, and a process holds it open though {guest.name} does not",
                hint="guestnet gc --dry-run says which",
            )
        else:
            links = _make(new, link, parent, host)
            dead = nic.live is not None
    notes = [f"{one.readable} was down and is brought up" for one in parent.down] + parent_notes(parent)
    if dead and guest.unfit:
        raise ConflictError(f"{guest.name} {guest.unfit}", hint="wait, resume or stop it, then repair it again")
    return Mending(
        record=record, links=links, notes=tuple(notes) if links else (),
        unplug=(Unplug(guest=guest.name, mac=nic.mac),) if dead else (), plug=(_plug(nic, guest),) if dead else (),
    )  # fmt: skip


def _check_ours(link: Link, guest: Guest, host: Host, evidence: Evidence) -> None:
    """Raise ConflictError for a link that only has the name of this guest's."""
    other = link.guest_uuid if link.guest_uuid != guest.uuid else ""
    ours = link.ours and (bool(link.guest_uuid) or not link.alias.startswith(ALIAS_PREFIX))
    if link.kind == Kind.MACVTAP and ours and other not in evidence.uuids:
        return
    whose = f" of the guest {link.guest_name}" if other else ""
    copied = f"guestnet detach {guest.name} {link.name}, then attach again" if other in evidence.uuids else ""
    raise ConflictError(
        f"{link.name} is {describe(link, host)}{whose}, and not the NIC of {guest.name}",
        hint=copied or f"delete or rename that one, then repair {guest.name} again",
    )


def renamed(nic: Nic, guest: Guest, host: Host, held: Collection[int] | None) -> Link | None:
    """The macvtap of a NIC that runs, where somebody gave it another name: its mark, its MAC, and a process holds it.

    ``held`` are the ifindexes of those that a process holds, None where that is not known.
    """
    ifname = nic.record.ifname
    if nic.live is None or not ifname or host.find(ifname) is not None:
        return None
    mine = (link for link in host.links if link.kind == Kind.MACVTAP and link.guest_uuid == guest.uuid)
    return next((link for link in mine if link.mac == nic.mac and (held is None or link.index in held)), None)


def rename_back(link: Link, name: str) -> str:
    """The commands that do it."""
    return f"ip link set {link.name} down; ip link set {link.name} name {name}; ip link set {name} up"


def _can_be_mended(link: Link, new: NewLink, parent: Parent) -> bool:
    """Whether the kernel can make it right without making it anew."""
    in_its_mode = link.mode is new.mode or {link.mode, new.mode} <= LIVE_MODES
    return link.parent_netnsid is None and parent.link is not None and link.parent == parent.link.index and in_its_mode


def _make(new: NewLink, old: Link | None, parent: Parent, host: Host) -> tuple[LinkStep, ...]:
    """The steps that make the link of a NIC, in place of the one that is there."""
    rest = replace(host, links=tuple(link for link in host.links if link is not old))
    check_parent(parent, rest, mode=new.mode)
    check_mtu(new.mtu, parent)
    assert new.mac is not None
    if new.mode is not Mode.PASSTHRU:
        check_mac(new.mac, parent, rest, hint=_OTHER_MAC)
    elif new.mac != parent.base.mac:
        raise ConflictError(
            f"in mode passthru the NIC has the MAC of {parent.name}, which is {parent.base.mac} and not {new.mac}",
            hint=f"ip link set {parent.base.name} address {new.mac}",
        )
    gone = () if old is None else delete_links([old])
    return (*gone, *make_parent(parent), *make_link(new, quiet=True))


def mend_link(link: Link, new: NewLink, parent: Parent, host: Host) -> tuple[LinkStep, ...]:
    """The steps that make a macvtap of ours as it is wanted, on the parent it is on; none where it is so.

    Raises ConflictError for a MAC or MTU that the kernel would refuse.
    """
    steps: list[LinkStep] = list(make_parent(parent))
    if new.mac is not None and link.mac != new.mac:
        check_mac(new.mac, parent, host, hint=_OTHER_MAC)
        steps.append(SetMac(name=link.name, mac=new.mac))
    if new.mode is not None and link.mode is not new.mode:
        steps.append(SetMode(name=link.name, mode=new.mode))
    if new.mtu is not None and link.mtu != new.mtu:
        check_mtu(new.mtu, parent)
        steps.append(SetMtu(name=link.name, mtu=new.mtu))
    if not link.up or not link.alias:  # it comes up last, so it may never have been dressed
        return (*steps, *make_link(new, quiet=True)[1:])
    if not link.guest_uuid or link.guest_uuid not in new.alias:
        steps.append(Mark(name=link.name, alias=new.alias))
    if new.multicast is Multicast.ALL and not link.allmulti:
        steps.append(AllowMulticast(name=link.name))
    return tuple(steps)


def _plug(nic: Nic, guest: Guest) -> Plug:
    """The same <interface> once more, so in the same PCI slot."""
    assert guest.live is not None
    text = xml.interface_again(guest.live, nic.mac)
    return Plug(guest=guest.name, mac=nic.mac, xml=text, live=True, config=False)


def _metadata(guest: Guest, mine: Iterable[xml.Record]) -> tuple[Step, ...]:
    """The step after which each NIC of ours has its record wherever its <interface> is, and nowhere else."""
    add: dict[str, list[xml.Record]] = {}
    drop: dict[str, frozenset[str]] = {}
    by_mac = {record.mac: record for record in mine}
    for where, text in (("live", guest.live), ("config", guest.config)):
        plugged = {nic.mac for nic in xml.interfaces(text)} if text is not None else set()
        known = {record.mac for record in xml.records(text, guest.name)} if text is not None else set()
        add[where] = [record for mac, record in by_mac.items() if mac in plugged and mac not in known]
        drop[where] = frozenset(known - plugged)
    return rewrite_metadata(
        guest, add_live=add["live"], add_config=add["config"], drop_live=drop["live"], drop_config=drop["config"]
    )


def orphans_of(guest: Guest, host: Host, evidence: Evidence) -> tuple[tuple[LinkStep, ...], list[GuestnetError]]:
    """The deletion of the guest's links that no <interface> names, and why some of them stay."""
    left = [nic for text in (guest.live, guest.config) if text is not None for nic in xml.interfaces(text)]
    going: list[xml.Record] = []
    failures: list[GuestnetError] = []
    for record in (*lost_records(guest, host), *stray_links(guest, host)):
        link = host.find(record.ifname) if record.ifname else None
        if link is None or link.index not in evidence.held:
            going.append(record)
        elif link.guest_uuid == guest.uuid:
            failures.append(
                ConflictError(
                    f"{link.name} is held open by a process, though no <interface> of {guest.name} names it",
                    hint="guestnet gc --dry-run says by which",
                )
            )
    return delete_links(unused_links(going, guest, left, host)), failures
