"""The verbs of the command line for programs: what ``from guestnet import attach, detach, …`` gives.

Words mean what the options of the same name mean. Names and meanings here are kept; what is new comes as a further
keyword or field. libvirt and the rest are loaded by the first call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from guestnet.errors import UsageError
from guestnet.machine import libvirt_uri
from guestnet.model import (
    Backend,
    Bandwidth,
    LinkName,
    LinkState,
    Mac,
    Mode,
    Multicast,
    Request,
    VlanProtocol,
    one_of,
    vlan_id,
)

if TYPE_CHECKING:
    from guestnet import attachment
    from guestnet.inventory import Row

Notice = Callable[[str], None]
"""Hears what is made on the way and what is waited for, a sentence at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """One NIC of a guest as it is after ``attach`` or ``set_nic``, or as it would be after a dry run.

    ``ifname`` is the macvtap, ``pci`` the address in the running guest, ``carrier`` None where there is no link yet.
    ``live`` and ``config`` say where the NIC is: in the running guest, in what it starts with. ``steps`` is what was
    done, nothing where it was so already; ``notes`` is what a person should know.
    """

    guest: str
    mac: str
    ifname: str
    parent: str
    mode: str
    model: str
    backend: str
    live: bool
    config: bool
    pci: str
    carrier: bool | None
    steps: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return bool(self.steps) and not self.dry_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached:
    """What ``detach`` took from a guest: the MACs of its NICs, and the rest as in ``Attached``."""

    guest: str
    macs: tuple[str, ...]
    steps: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool

    @property
    def changed(self) -> bool:
        """Whether anything was done."""
        return bool(self.steps) and not self.dry_run


def attach(
    guest: str,
    parent: str,
    *,
    vlan: int | None = None,
    outer_protocol: str | None = None,
    mode: str | None = None,
    mac: str | None = None,
    ifname: str | None = None,
    model: str | None = None,
    queues: int | None = None,
    mtu: int | None = None,
    multicast: str | None = None,
    link: str | None = None,
    boot_order: int | None = None,
    inbound: str | None = None,
    outbound: str | None = None,
    backend: str | None = None,
    live: bool = False,
    config: bool = False,
    hook: bool = True,
    timeout: float = 30.0,
    connect: str | None = None,
    dry_run: bool = False,
    notice: Notice | None = None,
) -> Attached:
    """Give the guest a NIC on the link ``parent``, now where it runs and for its next start; `guestnet attach`.

    The same call again changes nothing and gives the same NIC. What is not said takes its default, or stays as it is.
    Raises GuestnetError; guest and host are then as they were.
    """
    from guestnet import attachment

    request = Request(
        parent=parent, vlan=None if vlan is None else vlan_id(vlan),
        outer=None if outer_protocol is None else VlanProtocol.parse(outer_protocol),
        mac=None if mac is None else Mac(mac), mode=None if mode is None else Mode.parse(mode),
        ifname=None if ifname is None else LinkName(ifname), backend=_word(Backend, backend), model=model,
        queues=queues, mtu=mtu, multicast=_word(Multicast, multicast), link=_word(LinkState, link),
        boot_order=boot_order, inbound=None if inbound is None else Bandwidth.parse(inbound),
        outbound=None if outbound is None else Bandwidth.parse(outbound),
    )  # fmt: skip
    how = attachment.Options(
        uri=libvirt_uri(connect), live=live, config=config, dry_run=dry_run, timeout=timeout, notice=notice, hook=hook
    )
    return _attached(attachment.attach(guest, (request,), how))


def set_nic(
    guest: str,
    nic: str,
    *,
    mode: str | None = None,
    link: str | None = None,
    mtu: int | None = None,
    inbound: str | None = None,
    outbound: str | None = None,
    live: bool = False,
    config: bool = False,
    connect: str | None = None,
    dry_run: bool = False,
    notice: Notice | None = None,
) -> Attached:
    """Change the guest's NIC of that MAC or interface name; `guestnet set`.

    Raises GuestnetError; the NIC is then as it was.
    """
    from guestnet import attachment
    from guestnet.plan.change import Change

    wanted = Change(
        mode=None if mode is None else Mode.parse(mode), link=_word(LinkState, link), mtu=mtu,
        inbound=None if inbound is None else (Bandwidth.parse(inbound),),
        outbound=None if outbound is None else (Bandwidth.parse(outbound),),
    )  # fmt: skip
    how = attachment.Options(uri=libvirt_uri(connect), live=live, config=config, dry_run=dry_run, notice=notice)
    return _attached(attachment.change(guest, nic, wanted, how))


def detach(
    guest: str,
    *nics: str,
    everything: bool = False,
    live: bool = False,
    config: bool = False,
    timeout: float = 30.0,
    connect: str | None = None,
    dry_run: bool = False,
    notice: Notice | None = None,
) -> Detached:
    """Take the NICs of these MACs or interface names from the guest, or ``everything``; `guestnet detach`.

    Raises GuestnetError: NotFoundError where a NIC is not there, TimedOutError where the guest did not let go of it
    in ``timeout`` seconds.
    """
    if bool(nics) == everything:
        raise UsageError("say which NICs, or everything", hint=f'list_nics("{guest}") gives its NICs')

    from guestnet import attachment

    how = attachment.Options(
        uri=libvirt_uri(connect), live=live, config=config, dry_run=dry_run, timeout=timeout, notice=notice
    )
    done = attachment.detach(guest, nics, how, everything=everything)
    return Detached(
        guest=done.guest, macs=tuple(one.mac for one in done.nics), steps=tuple(map(str, done.steps)),
        notes=done.notes, seconds=done.seconds, dry_run=done.dry_run,
    )  # fmt: skip


def list_nics(guest: str | None = None, *, connect: str | None = None) -> tuple["Row", ...]:
    """The NICs of all guests, or of one, with what is out of line with them in ``problems``; `guestnet list --json`.

    Raises NotFoundError where there is no such guest.
    """
    from guestnet import inventory

    return inventory.rows(libvirt_uri(connect), guest)


def mac_of(guest: str, parent: str, *, vlan: int | None = None) -> str:
    """The MAC that the first NIC of a guest of this name on this parent gets from ``attach`` on this machine.

    Neither has to be there yet. Raises UsageError for what can be no guest or parent.
    """
    from guestnet import machine, templates
    from guestnet.guest import xml
    from guestnet.plan.unseen import attach_unseen

    xml.check_name(guest, "guest")
    request = Request(parent=parent, vlan=None if vlan is None else vlan_id(vlan))
    made = attach_unseen((request,), guest, machine.machine_id(), templates=templates.interfaces())
    return str(made.nics[0].mac)


def _attached(done: "attachment.Outcome") -> Attached:
    [nic] = done.nics
    return Attached(
        guest=done.guest, mac=str(nic.mac), ifname=str(nic.ifname), parent=str(nic.parent), mode=str(nic.mode),
        model=nic.model, backend=str(nic.backend), live=nic.live, config=nic.config, pci=nic.pci, carrier=nic.carrier,
        steps=tuple(map(str, done.steps)), notes=done.notes, seconds=done.seconds, dry_run=done.dry_run,
    )  # fmt: skip


_Word = TypeVar("_Word", bound=StrEnum)


def _word(kind: type[_Word], text: str | None) -> _Word | None:
    return None if text is None else one_of(kind, text)
