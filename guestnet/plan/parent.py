"""Parents: what a name means, whether a link can be made on it, and the steps that make it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

from guestnet.errors import ConflictError, GuestnetError, NotFoundError, UsageError
from guestnet.model import (
    ADDR_GEN_MODE_NONE,
    ALTNAME_MAX,
    NAME_MAX,
    VLAN_ALIAS,
    Kind,
    Link,
    Mac,
    Mode,
    Multicast,
    NewLink,
    ParentName,
    VlanProtocol,
    vlan_id,
)
from guestnet.plan.host import Host, made_for_guests
from guestnet.plan.steps import AddLink, AllowMulticast, CallAlso, GiveNode, LinkStep, Mark, Quiet, SetUp

MTU_MIN, MTU_MAX = 68, 65535
"""What an IPv4 link must carry (RFC 791) and what an Ethernet link of Linux can (ETH_MAX_MTU)."""

_PARENT_LONGEST = 255
"""Characters in a parent: an alternative name has up to 127 (ALTIFNAMSIZ), and VLAN IDs can follow."""

_SHORT_NAMES = 16
"""Short names that are tried for a VLAN. That one is taken at all needs a link that somebody named so."""

_MTU_USUAL = 1500

_NIC_VID = re.compile(r"(?P<nic>.+)\.(?P<vid>[0-9]+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A parent as it will be: its name as it was said, the link at the bottom that is there, the VLANs to make on it.

    ``down`` are the links that have to be brought up for it, lowest first: a VLAN does not come up on a NIC that is
    down (vlan_dev_open answers ENETDOWN). ``bare`` are the VLANs of ours in it, as they should be, that an attach left
    half made when it was killed. ``outer`` is the protocol asked for of its outermost VLAN, the one on the NIC.
    """

    name: str
    base: Link
    vlans: tuple[NewLink, ...] = ()
    down: tuple[Link, ...] = ()
    bare: tuple[NewLink, ...] = ()
    outer: VlanProtocol = VlanProtocol.DOT1Q

    @property
    def link(self) -> Link | None:
        """The parent itself where it is there already."""
        return None if self.vlans else self.base

    @property
    def device(self) -> str:
        """Its name in the kernel."""
        return self.vlans[-1].name if self.vlans else self.base.name

    @property
    def readable(self) -> str:
        """Its name for a person, whatever it was called here."""
        return self.vlans[-1].readable if self.vlans else self.base.readable

    @property
    def identity(self) -> tuple[object, ...]:
        """What two parents have in common that are one and the same, however they were said."""
        return (self.base.index, *((vlan.vlan, vlan.protocol) for vlan in self.vlans))


def resolve_parent(text: str, vlan: int | None, host: Host, outer: VlanProtocol | None = None) -> Parent:
    """The parent that ``text`` names: the link of exactly that name, else ``NIC.VID`` as VLAN VID on NIC, recursively.

    ``vlan`` asks for that VLAN ID on the link ``text``; ``outer`` is the protocol of the outermost VLAN, where it was
    said. A VLAN that is there is known by kind, ID, protocol and lower link, and used under any name; a link that has
    the name and is not that VLAN is refused. Raises NotFoundError with the near names, ConflictError, UsageError.
    """
    protocol = outer or VlanProtocol.DOT1Q
    parent = _resolve(text, host, protocol)
    if vlan is not None:
        parent = _vlan_on(parent, vlan, f"{parent.name}.{vlan}", host, protocol)
    if outer is not None:
        _check_outer(parent, outer, host)
    return replace(parent, name=ParentName(parent.name), outer=protocol)


def parent_on_record(text: str, outer: VlanProtocol, host: Host) -> Parent:
    """The parent of a record, which has 802.1Q also where nobody asked for a protocol. Raises as ``resolve_parent``."""
    return resolve_parent(text, None, host, outer if outer is not VlanProtocol.DOT1Q else None)


def parent_link(text: str, outer: VlanProtocol, host: Host) -> Link | None:
    """The link that a parent on record is; None where it is not there, or another link has its name."""
    try:
        return parent_on_record(text, outer, host).link
    except GuestnetError:
        return None


def stands_on(link: Link, text: str, outer: VlanProtocol, host: Host) -> bool:
    """Whether ``link`` stands on the parent that is on record as ``text``, whatever its name in the kernel."""
    lower = host.below(link)
    if lower is None:
        return False
    return (lower.name == text and lower.kind != Kind.VLAN) or lower == parent_link(text, outer, host)


def _resolve(text: str, host: Host, protocol: VlanProtocol) -> Parent:
    found = host.find(text)
    parts = _NIC_VID.fullmatch(text)
    if found is not None:
        if parts is not None:
            _check_vlan_name(found, text, parts["nic"], int(parts["vid"]), host, protocol)
        return _there(found, text, host)
    if not text:
        raise UsageError("the name of the parent is empty", hint="`ip link` shows the interfaces there are")
    if len(text) > _PARENT_LONGEST:
        raise UsageError(
            f"the name of the parent has {len(text)} characters", hint="`ip link` shows the interfaces there are"
        )
    if parts is not None and (host.find(parts["nic"]) is not None or "." in parts["nic"]):
        return _vlan_on(_resolve(parts["nic"], host, protocol), vlan_id(parts["vid"]), text, host, protocol)
    missing = text if parts is None else parts["nic"]
    near = get_close_matches(missing, [link.name for link in host.links if not link.loopback], n=3)
    raise NotFoundError(
        f"there is no interface {missing}",
        hint=f"did you mean {', '.join(near)}?" if near else "`ip link` shows the interfaces there are",
    )


def _protocol_on(below: Parent, protocol: VlanProtocol) -> VlanProtocol:
    """The protocol of a VLAN on that parent: the outermost one's, or that of all VLANs within another."""
    return VlanProtocol.DOT1Q if below.vlans or below.base.kind == Kind.VLAN else protocol


def find_vlan(lower: Link, vid: int, protocol: VlanProtocol, host: Host) -> Link | None:
    """That VLAN of the link ``lower``, whatever its name."""
    for link in host.above(lower):
        if link.kind == Kind.VLAN and (link.vlan, link.vlan_protocol) == (vid, protocol):
            return link
    return None


def _vlan_on(below: Parent, vid: int, text: str, host: Host, protocol: VlanProtocol) -> Parent:
    wanted = _protocol_on(below, protocol)
    found = find_vlan(below.link, vid, wanted, host) if below.link is not None else None
    if found is not None:
        return _there(found, text, host)
    taken = host.find(text)
    if taken is not None:
        raise ConflictError(
            f"{text} exists and is not VLAN {vid} ({wanted}) on {below.name}: it is {describe(taken, host)}",
            hint=_other_way(taken, text, below, vid, host),
        )
    name, altname = vlan_names(text, below, vid, host)
    new = NewLink(
        kind=Kind.VLAN, name=name, altname=altname, parent=below.device, vlan=vid, protocol=wanted, alias=VLAN_ALIAS
    )
    return replace(below, name=text, vlans=(*below.vlans, new))


def vlan_names(text: str, below: Parent, vid: int, host: Host) -> tuple[str, str]:
    """A free name for VLAN ``vid`` on ``below`` that was asked for as ``text``, and the alternative one it needs.

    The text itself where the kernel takes one of that length, else ``NIC.VID`` with the NIC's own name. Else a short
    one from what the VLAN stands on, and ``NIC.VID`` is the alternative one: no two NICs share it, since one that is
    taken is passed over for the next of a fixed row. Raises ConflictError where all are taken, UsageError for a name
    too long for an alternative one.
    """
    own = f"{below.readable}.{vid}"
    for name in (text, own):
        if len(name.encode(errors="surrogatepass")) <= NAME_MAX:
            check_free(name, host)
            return name, ""
    if len(own.encode(errors="surrogatepass")) > ALTNAME_MAX:
        raise UsageError(
            f"the VLAN name {own} has {len(own)} characters, the kernel takes {ALTNAME_MAX}",
            hint=f"make it under a short name: {_make_vlan(below.name, vid)}",
        )
    check_free(own, host)
    free = next((name for name in short_names(below.readable, vid) if host.find(name) is None), None)
    if free is None:
        raise ConflictError(
            f"the short names for VLAN {vid} on {below.name} are all taken",
            hint=f"make it under a name of your own: {_make_vlan(below.name, vid)}",
        )
    return free, own


def short_names(lower: str, vid: int) -> Iterator[str]:
    """The short names of VLAN ``vid`` on the link of that readable name, in their order: 15 characters at most."""
    import hashlib  # 2 ms, which names of the usual length do without

    for number in range(_SHORT_NAMES):
        seed = lower if not number else f"{lower}\0{number}"
        yield f"gv{hashlib.sha256(seed.encode(errors='surrogatepass')).hexdigest()[:8]}.{vid}"


def check_free(name: str, host: Host) -> None:
    """Raise ConflictError where a link has that name, or alternative name."""
    taken = host.find(name)
    if taken is not None:
        raise ConflictError(
            f"the interface name {name} is taken by {describe(taken, host)}", hint="rename that one, or give it up"
        )


def _there(link: Link, text: str, host: Host) -> Parent:
    tower = [*reversed(_tower(link, host))]
    bare = tuple(_as_made(one, host) for one in tower if made_for_guests(one) and not (one.alias and _is_quiet(one)))
    return Parent(name=text, base=link, down=tuple(one for one in tower if not one.up), bare=bare)


def _is_quiet(link: Link) -> bool:
    return link.addrgenmode in (None, ADDR_GEN_MODE_NONE)


def _as_made(vlan: Link, host: Host) -> NewLink:
    """What an attach would have made where this VLAN is."""
    lower = host.below(vlan)
    own = f"{lower.readable if lower is not None else '?'}.{vlan.vlan}"
    return NewLink(
        kind=Kind.VLAN, name=vlan.name, altname=own if len(own.encode()) > NAME_MAX else "", vlan=vlan.vlan,
        parent=lower.name if lower is not None else "", alias=VLAN_ALIAS, up=False,
    )  # fmt: skip


def _tower(link: Link, host: Host) -> list[Link]:
    """The link and those it stands on in this namespace, topmost first."""
    found = [link]
    while found[-1].kind != "veth":
        lower = host.below(found[-1])
        if lower is None or lower in found:
            break
        found.append(lower)
    return found


def _make_vlan(parent: str, vid: int | str) -> str:
    return f"guestnet vlan add NAME --parent {parent} --vlan {vid}"


def _other_way(taken: Link, text: str, below: Parent, vid: int, host: Host) -> str:
    """What to do about a link that has the name of a VLAN and is not it."""
    mine = below.link is not None and host.below(taken) == below.link
    if taken.kind == Kind.VLAN and taken.vlan == vid and mine and taken.vlan_protocol in tuple(VlanProtocol):
        if not below.vlans and below.base.kind != Kind.VLAN:
            return f"if you mean that one: --outer-protocol {taken.vlan_protocol}"
        return f"if you mean that one, give it another name too: ip link property add dev {taken.name} altname NAME"
    hint = f"rename it, or make the VLAN under another name: {_make_vlan(below.name, vid)}"
    if taken.kind not in list(Kind):
        also = next((name for name in (taken.name, *taken.altnames) if name != text), "")
        hint += f"; if you mean {taken.name} itself: "
        hint += f"--parent {also}" if also else f"ip link property add dev {taken.name} altname NAME, --parent NAME"
    return hint


def _check_vlan_name(found: Link, text: str, nic: str, vid: int, host: Host, protocol: VlanProtocol) -> None:
    """Raise ConflictError where ``text`` is ``NIC.VID`` of a NIC that is there, and the link of that name is not it."""
    if not 1 <= vid <= 4094:
        return
    try:
        below = _resolve(nic, host, protocol)
    except (NotFoundError, UsageError):
        return
    wanted = _protocol_on(below, protocol)
    if below.link is not None and found == find_vlan(below.link, vid, wanted, host):
        return
    raise ConflictError(
        f"{text} is not VLAN {vid} ({wanted}) on {nic}: it is {describe(found, host)}",
        hint=_other_way(found, text, below, vid, host),
    )


def _check_outer(parent: Parent, outer: VlanProtocol, host: Host) -> None:
    """Raise unless the outermost VLAN of a parent has the protocol that was said."""
    there = [link for link in _tower(parent.base, host) if link.kind == Kind.VLAN]
    if there and there[-1].vlan_protocol != outer:
        raise ConflictError(
            f"{there[-1].name} is {describe(there[-1], host)}, not {outer}", hint="leave --outer-protocol out"
        )
    if not there and not parent.vlans:
        raise UsageError(
            f"--outer-protocol is for a parent that is a VLAN, and {parent.name} is none",
            hint="leave it out, or name the VLAN: --parent NIC.VID",
        )


def describe(link: Link, host: Host) -> str:
    """What the link is and what it stands on, for a message: "VLAN 11 (802.1Q) on ens3"."""
    lower = host.below(link)
    on = f" on {lower.name}" if lower is not None else ""
    if link.kind == "vlan":
        return f"VLAN {link.vlan} ({link.vlan_protocol}){on}"
    return f"a {link.kind or 'network card'}{on}"


def check_parent(parent: Parent, host: Host, *, mode: Mode | None = None, vlan: int | None = None) -> None:
    """Raise ConflictError unless a macvtap or macvlan (of that mode) or a VLAN (of that ID) can be made on a parent."""
    base = parent.base
    vids = [*(one.vlan for one in parent.vlans), *((vlan,) if vlan is not None else ())]
    if base.loopback:
        raise ConflictError(
            f"{base.name} is the loopback interface, there is no network behind it",
            hint="name the NIC, VLAN, bond or bridge the guest shall be on",
        )
    if not base.ethernet:
        raise ConflictError(f"{base.name} is no Ethernet interface", hint="name an Ethernet NIC, VLAN, bond or bridge")
    if base.kind in ("macvtap", "macvlan"):
        lower = host.below(base)
        instead = ".".join((lower.readable if lower is not None else "NIC", *map(str, vids)))
        why = "which hears frames for its own MAC only" if vids else "the kernel would use its parent"
        raise ConflictError(
            f"{base.name} is a {base.kind} itself, {why}",
            hint=f"use --parent {instead}" if lower is not None else "use the parent itself",
        )
    if base.master is not None:
        master = host.at(base.master)
        name = master.name if master is not None else f"ifindex {base.master}"
        kind = base.port_kind or (master.kind if master is not None else "") or "another link"
        instead = ".".join((name, *map(str, vids)))
        takes = f", and VLAN {vids[0]} on it would take its frames from the bridge" if vids and kind == "bridge" else ""
        raise ConflictError(
            f"{base.name} is a port of {name} ({kind}){takes}", hint=f"use the {kind} itself: --parent {instead}"
        )
    for link in _tower(base, host):
        if link.name in host.wireless:
            raise ConflictError(
                f"{link.name} is a Wi-Fi interface: its access point drops frames of any other MAC address",
                hint="use a wired NIC, or libvirt's routed or NAT network",
            )
        if not link.reorder_hdr:
            raise ConflictError(
                f"{link.name} has REORDER_HDR off: frames that a guest tags itself would leave it in any other VLAN",
                hint=f"ip link set {link.name} type vlan reorder_hdr on",
            )
        if link is not base and link.mode not in (None, Mode.PASSTHRU):
            raise ConflictError(
                f"{base.name} stands on {link.name}, a {link.kind}, which hears frames for its own MAC only",
                hint="use a VLAN of the NIC below it",
            )
    children = [link for link in host.above(base) if link.mode is not None]
    exclusive = next((link for link in children if link.mode is Mode.PASSTHRU), None)
    if exclusive is not None and (mode is not None or vids):
        raise ConflictError(
            f"{base.name} is taken whole by {exclusive.name} in mode passthru",
            hint="choose another parent, or delete that one first",
        )
    if mode is Mode.PASSTHRU and parent.link is not None and (children or base.index in host.used_elsewhere):
        names = ", ".join(link.name for link in children[:3]) or "a link of another network namespace"
        raise ConflictError(
            f"mode passthru takes {base.name} whole, and it is used by {names}",
            hint="choose mode bridge, or another parent",
        )


def check_guest_mode(mode: Mode | None) -> None:
    """Raise UsageError for the mode that no NIC of a guest can have."""
    if mode is Mode.SOURCE:
        raise UsageError(
            "mode source is for a macvlan of the host, a guest would hear nothing else",
            hint="one of bridge, vepa, private, passthru",
        )


def check_mac(mac: Mac, parent: Parent, host: Host, *, hint: str = "give another with --mac") -> None:
    """Raise ConflictError if the parent or a link on it has that MAC: the kernel would say so only at link-up."""
    if parent.base.mac == mac:
        raise ConflictError(f"{mac} is the MAC of {parent.base.name} itself", hint=hint)
    if parent.link is None:
        return
    for link in host.above(parent.base):
        if link.mac == mac and link.mode is not None:
            raise ConflictError(f"{mac} is the MAC of {link.name} on {parent.name}", hint=hint)


def check_mtu(mtu: int | None, parent: Parent) -> None:
    """Raise UsageError for no MTU at all, ConflictError for one that is more than the parent's."""
    if mtu is None:
        return
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise UsageError(f"{mtu} is not an MTU", hint=f"{MTU_MIN} to {MTU_MAX} bytes")
    if mtu > parent.base.mtu:
        raise ConflictError(
            f"the MTU {mtu} is more than that of {parent.base.name}, {parent.base.mtu}",
            hint=f"raise the parent's first: ip link set {parent.base.name} mtu {mtu}",
        )


def make_parent(parent: Parent) -> tuple[LinkStep, ...]:
    """The steps that make the VLANs of a parent and bring it up; none where it is there and up.

    A VLAN that is made on the way is for guests: the host itself stays out of it.
    """
    steps: list[LinkStep] = []
    for half in parent.bare:
        steps += make_link(half, quiet=True)[1:]
    steps += [SetUp(name=link.name) for link in parent.down]
    for vlan in parent.vlans:
        steps += make_link(vlan, quiet=True)
    return tuple(steps)


def parent_notes(parent: Parent) -> list[str]:
    """What a person should be told of the VLANs of a parent: those that are made, and what narrows them."""
    notes = []
    base = parent.base
    for new, on in zip(parent.vlans, (base.readable, *(vlan.readable for vlan in parent.vlans)), strict=False):
        protocol = "" if new.protocol is VlanProtocol.DOT1Q else f" ({new.protocol})"
        under = f" under the name {new.name}" if new.altname else ""
        notes.append(f"VLAN {new.vlan}{protocol} on {on} is made{under}: {new.readable}")
    if base.mtu < _MTU_USUAL and (parent.vlans or base.kind == Kind.VLAN):
        also = f", and so has {parent.readable}" if parent.vlans else ""
        notes.append(f"{base.readable} has the MTU {base.mtu}{also}")
    if parent.vlans and base.vlan_filtering:
        notes.append(filtered(base, parent.vlans[0].vlan))
    return notes


def filtered(bridge: Link, vid: int | None) -> str:
    """What a person should be told of a VLAN on a bridge that filters VLANs: nothing passes by itself."""
    return (
        f"{bridge.name} filters VLANs, so {vid} has to be let through at the bridge itself and at its port: "
        f"bridge vlan add vid {vid} dev {bridge.name} self; bridge vlan add vid {vid} dev PORT"
    )


def make_link(new: NewLink, *, quiet: bool) -> tuple[LinkStep, ...]:
    """The steps that make a link, marked and dressed as asked."""
    steps: list[LinkStep] = [AddLink(new=new)]
    if new.kind is Kind.MACVTAP:
        steps.append(GiveNode(name=new.name))
    if new.altname:
        steps.append(CallAlso(name=new.name, altname=new.altname))
    steps.append(Mark(name=new.name, alias=new.alias))
    if quiet:
        steps.append(Quiet(name=new.name))
    if new.kind is Kind.MACVTAP and new.multicast is Multicast.ALL:
        steps.append(AllowMulticast(name=new.name))
    if new.up:
        steps.append(SetUp(name=new.name))
    return tuple(steps)
