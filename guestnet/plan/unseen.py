"""The plan of an attach without a look at host or guest: what `guestnet xml` prints."""

from guestnet.errors import UsageError
from guestnet.model import NAME_MAX, Backend, Guest, Link, LinkName, Mode, Request
from guestnet.plan.attach import Attaching, attach
from guestnet.plan.host import Host
from guestnet.plan.parent import MTU_MAX, resolve_parent
from guestnet.plan.situation import Situation


def attach_unseen(
    requests: tuple[Request, ...], guest: str, machine_id: str, *, templates: dict[Backend, bytes]
) -> Attaching:
    """The plan that gives a stopped guest of that name these NICs, on a host where every parent is there and fits.

    So an attach plugs in the very same XML, unless it finds that the parent of a type='direct' NIC has another name.
    Raises UsageError and ConflictError for what no host would take, and for the MAC of a passthru NIC that was not
    given.
    """
    whole = [one for one in requests if one.mode is Mode.PASSTHRU and one.backend is not Backend.DIRECT]
    for request in whole:
        if request.mac is None:
            raise UsageError(
                f"in mode passthru the guest has the MAC of {request.parent}, which is not looked up here",
                hint=f"give it with --mac: cat /sys/class/net/{request.parent}/address",
            )
    names = dict.fromkeys(_nic(request.parent) for request in requests)
    macs = {_nic(request.parent): request.mac for request in whole}
    links = tuple(
        Link(
            index=number, name=LinkName(name), mac=macs.get(name) or "", up=True, loopback=name == "lo",
            mtu=MTU_MAX if any(request.mtu is not None for request in requests) else 1500,
        )
        for number, name in enumerate(names, 1)
    )  # fmt: skip
    now = Situation(
        host=Host(links=links),
        guest=Guest(name=guest, uuid="", state="shut off", live=None, config="<domain/>"),
        machine_id=machine_id,
    )
    return attach(requests, now, live=False, config=True, templates=templates)


def device_unseen(parent: str) -> str:
    """The name in the kernel of a parent that may be a VLAN with a name too long for it. Raises UsageError."""
    nic = LinkName(_nic(parent) if len(parent) > NAME_MAX else parent)
    host = Host(links=(Link(index=1, name=nic, up=True),))
    return resolve_parent(parent, None, host).device


def _nic(name: str) -> str:
    """What is left of ``NIC.VID`` without the VLAN IDs."""
    nic, _, tail = name.rpartition(".")
    return _nic(nic) if nic and tail.isascii() and tail.isdigit() and 1 <= int(tail[:5]) <= 4094 else name
