"""Effects on links."""

from guestnet.apply.doors import Doors
from guestnet.errors import GuestnetError, NotFoundError
from guestnet.kernel import netns, tap
from guestnet.kernel.link import ADDR_GEN_MODE_NONE, Links
from guestnet.kernel.netlink import NetlinkError
from guestnet.model import Kind, Link, Mac, NewLink
from guestnet.plan import steps as plan
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
        case _:
            link = _link(step.name, doors.target)
            undo.push(f"{type(step).__name__} of {step.name}", _undress, step, link, doors.target)
            _dress(step, link, doors.target)


_Dressing = plan.Mark | plan.Quiet | plan.AllowMulticast | plan.SetUp | plan.SetMode | plan.SetMtu | plan.SetMac


def _dress(step: _Dressing, link: Link, links: Links) -> None:
    match step:
        case plan.Mark():
            links.mark(link, step.alias)
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


def _undress(step: _Dressing, was: Link, links: Links) -> None:
    """Set what the step changed to what it was. The IPv6 settings of a link of ours have no way back, nor need one."""
    link = links.find(was.name)
    if link is None or link.index != was.index:
        return  # gone, or another one of that name by now
    match step:
        case plan.Mark():
            links.mark(link, was.alias)
        case plan.AllowMulticast():
            links.set_multicast(link, bool(was.allmulti))
        case plan.SetUp():
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
    parent = doors.parents.get(new.parent) or _link(new.parent, doors.links)
    doors.parents[new.parent] = parent
    undo.push(f"{new.kind} {new.name}", _take_back, new.name, str(new.mac or ""), doors)
    try:
        doors.links.add(new, parent.index, into=doors.into)
    except GuestnetError as error:
        if isinstance(error.__cause__, NetlinkError):
            undo.drop()  # the kernel said no: the link of that name, if there is one, is somebody else's
        raise
    doors.made[new.name] = _link(new.name, doors.target)


def _take_back(name: str, mac: str, doors: Doors) -> None:
    link = doors.target.find(name)
    if link is None or not link.ours:
        return
    if mac and mac in doors.held:
        raise GuestnetError(f"{name} is left, the guest still holds it")
    above = _above(link, doors.target)
    if above:
        raise GuestnetError(f"{name} is left, {', '.join(above)} stands on it")
    _delete(link, doors.target)


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
    _delete(link, links)


def _delete(link: Link, links: Links) -> None:
    device = tap.device_of(link, namespace=links.namespace) if link.kind == Kind.MACVTAP else None
    links.delete(link)
    if device is not None:
        tap.remove_node(device)
