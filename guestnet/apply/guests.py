"""Effects on guests."""

from typing import Any

from guestnet.apply.doors import Doors, GuestDoor
from guestnet.errors import NotFoundError
from guestnet.guest import xml
from guestnet.plan import steps as plan
from guestnet.undo import Undo


def carry_out(step: plan.GuestStep, domain: GuestDoor, doors: Doors, undo: Undo) -> None:
    """Carry out one step on a guest. Raises what libvirt or the guest refuses; ``undo`` has the inverse then too."""
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
            undo.push(f"NIC {step.mac}", _change_back, domain, element, step, doors)
            domain.update(step.xml, live=step.live, config=step.config)
        case plan.Unplug():
            running = domain.snapshot().live
            element = xml.interface_element(running, step.mac) if running is not None else None
            if element is not None:
                undo.push(f"NIC {step.mac}", _plug_back, domain, step.mac, xml.text_of(element))
            domain.unplug(step.mac, doors.timeout, doors.waiting)
        case plan.UnplugConfig():
            before = domain.snapshot().config
            element = xml.interface_element(before, step.mac) if before is not None else None
            if element is not None:
                undo.push(f"NIC {step.mac} in the configuration", _put_back, domain, step.mac, xml.text_of(element))
            domain.detach_config(step.mac)


def _change_back(domain: GuestDoor, element: Any, step: plan.Update, doors: Doors) -> None:
    domain.update(xml.text_of(element), live=step.live, config=step.config)
    if step.live and element.find("bandwidth") is None:
        # what a <bandwidth> needs is made by libvirt piece by piece, and stays where a piece is refused
        target = element.find("target")
        link = doors.target.find(target.get("dev")) if target is not None else None
        if link is not None:
            doors.target.clear_rates(link)


def _pull(domain: GuestDoor, mac: str, doors: Doors) -> None:
    doors.held.add(mac)
    domain.unplug(mac, doors.timeout, doors.waiting)
    doors.held.discard(mac)


def _plug_back(domain: GuestDoor, mac: str, text: str) -> None:
    live = domain.snapshot().live
    if live is not None and xml.interface_element(live, mac) is None:
        domain.attach(text, live=True, config=False)


def _put_back(domain: GuestDoor, mac: str, text: str) -> None:
    config = domain.snapshot().config
    if config is not None and xml.interface_element(config, mac) is None:
        domain.attach(text, live=False, config=True)


def _unplug_config(domain: GuestDoor, mac: str, before: str | None) -> None:
    domain.detach_config(mac)
    after = domain.snapshot().config
    if before is not None and after is not None and after != before and xml.adds_only_controllers(before, after):
        domain.define(before)  # libvirt added ports for the NIC, and keeps them when it goes
