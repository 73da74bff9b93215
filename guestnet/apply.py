"""Effects: carries out steps, each with its inverse on the undo stack. Decides nothing.

An inverse goes on the stack on the line before its effect and does nothing where the effect did not come about: so an
effect that was cut short in its middle, by a signal or by a lost answer, is taken back like any other.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guestnet.errors import GuestnetError, NotFoundError
from guestnet.guest import xml
from guestnet.kernel import tap
from guestnet.kernel.link import Links
from guestnet.model import Kind, Link, Mac, NewLink
from guestnet.plan import steps as plan
from guestnet.undo import Undo

if TYPE_CHECKING:
    from guestnet.guest.domain import Domain

UNPLUG_TIMEOUT = 30.0
"""Seconds a guest gets to let go of a NIC unless it is said otherwise."""

Watch = Callable[[str, plan.Step], None]
"""Called with "begin" and "end" around each step; what it raises ends the work like a failed step."""


@dataclass(slots=True, kw_only=True)
class Doors:
    """Where effects go: the links of this host, those of the namespace a link is for, and the guest.

    ``into`` is the fd of that namespace, None for this one. ``waiting`` hears the seconds spent on an unplug.
    """

    links: Links
    target: Links
    into: int | None = None
    domain: "Domain | None" = None
    timeout: float = UNPLUG_TIMEOUT
    waiting: Callable[[float], None] | None = None
    held: set[str] = field(default_factory=set)


def run(steps: Iterable[plan.Step], doors: Doors, undo: Undo, watch: Watch | None = None) -> None:
    """Carry out the steps in their order.

    What fails raises, and ``undo`` takes back what was done. From the first deletion of a link on there is no way
    back: nothing is undone then, the other deletions are done all the same, and every failure is told.
    """
    failures: list[GuestnetError] = []
    for step in steps:
        if watch is not None:
            watch("begin", step)
        if isinstance(step, plan.DeleteLink):
            undo.keep()
            try:
                delete_link(step.name, doors.target)
            except GuestnetError as error:
                failures.append(error)
        else:
            _one(step, doors, undo)
        if watch is not None:
            watch("end", step)
    if failures:
        first, *others = failures
        for other in others:
            first.add_note(other.message)
        raise first


def _one(step: plan.Step, doors: Doors, undo: Undo) -> None:
    links = doors.target
    match step:
        case plan.AddLink():
            _add_link(step, doors, undo)
        case plan.GiveNode():
            _give_node(step.name, doors, undo)
        case plan.Mark():
            link = _link(step.name, links)
            undo.push(f"mark of {step.name}", _if_there, links, step.name, lambda at: links.mark(at, link.alias))
            links.mark(link, step.alias)
        case plan.Quiet():
            links.quiet(_link(step.name, links))
        case plan.AllowMulticast():
            links.set_multicast(_link(step.name, links), True)
        case plan.SetUp():
            link = _link(step.name, links)
            undo.push(f"state of {step.name}", _if_there, links, step.name, lambda at: links.set_up(at, link.up))
            links.set_up(link, step.up)
        case plan.SetMode():
            link = _link(step.name, links)
            mode = link.mode
            if mode is not None:
                undo.push(f"mode of {step.name}", _if_there, links, step.name, lambda at: links.set_mode(at, mode))
            links.set_mode(link, step.mode, step.source_macs)
        case plan.SetMtu():
            link = _link(step.name, links)
            undo.push(f"MTU of {step.name}", _if_there, links, step.name, lambda at: links.set_mtu(at, link.mtu))
            links.set_mtu(link, step.mtu)
        case plan.SetMac():
            link = _link(step.name, links)
            old = Mac(link.mac)
            undo.push(f"MAC of {step.name}", _if_there, links, step.name, lambda at: links.set_mac(at, old))
            links.set_mac(link, step.mac)
        case plan.Move():
            if doors.into is None:
                raise GuestnetError(f"{step.name} has no namespace to go to")
            doors.links.move(_link(step.name, doors.links), doors.into)
        case _:
            _guest(step, _domain(doors), doors, undo)


def _guest(step: plan.Step, domain: "Domain", doors: Doors, undo: Undo) -> None:
    match step:
        case plan.Remember():
            now = domain.snapshot()
            for wanted, text, old, live in (
                (step.live, step.live_text, now.live, True),
                (step.config, step.config_text, now.config, False),
            ):
                if wanted and old is not None:
                    before = xml.metadata(xml.records(old, now.name))
                    undo.push("metadata", domain.set_metadata, before, live=live, config=not live)
                    domain.set_metadata(text, live=live, config=not live)
        case plan.Plug():
            if step.config:
                before = domain.snapshot().config
                undo.push(f"NIC {step.mac} in the configuration", _unplug_config, domain, step.mac, before)
            if step.live:
                undo.push(f"NIC {step.mac} of the running guest", _pull, domain, step.mac, doors)
            domain.attach(step.xml, live=step.live, config=step.config)
        case plan.Update():
            shown = domain.snapshot()
            text = shown.live if step.live else shown.config
            element = xml.interface_element(text, step.mac) if text is not None else None
            if element is None:
                raise NotFoundError(f"the NIC {step.mac} of {domain.name} is gone")
            undo.push(f"NIC {step.mac}", domain.update, xml.text_of(element), live=step.live, config=step.config)
            domain.update(step.xml, live=step.live, config=step.config)
        case plan.Unplug():
            live = domain.snapshot().live
            element = xml.interface_element(live, step.mac) if live is not None else None
            if element is not None:
                undo.push(f"NIC {step.mac}", _plug_back, domain, step.mac, xml.text_of(element))
            domain.unplug(step.mac, doors.timeout, doors.waiting)
        case plan.UnplugConfig():
            before = domain.snapshot().config
            if before is not None:
                undo.push(f"NIC {step.mac} in the configuration", domain.define, before)
            domain.detach_config(step.mac)


def _domain(doors: Doors) -> "Domain":
    if doors.domain is None:
        raise GuestnetError("this needs a guest")
    return doors.domain


def _link(name: str, links: Links) -> Link:
    link = links.find(name)
    if link is None:
        raise NotFoundError(f"the interface {name} is gone")
    return link


def _if_there(links: Links, name: str, then: Callable[[Link], object]) -> None:
    link = links.find(name)
    if link is not None:
        then(link)


def _add_link(step: plan.AddLink, doors: Doors, undo: Undo) -> None:
    new = step.new
    parent = _link(new.parent, doors.links)
    undo.push(f"{new.kind} {new.name}", _take_back, new.name, str(new.mac or ""), doors)
    doors.links.add(new, parent.index, into=doors.into)


def _take_back(name: str, mac: str, doors: Doors) -> None:
    link = doors.target.find(name)
    if link is None or not link.ours:
        return
    if mac and mac in doors.held:
        raise GuestnetError(f"{name} is left, the guest still holds it")
    delete_link(name, doors.target)


def _give_node(name: str, doors: Doors, undo: Undo) -> None:
    """Where devtmpfs made the node there is nothing to do. In a private /dev it is made. Where another namespace's
    link of the same ifindex has it, the link is made again under an ifindex of its own: libvirt opens by ifindex."""
    device = tap.device(name, namespace=doors.into)
    if device.node() is tap.Node.FOREIGN:
        link = _link(name, doors.target)
        lower = next((one for one in doors.links.all() if one.index == link.parent), None)
        if lower is None:
            raise NotFoundError(f"the parent of {name} is gone")
        doors.target.delete(link)
        again = _again(link, lower)
        index = tap.free_index(frozenset(one.index for one in doors.target.all()))
        doors.links.add(again, lower.index, into=doors.into, index=index)
        device = tap.device(name, namespace=doors.into)
    if device.node() is tap.Node.MISSING:
        undo.push(f"node of {name}", tap.remove_node, device)
        tap.make_node(device)


def _again(link: Link, lower: Link) -> NewLink:
    return NewLink(
        kind=Kind.MACVTAP, name=link.name, parent=lower.name, alias=link.alias, mode=link.mode, mac=Mac(link.mac),
        mtu=link.mtu,
    )  # fmt: skip


def delete_link(name: str, links: Links) -> None:
    """Delete the link of that name, and its node where no devtmpfs takes it away. Nothing to do where it is gone."""
    link = links.find(name)
    if link is None:
        return
    device = tap.device(name, namespace=links.namespace) if link.kind == Kind.MACVTAP else None
    links.delete(link)
    if device is not None:
        tap.remove_node(device)


def _pull(domain: "Domain", mac: str, doors: Doors) -> None:
    doors.held.add(mac)
    domain.unplug(mac, doors.timeout, doors.waiting)
    doors.held.discard(mac)


def _plug_back(domain: "Domain", mac: str, text: str) -> None:
    live = domain.snapshot().live
    if live is not None and xml.interface_element(live, mac) is None:
        domain.attach(text, live=True, config=False)


def _unplug_config(domain: "Domain", mac: str, before: str | None) -> None:
    domain.detach_config(mac)
    after = domain.snapshot().config
    if before is not None and after is not None and after != before and xml.adds_only_controllers(before, after):
        domain.define(before)  # libvirt added ports for the NIC, and keeps them when it goes
