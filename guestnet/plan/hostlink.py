"""The plans of the host's own links: macvtaps, macvlans and VLANs that a person makes, changes and deletes by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guestnet.errors import ConflictError, GuestnetError, UsageError
from guestnet.inet import IPV6_MTU
from guestnet.model import (
    HOST_ALIAS,
    LIVE_MODES,
    NAME_MAX,
    Kind,
    Link,
    LinkName,
    Mac,
    Mode,
    Multicast,
    NewLink,
    Owner,
    ParentName,
    VlanProtocol,
    vlan_id,
)
from guestnet.plan.host import Host, made_for_guests
from guestnet.plan.parent import (
    Parent,
    check_mac,
    check_mtu,
    check_parent,
    describe,
    filtered,
    find_vlan,
    make_link,
    make_parent,
    parent_notes,
    resolve_parent,
    vlan_names,
)
from guestnet.plan.steps import (
    AllowMulticast,
    DeleteLink,
    LinkStep,
    Mark,
    Move,
    Quiet,
    SetMac,
    SetMode,
    SetMtu,
    SetUp,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Links to be made on one parent, all alike but for their names. ``vlan`` and ``protocol`` are for the kind vlan
    alone, and its name may be ``NIC.VID`` of any length; ``outer`` is the protocol of the parent's outermost VLAN.

    What is None was not asked for: a new link gets its default, one that is there may have it any way.
    """

    kind: Kind
    names: tuple[str, ...]
    parent: str
    vlan: int | None = None
    protocol: VlanProtocol = VlanProtocol.DOT1Q
    outer: VlanProtocol | None = None
    mode: Mode | None = None
    mac: Mac | None = None
    mtu: int | None = None
    multicast: Multicast | None = None
    source_macs: tuple[Mac, ...] = ()
    up: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What shall be different about a link; None leaves a thing as it is."""

    mode: Mode | None = None
    mac: Mac | None = None
    mtu: int | None = None
    up: bool | None = None
    source_macs: tuple[Mac, ...] = ()
    netns: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in the namespace the command runs in, then steps where the links are (or will be), and what to be told.

    ``failures`` are the links of a deletion that must stay, each with its reason.
    """

    here: tuple[LinkStep, ...] = ()
    there: tuple[LinkStep, ...] = ()
    links: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[GuestnetError, ...] = ()

    @property
    def steps(self) -> tuple[LinkStep, ...]:
        """All steps in their order."""
        return (*self.here, *self.there)


def vlan_words(name: str | None, parent: str | None, vlan: int | None) -> tuple[str, str, int]:
    """Name, parent and VLAN ID from ``NIC.VID``, or from a parent, a VLAN ID and maybe a name. Raises UsageError.

    The name is one the kernel takes, or ``NIC.VID``, which may be longer.
    """
    if parent is not None and vlan is not None:
        own = f"{parent}.{vlan}"
        return own if name in (None, own) else LinkName(name or ""), parent, vlan
    if name is None or parent is not None or vlan is not None:
        raise UsageError(
            "say which VLAN of which interface", hint="guestnet vlan add NIC.VID, or --parent NIC --vlan VID"
        )
    nic, _, tail = name.rpartition(".")
    if not nic:
        raise UsageError(
            f"{name!r} does not say which VLAN of which interface",
            hint=f"write NIC.VID, or: guestnet vlan add {name} --parent NIC --vlan VID",
        )
    return ParentName(name), nic, vlan_id(tail)


def check_wanted(wanted: Wanted) -> None:
    """Raise UsageError for words that cannot be meant, whatever the host has."""
    seen: set[str] = set()
    for name in wanted.names:
        if name in seen:
            raise UsageError(f"{name} is asked for twice", hint="give each link its own name")
        seen.add(name)
    if len(wanted.names) > 1 and wanted.mac is not None:
        raise UsageError(
            f"one MAC cannot be for {len(wanted.names)} links", hint="leave --mac out, or add the links one by one"
        )
    if len(wanted.names) > 1 and wanted.mode is Mode.PASSTHRU:
        raise UsageError("mode passthru is for one link on its parent", hint="give one name, or choose mode bridge")
    _check_source(wanted.kind, wanted.mode or Mode.BRIDGE, wanted.source_macs)
    if wanted.mode is Mode.SOURCE and not wanted.source_macs:
        raise UsageError(
            "mode source hears only the addresses of its list, and none is given", hint="give --source-mac MAC"
        )


def _check_source(kind: Kind, mode: Mode | None, source_macs: tuple[Mac, ...]) -> None:
    if mode is Mode.SOURCE and kind is not Kind.MACVLAN:
        raise UsageError("mode source is for a macvlan", hint="one of bridge, vepa, private, passthru")
    if source_macs and mode is not None and mode is not Mode.SOURCE:
        raise UsageError(f"--source-mac is for mode source, not {mode}", hint="add --mode source, or leave it out")


def add(wanted: Wanted, here: Host, there: Host, *, netns: str = "", number: int | None = None) -> Plan:
    """The plan that makes these links on a parent of ``here``, in the namespace ``there``; not those that are there
    already, ours and just so.

    ``netns`` is the name of that namespace and ``number`` what its links call the one of ``here``, where they differ.
    Raises what any of the checks raises; nothing has changed then.
    """
    check_wanted(wanted)
    parent = resolve_parent(wanted.parent, None, here, wanted.outer)
    is_vlan = wanted.kind is Kind.VLAN
    base = parent.base
    # what is down was taken down by somebody, who is told; only a VLAN made for guests is brought up
    rising = parent.down if all(made_for_guests(link) for link in parent.down) else ()
    base_up = base.up or bool(rising)
    up = wanted.up and (base_up or not is_vlan)  # the kernel takes no VLAN up on a parent that is down
    same = _same_vlan(wanted, parent, there, number) if is_vlan else None
    if same is not None:
        wanted = replace(wanted, names=(same.readable,))
    names = tuple(name for name in wanted.names if not _is_so(there.find(name), name, wanted, parent, number, up=up))
    if not names:
        return Plan(links=wanted.names)
    mode = None if is_vlan else wanted.mode or Mode.BRIDGE
    check_parent(parent, here, mode=mode, vlan=wanted.vlan)
    check_mtu(wanted.mtu, parent)
    _check_names(wanted, names, there, netns)
    if is_vlan:
        _check_vlan(wanted, parent, here)
    elif wanted.mac is not None and mode is Mode.PASSTHRU:
        if wanted.mac != parent.base.mac:
            raise ConflictError(
                f"in mode passthru a link has the MAC of its parent {parent.name}, {parent.base.mac}; "
                f"{wanted.mac} would be ignored by the kernel",
                hint="leave --mac out",
            )
    elif wanted.mac is not None:
        check_mac(wanted.mac, parent, here)
    way = replace(parent, vlans=tuple(replace(vlan, up=base_up) for vlan in parent.vlans), down=rising)
    notes = parent_notes(parent)
    steps: list[LinkStep] = []
    made = []
    for name in names:
        real, altname = vlan_names(name, parent, wanted.vlan, there) if wanted.vlan is not None else (name, "")
        made.append(altname or real)
        new = NewLink(
            kind=wanted.kind, name=real, altname=altname, parent=parent.device, alias=HOST_ALIAS, mode=mode,
            mac=wanted.mac, mtu=wanted.mtu, vlan=wanted.vlan, protocol=wanted.protocol,
            source_macs=wanted.source_macs, multicast=wanted.multicast or Multicast.ALL, up=up,
        )  # fmt: skip
        steps += make_link(new, quiet=wanted.kind is Kind.MACVTAP)
        notes += [f"{altname} has the name {real} in the kernel"] if altname else []
    if is_vlan and base.vlan_filtering and not parent.vlans:
        notes.append(filtered(base, wanted.vlan))
    if wanted.up and not base_up:
        comes = "comes up with it" if is_vlan else "has no carrier before it is up"
        notes.append(f"{base.readable} is down, and {_several(made)} {comes}: ip link set {base.name} up")
    links = tuple(made) if is_vlan else wanted.names
    return Plan(here=make_parent(way), there=tuple(steps), links=links, notes=tuple(notes))


def _same_vlan(wanted: Wanted, parent: Parent, there: Host, number: int | None) -> Link | None:
    """The VLAN that was asked for by a name too long for the kernel, where it is there."""
    (name,) = wanted.names
    if parent.link is None or len(name.encode(errors="surrogatepass")) <= NAME_MAX:
        return None
    lower = (parent.link.index, number)
    vlans = (link for link in there.links if link.kind == Kind.VLAN and (link.parent, link.parent_netnsid) == lower)
    return next((link for link in vlans if (link.vlan, link.vlan_protocol) == (wanted.vlan, wanted.protocol)), None)


def _several(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"each of the {len(names)} links"


def _is_so(link: Link | None, name: str, wanted: Wanted, parent: Parent, number: int | None, *, up: bool) -> bool:
    """Whether the link is a link of the host's own just as it is wanted, on that parent."""
    if link is None or parent.link is None or (link.readable, link.kind, link.up) != (name, wanted.kind, up):
        return False
    if not link.ours or link.alias != HOST_ALIAS or (link.parent, link.parent_netnsid) != (parent.link.index, number):
        return False
    if wanted.kind is Kind.VLAN and (link.vlan, link.vlan_protocol) != (wanted.vlan, wanted.protocol):
        return False
    multicast = Multicast.ALL if link.allmulti else Multicast.FILTERED
    pairs = (
        (wanted.mode, link.mode), (wanted.mac, link.mac), (wanted.mtu, link.mtu), (wanted.multicast, multicast),
        (frozenset(wanted.source_macs) or None, frozenset(link.source_macs)),
    )  # fmt: skip
    return all(asked is None or asked == so for asked, so in pairs)


def _check_names(wanted: Wanted, names: Sequence[str], there: Host, netns: str) -> None:
    at = f" --netns {netns}" if netns else ""
    taken = {name: link for link in there.links for name in (link.name, *link.altnames)}
    for name in names:
        if name in taken:
            link = taken[name]
            hint = "choose another name"
            if link.kind == wanted.kind and link.owner is Owner.HOST:
                hint += f"; guestnet {wanted.kind} set {link.name}{at} changes the one that is there"
            raise ConflictError(f"the interface name {name} is taken by {describe(link, there)}", hint=hint)


def _check_vlan(wanted: Wanted, parent: Parent, here: Host) -> None:
    assert wanted.vlan is not None
    found = find_vlan(parent.link, wanted.vlan, wanted.protocol, here) if parent.link is not None else None
    if found is not None:
        raise ConflictError(
            f"VLAN {wanted.vlan} ({wanted.protocol}) on {parent.name} is there: {found.readable}",
            hint=f"use --parent {found.readable}",
        )


def change(kind: Kind, name: str, wanted: Change, here: Host, there: Host | None, *, foreign: bool) -> Plan:
    """The plan that changes the link ``name``: of ``here``, or of ``there`` if it is in that namespace already.

    No steps where it is so. Raises ConflictError, with the reason, for what the kernel cannot change, NotFoundError.
    """
    if wanted == Change():
        options = "--mac, --mtu, --up, --down or --netns"
        raise UsageError(
            "nothing to set was said", hint=f"give {options}" if kind is Kind.VLAN else f"give --mode, {options}"
        )
    _check_source(kind, wanted.mode, wanted.source_macs)
    moves = there is not None and here.find(name) is not None
    host = here if there is None or moves else there
    link = _ours(kind, name, host, foreign=foreign)
    base = host.below(link)
    steps = _mode(link, wanted)
    if wanted.mac is not None and wanted.mac != link.mac:
        _check_new_mac(wanted.mac, link, base, host)
        steps.append(SetMac(name=link.name, mac=wanted.mac))
    if wanted.mtu is not None:
        check_mtu(wanted.mtu, Parent(name=link.name, base=base or replace(link, mtu=max(link.mtu, wanted.mtu))))
        if wanted.mtu != link.mtu:
            steps.append(SetMtu(name=link.name, mtu=wanted.mtu))
            # a link of less has no IPv6, and gets it with the settings of a new link when it grows
            if link.kind == Kind.MACVTAP and link.ours and link.mtu < IPV6_MTU <= wanted.mtu:
                steps.append(Quiet(name=link.name))
    up = link.up if wanted.up is None else wanted.up
    if up and base is not None and not base.up and link.kind == Kind.VLAN and not link.up:
        raise ConflictError(
            f"{link.name} cannot be up while {base.name} is down", hint=f"it comes up with: ip link set {base.name} up"
        )
    notes = []
    if wanted.up and base is not None and not base.up:
        notes.append(f"{base.name} is down, {link.name} has no carrier before it is up: ip link set {base.name} up")
    if moves and there is not None and wanted.netns is not None:
        _check_move(link, wanted.netns, here, there)
        return Plan(here=tuple(steps), there=_moved(link, wanted.netns, up=up), links=(link.name,), notes=tuple(notes))
    if up != link.up:
        steps.append(SetUp(name=link.name, up=up))
    return Plan(there=tuple(steps), links=(link.name,), notes=tuple(notes))


def _check_move(link: Link, netns: str, here: Host, there: Host) -> None:
    for name in (link.name, *link.altnames):
        if there.find(name) is not None:
            raise ConflictError(
                f"the network namespace {netns} has a link {name} already", hint="delete or rename that one"
            )
    above = here.above(link)
    if above:
        raise ConflictError(
            f"{link.name} has {_several([one.name for one in above])} on it", hint="move or delete those first"
        )


def _moved(link: Link, netns: str, *, up: bool) -> tuple[LinkStep, ...]:
    """The move, and there what the kernel drops on the way: the IPv6 settings and the up state."""
    steps: list[LinkStep] = [Move(name=link.name, netns=netns)]
    if link.ours:
        steps.append(Mark(name=link.name, alias=link.alias or HOST_ALIAS))
        if link.kind == Kind.MACVTAP:
            steps.append(Quiet(name=link.name))
            if link.allmulti:
                steps.append(AllowMulticast(name=link.name))
    if up:
        steps.append(SetUp(name=link.name))
    return tuple(steps)


def _mode(link: Link, wanted: Change) -> list[LinkStep]:
    mode = wanted.mode or link.mode
    if wanted.source_macs and mode is not Mode.SOURCE:
        raise ConflictError(
            f"{link.name} is in mode {link.mode}, --source-mac is for mode source", hint="add --mode source"
        )
    if mode is None:
        return []
    if mode is not link.mode and Mode.PASSTHRU in (mode, link.mode):
        raise ConflictError(
            f"the kernel changes no {link.kind} from mode {link.mode} to {mode}",
            hint=f"delete {link.name} and add it again with --mode {mode}",
        )
    if mode is Mode.SOURCE and link.mode is not Mode.SOURCE and not wanted.source_macs:
        raise UsageError(
            "mode source hears only the addresses of its list, and none is given", hint="give --source-mac MAC"
        )
    sources = wanted.source_macs or tuple(Mac(mac) for mac in link.source_macs)
    if mode is link.mode and (mode in LIVE_MODES or set(sources) == set(link.source_macs)):
        return []
    return [SetMode(name=link.name, mode=mode, source_macs=sources if mode is Mode.SOURCE else ())]


def _check_new_mac(mac: Mac, link: Link, base: Link | None, host: Host) -> None:
    if link.mode is Mode.PASSTHRU:
        raise ConflictError(
            f"{link.name} is in mode passthru and has the MAC of its parent", hint="change the parent's MAC instead"
        )
    if base is not None and link.mode is not None:
        check_mac(mac, Parent(name=base.name, base=base), host)


def delete(
    kind: Kind,
    names: tuple[str, ...],
    host: Host,
    *,
    foreign: bool,
    holders: Mapping[int, Sequence[object]] | None = None,
) -> Plan:
    """The plan that deletes these links, topmost first, and the VLANs that an attach made and nothing uses then.

    ``holders`` are, by ifindex, the processes that have a macvtap open: it stays, unless that is not to be asked. What
    must stay is told in ``failures``; the others go all the same.
    """
    going: list[Link] = []
    failures: list[GuestnetError] = []
    for name in dict.fromkeys(names):
        try:
            link = _ours(kind, name, host, foreign=foreign)
            _check_not_held(link, (holders or {}).get(link.index, ()))
            going.append(link)
        except GuestnetError as error:
            failures.append(error)
    gone = {link.index for link in going}
    order: list[Link] = []
    for link in sorted(going, key=host.depth, reverse=True):  # what stays keeps what it stands on
        above = [one for one in host.above(link) if one.index not in gone]
        if above or link.index in host.used_elsewhere:
            users = _several([one.readable for one in above]) or "a link of another network namespace"
            failures.append(
                ConflictError(f"{link.readable} has {users} on it", hint="delete or detach what is on it first")
            )
            gone.discard(link.index)
        else:
            order.append(link)
    doomed = [*order, *host.unused_vlans(order)]
    return Plan(
        there=tuple(DeleteLink(name=link.name, index=link.index) for link in doomed),
        links=tuple(link.readable for link in doomed),
        failures=tuple(failures),
    )  # fmt: skip


def _check_not_held(link: Link, holders: Sequence[object]) -> None:
    """Whoever has it open is told nothing by the kernel, and goes on writing to nobody."""
    if holders:
        raise ConflictError(
            f"{link.readable} is held open by {', '.join(map(str, holders))}",
            hint="end that first; --force takes the link away from under it",
        )


def _ours(kind: Kind, name: str, host: Host, *, foreign: bool) -> Link:
    """The link of that name and kind, if it may be touched. Raises ConflictError else, and what Host.named raises."""
    link = host.named(kind, name)
    if link.owner is Owner.GUEST:
        guest = link.guest_name or link.guest_uuid
        raise ConflictError(
            f"{name} is a NIC of the guest {guest}", hint=f"guestnet detach {guest} {link.mac}, or guestnet set {guest}"
        )
    if link.owner is Owner.FOREIGN and not foreign:
        raise ConflictError(f"{name} was not made by guestnet", hint="add --foreign if you mean it all the same")
    return link
