"""Parents: what a name means, whether a link can be made on it, and the steps that make it."""

from dataclasses import dataclass, replace
from difflib import get_close_matches

from guestnet.errors import ConflictError, NotFoundError, UsageError
from guestnet.model import NAME_MAX, VLAN_ALIAS, Kind, Link, Mac, Mode, Multicast, NewLink, vlan_id
from guestnet.plan.host import Host
from guestnet.plan.steps import AddLink, AllowMulticast, GiveNode, LinkStep, Mark, Quiet, SetUp

MTU_MIN, MTU_MAX = 68, 65535
"""What an IPv4 link must carry (RFC 791) and what an Ethernet link of Linux can (ETH_MAX_MTU)."""

_PARENT_LONGEST = 255
"""Characters in a parent: an alternative name has up to 127 (ALTIFNAMSIZ), and VLAN IDs can follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A parent as it will be: its name, the link at the bottom that is there now, and the VLANs to make on it.

    ``down`` are the links that have to be brought up for it, lowest first: a VLAN does not come up on a NIC that is
    down (vlan_dev_open answers ENETDOWN).
    """

    name: str
    base: Link
    vlans: tuple[NewLink, ...] = ()
    down: tuple[Link, ...] = ()

    @property
    def link(self) -> Link | None:
        """The parent itself where it is there already."""
        return None if self.vlans else self.base


def resolve_parent(text: str, vlan: int | None, host: Host) -> Parent:
    """The parent that ``text`` names: the link of exactly that name, else ``NIC.VID`` as VLAN VID on NIC, recursively.

    ``vlan`` asks for that VLAN ID on the link ``text``. A link that has the name and is not that VLAN is refused.
    Raises NotFoundError with the near names, ConflictError, UsageError.
    """
    if vlan is not None:
        below = resolve_parent(text, None, host)
        return _vlan_on(below, vlan, f"{below.name}.{vlan}", host)
    found = host.find(text)
    if found is not None:
        _check_vlan_name(found, host)
        return _there(found, host)
    if not text:
        raise UsageError("the name of the parent is empty", hint="`ip link` shows the interfaces there are")
    if len(text) > _PARENT_LONGEST:
        raise UsageError(
            f"the name of the parent has {len(text)} characters", hint="`ip link` shows the interfaces there are"
        )
    nic, dot, tail = text.rpartition(".")
    if nic and tail.isdigit() and (host.find(nic) is not None or "." in nic):
        return _vlan_on(resolve_parent(nic, None, host), vlan_id(tail), text, host)
    near = get_close_matches(text, [link.name for link in host.links if not link.loopback], n=3)
    missing = nic if dot and nic and tail.isdigit() else text
    raise NotFoundError(
        f"there is no interface {missing}",
        hint=f"did you mean {', '.join(near)}?" if near else "`ip link` shows the interfaces there are",
    )


def _vlan_on(below: Parent, vid: int, name: str, host: Host) -> Parent:
    if below.link is not None:
        for link in host.above(below.link):
            if link.kind == "vlan" and link.vlan == vid and link.vlan_protocol == "802.1Q":
                return _there(link, host)
    if len(name.encode()) > NAME_MAX:
        raise UsageError(
            f"the VLAN name {name} has {len(name.encode())} characters, the kernel takes {NAME_MAX}",
            hint=f"make it under a short name: {_make_vlan(below.name, vid)}",
        )
    taken = host.find(name)
    if taken is not None:
        raise ConflictError(
            f"{name} exists and is not VLAN {vid} (802.1Q) on {below.name}: it is {describe(taken, host)}",
            hint=f"rename it, or make the VLAN under another name: {_make_vlan(below.name, vid)}",
        )
    new = NewLink(kind=Kind.VLAN, name=name, parent=below.name, vlan=vid, alias=VLAN_ALIAS)
    return replace(below, name=name, vlans=(*below.vlans, new))


def _there(link: Link, host: Host) -> Parent:
    return Parent(name=link.name, base=link, down=tuple(one for one in reversed(_tower(link, host)) if not one.up))


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


def _check_vlan_name(link: Link, host: Host) -> None:
    nic, dot, tail = link.name.rpartition(".")
    if not dot or not tail.isdigit() or host.find(nic) is None:
        return
    lower = host.below(link)
    if link.kind != "vlan" or str(link.vlan) != tail or lower is None or lower.name != nic:
        raise ConflictError(
            f"{link.name} is not VLAN {tail} on {nic}: it is {describe(link, host)}",
            hint=f"rename it, or make the VLAN under another name: {_make_vlan(nic, tail)}",
        )


def describe(link: Link, host: Host) -> str:
    """What the link is and what it stands on, for a message: "VLAN 11 (802.1Q) on ens3"."""
    lower = host.below(link)
    on = f" on {lower.name}" if lower is not None else ""
    if link.kind == "vlan":
        return f"VLAN {link.vlan} ({link.vlan_protocol}){on}"
    return f"a {link.kind or 'network card'}{on}"


def check_parent(parent: Parent, host: Host, *, mode: Mode | None = None) -> None:
    """Raise ConflictError unless a macvtap, macvlan (of that mode) or VLAN can be made on the parent's lowest link."""
    base = parent.base
    if base.loopback:
        raise ConflictError(
            f"{base.name} is the loopback interface, there is no network behind it",
            hint="name the NIC, VLAN, bond or bridge the guest shall be on",
        )
    if not base.ethernet:
        raise ConflictError(f"{base.name} is no Ethernet interface", hint="name an Ethernet NIC, VLAN, bond or bridge")
    if base.kind in ("macvtap", "macvlan"):
        lower = host.below(base)
        raise ConflictError(
            f"{base.name} is a {base.kind} itself, the kernel would use its parent",
            hint=f"use --parent {lower.name}" if lower is not None else "use the parent itself",
        )
    if base.master is not None:
        master = host.at(base.master)
        name = master.name if master is not None else f"ifindex {base.master}"
        kind = base.port_kind or (master.kind if master is not None else "") or "another link"
        instead = name + "".join(f".{vlan.vlan}" for vlan in parent.vlans)
        raise ConflictError(
            f"{base.name} is a port of {name} ({kind})", hint=f"use the {kind} itself: --parent {instead}"
        )
    for link in _tower(base, host):
        if link.name in host.wireless:
            raise ConflictError(
                f"{link.name} is a Wi-Fi interface: its access point drops frames of any other MAC address",
                hint="use a wired NIC, or libvirt's routed or NAT network",
            )
    if mode is None or parent.link is None:
        return
    children = [link for link in host.above(base) if link.mode is not None]
    exclusive = next((link for link in children if link.mode is Mode.PASSTHRU), None)
    if exclusive is not None:
        raise ConflictError(
            f"{base.name} is taken whole by {exclusive.name} in mode passthru",
            hint="choose another parent, or delete that one first",
        )
    if mode is Mode.PASSTHRU and (children or base.index in host.used_elsewhere):
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


def check_mac(mac: Mac, parent: Parent, host: Host) -> None:
    """Raise ConflictError if the parent or a link on it has that MAC: the kernel would say so only at link-up."""
    if parent.base.mac == mac:
        raise ConflictError(f"{mac} is the MAC of {parent.base.name} itself", hint="give another with --mac")
    if parent.link is None:
        return
    for link in host.above(parent.base):
        if link.mac == mac and link.mode is not None:
            raise ConflictError(f"{mac} is the MAC of {link.name} on {parent.name}", hint="give another with --mac")


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


def make_parent(parent: Parent, *, quiet: bool = True) -> tuple[LinkStep, ...]:
    """The steps that make the VLANs of a parent and bring it up; none where it is there and up."""
    steps: list[LinkStep] = [SetUp(name=link.name) for link in parent.down]
    for vlan in parent.vlans:
        steps += make_link(vlan, quiet=quiet)
    return tuple(steps)


def make_link(new: NewLink, *, quiet: bool) -> tuple[LinkStep, ...]:
    """The steps that make a link, marked and dressed as asked."""
    steps: list[LinkStep] = [AddLink(new=new)]
    if new.kind is Kind.MACVTAP:
        steps.append(GiveNode(name=new.name))
    steps.append(Mark(name=new.name, alias=new.alias))
    if quiet:
        steps.append(Quiet(name=new.name))
    if new.kind is Kind.MACVTAP and new.multicast is Multicast.ALL:
        steps.append(AllowMulticast(name=new.name))
    if new.up:
        steps.append(SetUp(name=new.name))
    return tuple(steps)
