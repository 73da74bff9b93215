"""Effects on links."""

import contextlib
import errno

from guestnet.apply.doors import Doors
from guestnet.errors import ConflictError, GuestnetError, NotFoundError
from guestnet.kernel import netns, tap
from guestnet.kernel.link import Links
from guestnet.kernel.netlink import NetlinkError
from guestnet.model import ADDR_GEN_MODE_NONE, VLAN_ALIAS, Kind, Link, Mac, NewLink
from guestnet.plan import steps as plan
from guestnet.plan.host import Host, made_for_guests
from guestnet.undo import Undo


def carry_out(step: plan.LinkStep, doors: Doors, undo: Undo) -> None:
    """Carry out one step on a link. Raises what the kernel refuses; ``undo`` has the inverse then too."""
    match step:
        case plan.AddLink():
            _add_link(step, doors, undo)
        case plan.GiveNode():
            _give_node(step.name, doors, undo)
        case plan.Move():
            _move(step.name, doors, undo)
        case plan.DeleteLink():
            delete(step, doors.target)
        case _ if step.name in doors.made:
            _dress(step, doors.made[step.name], doors.target)
        case _ if step.name in doors.shared and not isinstance(step, plan.SetUp):
            pass  # another's, who dresses it
        case _:
            link = doors.shared.get(step.name) or _link(step.name, doors.target)
            raises = isinstance(step, plan.SetUp) and not link.up
            before = _on(link, doors.target) if raises else frozenset()
            undo.push(f"{type(step).__name__} of {link.name}", _undress, step, link, before, doors.target)
            _dress(step, link, doors.target)


_Dressing = (
    plan.Mark | plan.CallAlso | plan.Quiet | plan.AllowMulticast | plan.SetUp | plan.SetMode | plan.SetMtu | plan.SetMac
)


def _dress(step: _Dressing, link: Link, links: Links) -> None:
    match step:
        case plan.Mark():
            links.mark(link, step.alias)
        case plan.CallAlso():
            links.call_also(link, step.altname)
        case plan.Quiet():
            links.quiet(link)
        case plan.AllowMulticast():
            links.set_multicast(link, True)
        case plan.SetUp():
            links.set_up(link, step.up)
        case plan.SetMode():
            links.set_mode(link, step.mode, step.source_macs)
        case plan.SetMtu():
            links.set_mtu(link, step.mtu)
        case plan.SetMac():
            links.set_mac(link, step.mac)


def _on(link: Link, links: Links) -> frozenset[int]:
    """The links that stand on it."""
    return frozenset(one.index for one in links.all() if one.parent == link.index and one.parent_netnsid is None)


def _undress(step: _Dressing, was: Link, before: frozenset[int], links: Links) -> None:
    """Set what the step changed to what it was. The IPv6 settings of a link of ours have no way back, nor need one.

    A link that was brought up stays so where another than those ``before`` has come to stand on it since.
    """
    link = links.find(was.name)
    if link is None or link.index != was.index:
        return  # gone, or another one of that name by now
    match step:
        case plan.Mark():
            links.mark(link, was.alias)
        case plan.AllowMulticast():
            links.set_multicast(link, bool(was.allmulti))
        case plan.SetUp():
            if was.up or not _on(link, links) - before:
                links.set_up(link, was.up)
        case plan.SetMode() if was.mode is not None:
            links.set_mode(link, was.mode, tuple(Mac(mac) for mac in was.source_macs))
        case plan.SetMtu():
            links.set_mtu(link, was.mtu)
        case plan.SetMac():
            links.set_mac(link, Mac(was.mac))


def _link(name: str, links: Links) -> Link:
    link = links.find(name)
    if link is None:
        raise NotFoundError(f"the interface {name} is gone")
    return link


def _add_link(step: plan.AddLink, doors: Doors, undo: Undo) -> None:
    new = step.new
    parent = doors.parents.get(new.parent) or doors.made.get(new.parent) or _link(new.parent, doors.links)
    doors.parents[new.parent] = parent
    undo.push(f"{new.kind} {new.name}", _take_back, new, doors)
    try:
        doors.links.add(new, parent.index, into=doors.into)
    except GuestnetError as error:
        refusal = error.__cause__
        if isinstance(refusal, NetlinkError):
            undo.drop()  # the kernel said no: the link of that name, if there is one, is somebody else's
            if new.kind is Kind.VLAN and refusal.errno == errno.EEXIST and _share(new, parent, doors, undo):
                return
        raise
    doors.made[new.name] = _link(new.name, doors.target)


def _share(new: NewLink, parent: Link, doors: Doors, undo: Undo) -> bool:
    """Whether the VLAN that the kernel has instead of a new one is as good: somebody made it since the plan.

    One of ours is dressed like a new one, and goes in the undo unless something stands on it; another's is left as it
    is. A VLAN that was asked for by its name is not exchanged for another's. Raises ConflictError for one in another
    network namespace, where the NIC's other VLANs cannot be seen.
    """
    if doors.into is not None:
        return False
    links = doors.target.all()
    wanted = (new.vlan, new.protocol, parent.index, None)
    twin = next((one for one in links if (one.vlan, one.vlan_protocol, one.parent, one.parent_netnsid) == wanted), None)
    if twin is None and not any(new.name in (one.name, *one.altnames) for one in links):
        raise ConflictError(
            f"VLAN {new.vlan} of {new.parent} is in another network namespace, and a NIC has each VLAN only once",
            hint="`ip -all netns exec ip -d link show type vlan` shows it; delete it there, or use it there",
        )
    if twin is None or not twin.reorder_hdr:
        return False
    alike = twin.ours and twin.alias in ("", new.alias)
    if new.alias != VLAN_ALIAS and not (alike and twin.name == new.name):
        return False
    doors.parents[new.name] = twin
    if alike:
        undo.push(f"{new.kind} {twin.name}", _take_back_unused, twin, doors)
        doors.made[new.name] = twin
    else:
        doors.shared[new.name] = twin
    return True


def _take_back_unused(twin: Link, doors: Doors) -> None:
    link = doors.target.find(twin.name)
    if link is not None and link.index == twin.index and link.ours and not _is_used(link, doors.target):
        _delete(link, doors.target)


def _take_back(new: NewLink, doors: Doors) -> None:
    link = doors.target.find(new.name)
    if link is None or not _is_made(link, new, doors):
        return
    if new.mac and new.mac in doors.held:
        raise GuestnetError(f"{new.name} is left, the guest still holds it")
    above = _above(link, doors.target)
    if not doors.made.keys().isdisjoint(above):
        raise GuestnetError(f"{new.name} is left, {', '.join(above)} stands on it")
    if not _is_used(link, doors.target):  # else it is another's by now, and goes with its last user
        _delete(link, doors.target)


def _is_made(link: Link, new: NewLink, doors: Doors) -> bool:
    """Whether it is the very link that was made; one whose making was ended half-way is told by what it was given."""
    made = doors.made.get(new.name)
    if made is not None:
        return link.ours and link.index == made.index
    alike = link.kind == new.kind and link.alias in ("", new.alias) and new.mac in (None, link.mac)
    return link.ours and alike


def _is_used(link: Link, links: Links) -> bool:
    """Whether a VLAN has a user, here or in another namespace. Looked for anew: whoever came since the plan, while the
    lock of the host was free, would lose it without a word."""
    if link.kind != Kind.VLAN:
        return False
    host = Host(links=links.all(), used_elsewhere=links.used_elsewhere(), addressed=links.addressed())
    return bool(host.use_of(link))


def _above(link: Link, links: Links) -> list[str]:
    """What stands on a VLAN: the kernel would delete it too, such as a macvtap that a guest holds."""
    if link.kind != Kind.VLAN:
        return []
    return [one.name for one in links.all() if one.parent == link.index and one.parent_netnsid is None]


def _give_node(name: str, doors: Doors, undo: Undo) -> None:
    """Where devtmpfs made the node there is nothing to do. In a private /dev it is made. Where another namespace's
    link of the same ifindex has it, the link is made again under an ifindex of its own: libvirt opens by ifindex."""
    link = doors.made.get(name) or _link(name, doors.target)
    device = tap.device_of(link, namespace=doors.into)
    if device.node() is tap.Node.FOREIGN:
        lower = next((one for one in doors.links.all() if one.index == link.parent), None)
        if lower is None:
            raise NotFoundError(f"the parent of {name} is gone")
        doors.made.pop(name, None)
        doors.target.delete(link)
        again = _again(link, lower)
        index = tap.free_index(frozenset(one.index for one in doors.target.all()))
        doors.links.add(again, lower.index, into=doors.into, index=index)
        doors.made[name] = _link(name, doors.target)
        device = tap.device_of(doors.made[name], namespace=doors.into)
    if device.node() is tap.Node.MISSING:
        undo.push(f"node of {name}", tap.remove_node, device)
        tap.make_node(device)


def _move(name: str, doors: Doors, undo: Undo) -> None:
    """An ifindex that is taken there is changed on the way, to one whose node in /dev is nobody's. The kernel names the
    node anew with it; in a private /dev that is done here."""
    if doors.into is None:
        raise GuestnetError(f"{name} has no namespace to go to")
    link = _link(name, doors.links)
    before = tap.device_of(link, namespace=doors.links.namespace) if link.kind == Kind.MACVTAP else None
    taken = frozenset(one.index for one in doors.target.all())
    index = tap.free_index(taken) if link.index in taken else None
    undo.push(f"move of {name}", _bring_back, link, doors)
    doors.links.move(link, doors.into, index=index)
    if before is None or index is None:
        return
    tap.remove_node(before)
    device = tap.device(name, namespace=doors.into)
    if device.node() is tap.Node.MISSING:
        undo.push(f"node of {name}", tap.remove_node, device)
        tap.make_node(device)


def _bring_back(link: Link, doors: Doors) -> None:
    moved = doors.target.find(link.name)
    if moved is None or moved.mac != link.mac or moved.kind != link.kind:
        return
    with netns.own() as home:
        doors.target.move(moved, home, index=link.index if moved.index != link.index else None)
    back = _link(link.name, doors.links)
    if link.addrgenmode == ADDR_GEN_MODE_NONE:
        doors.links.quiet(back)
    if link.up:
        doors.links.set_up(back)
    if link.kind == Kind.MACVTAP:
        device = tap.device_of(back)
        if device.node() is tap.Node.MISSING:
            tap.make_node(device)


def _again(link: Link, lower: Link) -> NewLink:
    return NewLink(
        kind=Kind.MACVTAP, name=link.name, parent=lower.name, alias=link.alias, mode=link.mode, mac=Mac(link.mac),
        mtu=link.mtu,
    )  # fmt: skip


def delete(step: plan.DeleteLink, links: Links) -> None:
    """Delete the link of a step, and its node where no devtmpfs takes it away.

    Nothing to do where it is gone, where another one has its name by now, and where a VLAN has a new user.
    """
    link = links.find(step.name)
    if link is None or step.index not in (None, link.index) or _above(link, links):
        return
    # its address, or that it is a bridge's port, is no reason: who planned it may have meant to delete it all the same
    if made_for_guests(link) and link.index in links.used_elsewhere():
        return
    _delete(link, links)


def _delete(link: Link, links: Links) -> None:
    device = None
    if link.kind == Kind.MACVTAP:
        with contextlib.suppress(ConflictError):  # it is gone by now
            device = tap.device_of(link, namespace=links.namespace)
    links.delete(link)
    if device is not None:
        tap.remove_node(device)
