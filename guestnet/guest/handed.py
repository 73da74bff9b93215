"""The domain XML that libvirt hands to its hook: input from whoever may edit domains.

Each NIC on record is read by itself and held against its <interface>. What is not as guestnet writes it is refused,
and the others count.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lxml import etree

from guestnet.errors import GuestnetError, UsageError
from guestnet.guest import xml
from guestnet.model import Backend, Mac, ParentName

LARGEST = 16 << 20
"""Bytes of XML that are read. libvirt takes 4 MiB over its socket (VIR_NET_MESSAGE_STRING_MAX), and adds to it."""

_SAID_LONGEST = 200
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One NIC: its record and its <interface>, which say the same."""

    record: xml.Record
    interface: xml.Interface

    @property
    def device(self) -> str:
        """The link that libvirt needs for it: the macvtap, or for type='direct' the parent."""
        return _device(self.interface)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A NIC that is left alone, and why. ``device`` is the link that libvirt needs for it, empty where it needs none;
    ``fatal`` says that the guest must not start on the link that has the name."""

    nic: str
    why: str
    device: str = ""
    fatal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A domain as its XML says it: the NICs that guestnet looks after, and those it refuses to."""

    name: str
    uuid: str
    nics: tuple[Nic, ...]
    refused: tuple[Refused, ...]


def read(data: bytes, name: str) -> Handed:
    """The guest of that name in a domain XML. Raises UsageError for what is no XML, has a DTD, or is too large.

    A record whose <interface> is not there (somebody took it away) is not about any NIC, and passed over.
    """
    root = _domain(data, name)
    uuid = str(root.findtext("uuid") or "")
    if not _UUID.fullmatch(uuid):
        raise UsageError(f"the XML of {name} has no UUID")
    shown = tuple(said for _, said in _interfaces(root))
    nics: list[Nic] = []
    refused: list[Refused] = []
    met: list[xml.Interface] = []
    for element in _records(root, refused):
        mac, target = str(element.get("mac", "")).lower(), str(element.get("ifname", ""))
        about = next((one for one in shown if one.mac == mac or (target and one.target == target)), None)
        met += [about] if about is not None else []
        try:
            nic = _nic(element, shown)
            if nic is None:
                continue
            if any(nic.record.mac == other.record.mac or nic.device == other.interface.target for other in nics):
                raise UsageError("another record is about the same NIC")
            nics.append(nic)
        except (UsageError, ValueError) as error:
            device = _device(about) if about is not None else ""
            refused.append(Refused(nic=f"NIC {_short(mac)}", why=_short(str(error)), device=device))
    refused += [
        Refused(nic=f"NIC {one.mac}", why="there is no record of it in the metadata", device=one.target)
        for one in shown
        if one not in met and _is_named_by_us(one)
    ]
    return Handed(name=name, uuid=uuid, nics=tuple(nics), refused=tuple(refused))


def rewrite(data: bytes, name: str, here: Callable[[xml.Record], tuple[str, str]]) -> tuple[bytes, list[str]]:
    """The domain XML with its parents as they are called here, and what was changed, in words.

    ``here`` gives a parent's name, and its name in the kernel. Raises as ``read`` does; a record that is refused there
    stays as it is.
    """
    root = _domain(data, name)
    known = {str(nic.record.mac): nic for nic in read(data, name).nics}
    changes = []
    for element in _records(root, []):
        nic = known.get(_mac(element))
        if nic is None:
            continue
        parent, device = here(nic.record)
        if parent == nic.record.parent and device in ("", nic.interface.source):
            continue
        element.set("parent", str(ParentName(parent)))
        if nic.record.backend is Backend.DIRECT:
            for one, shown in _interfaces(root):
                # of a <teaming> pair the other one has the same MAC
                if shown == nic.interface and one.find("source") is not None:
                    one.find("source").set("dev", device or parent)
        changes.append(f"NIC {nic.record.mac}: {nic.record.parent} is {parent} here")
    return etree.tostring(root, encoding="utf-8"), changes


def _domain(data: bytes, name: str) -> Any:
    what = f"the XML of {name}"
    if len(data) > LARGEST:
        raise UsageError(f"{what} is larger than {LARGEST >> 20} MiB")
    return xml.parse(data, what)


def _records(root: Any, refused: list[Refused]) -> list[Any]:
    try:
        return xml.record_elements(root)
    except UsageError as error:
        refused.append(Refused(nic="its metadata", why=_short(str(error))))
        return []


def _interfaces(root: Any) -> Iterator[tuple[Any, xml.Interface]]:
    """The elements, and what each of them says."""
    for element in root.findall("./devices/interface"):
        try:
            yield element, xml.read_interface(element)
        except ValueError:
            continue  # libvirt writes numbers as numbers; whatever this is, it is none of ours


def _nic(element: Any, shown: tuple[xml.Interface, ...]) -> Nic | None:
    record = xml.read_record(element)
    same = [one for one in shown if one.mac == record.mac]
    if not same:
        return None
    # of a <teaming> pair one is ours
    direct = record.backend is Backend.DIRECT
    mine = (one for one in same if (one.type == "direct" if direct else one.target == record.ifname))
    interface = next(mine, same[0])
    if direct:
        if interface.type != "direct":
            raise UsageError(f"its <interface> is of type {interface.type}, the record says direct")
    elif not record.ifname:
        raise UsageError("its record names no macvtap")
    elif (interface.type, interface.managed, interface.target) != ("ethernet", False, record.ifname):
        raise UsageError(
            f"its <interface> is of type {interface.type} on {interface.target!r}, the record says {record.ifname!r}"
        )
    return Nic(record=record, interface=interface)


def _mac(element: Any) -> str:
    try:
        return xml.read_record(element).mac
    except (GuestnetError, ValueError):
        return ""


def _device(interface: xml.Interface) -> str:
    if interface.type == "direct":
        return interface.source
    return interface.target if interface.type == "ethernet" and not interface.managed else ""


def _is_named_by_us(interface: xml.Interface) -> bool:
    try:
        return bool(_device(interface)) and interface.target == Mac(interface.mac).ifname
    except UsageError:
        return False


def _short(text: str) -> str:
    half = _SAID_LONGEST // 2
    return text if len(text) <= _SAID_LONGEST else f"{text[:half]}…{text[-half:]}"
