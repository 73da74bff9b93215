"""What is in a running QEMU: its NICs, and the ports that one can be plugged into. Read only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guestnet.guest.qmp import Call, Monitor
from guestnet.model import Link, Owner
from guestnet.plan import qemu as plan
from guestnet.plan.host import Host
from guestnet.qemu.nics import GUEST

PERIPHERAL = "/machine/peripheral"
"""Where QEMU's object tree has the devices with an ID."""

_NAMELESS = "/machine/peripheral-anon"
_Q35_ROOT = "/machine/q35/pcie.0"
_PROPERTIES = ("mac", "netdev", "mq", "vectors", "parent_bus")
_HANDLER = "hotplug-handler"
"""The property of a bus that QEMU itself looks at to know if it takes hot-plug (qbus_is_hotpluggable, hw/core)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One NIC of a running QEMU: its ID there, which may be empty, its MAC and model, and the bus it is plugged into.

    ``ifname``, ``parent`` and ``mode`` are of the macvtap that guestnet made for it on this host, empty where it is on
    none; ``carrier`` is the macvtap's.
    """

    id: str
    mac: str
    model: str
    bus: str
    queues: int
    ifname: str = ""
    parent: str = ""
    mode: str = ""
    carrier: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that may be a NIC: where QEMU's object tree has it, its ID (or none), its type, and its properties."""

    path: str
    id: str
    type: str
    properties: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A running QEMU as it was looked at: the guest's name and state (RunState, qapi/run-state.json), the devices, the
    ports, and whether its root bus may take a NIC."""

    guest: str
    status: str
    devices: tuple[Device, ...]
    ports: tuple[plan.Port, ...]
    root: bool

    def rows(self, links: Sequence[Link]) -> tuple[Row, ...]:
        """The NICs by their ID, those without at the end."""
        found = [row for device in self.devices if (row := _row(device, links)) is not None]
        return tuple(sorted(found, key=lambda row: (not row.id, row.id)))


def look(qemu: Monitor) -> Seen:
    """Look at a running QEMU, in two turns."""
    name, status, *lists = qemu.several([("query-name", {}), ("query-status", {}), _list(PERIPHERAL), _list(_NAMELESS)])
    named, nameless = map(_children, lists)
    ports = [(kind, name) for kind, name in named if plan.is_port(kind)]
    buses = [f"{PERIPHERAL}/{name}/{name}" for _, name in ports]
    others = [(PERIPHERAL, *one) for one in named if one not in ports] + [(_NAMELESS, *one) for one in nameless]
    calls = [_list(bus) for bus in buses] + [_get(bus, _HANDLER) for bus in (*buses, _Q35_ROOT)]
    calls += [_get(f"{directory}/{name}", word) for directory, _, name in others for word in _PROPERTIES]
    answers = iter(qemu.several(calls))
    inside = [sum(child["name"].startswith("child[") for child in next(answers) or ()) for _ in buses]
    handlers = [next(answers) for _ in (*buses, _Q35_ROOT)]
    return Seen(
        guest=str(name.get("name") or GUEST),
        status=str(status["status"]),
        ports=tuple(
            plan.Port(id=name, type=kind, devices=count, hotplug=bool(handler))
            for (kind, name), count, handler in zip(ports, inside, handlers[:-1], strict=True)
        ),
        root=handlers[-1] != "",  # None where there is no such bus
        devices=tuple(
            Device(
                path=f"{directory}/{name}", id=name if directory == PERIPHERAL else "", type=kind,
                properties={word: next(answers) for word in _PROPERTIES},
            )
            for directory, kind, name in others
        ),
    )  # fmt: skip


def questions(nic: plan.Nic, bus: str) -> list[Call]:
    """What QEMU is asked of one NIC that was plugged in, into that bus or into one that it chose."""
    return [_get(f"{PERIPHERAL}/{nic.id}", word) for word in _unknown(nic, bus)]


def row_of(nic: plan.Nic, bus: str, answers: Sequence[object], links: Sequence[Link]) -> Row | None:
    """That NIC by QEMU's answers; None where it is not there."""
    said = {"parent_bus": bus, "mq": None, "vectors": None} | dict(zip(_unknown(nic, bus), answers, strict=True))
    return _row(Device(path=f"{PERIPHERAL}/{nic.id}", id=nic.id, type=nic.model, properties=said), links)


def _unknown(nic: plan.Nic, bus: str) -> tuple[str, ...]:
    """The properties that do not go without saying. Each costs half a millisecond: QEMU reads a byte at a time
    (monitor_can_read, monitor/monitor.c)."""
    return ("mac", "netdev", *(("mq", "vectors") if nic.queues > 1 else ()), *(() if bus else ("parent_bus",)))


def can_be_unplugged(qemu: Monitor, row: Row) -> bool:
    """Whether the bus it is on takes hot-plug."""
    (bus,) = qemu.several([_get(f"{PERIPHERAL}/{row.id}", "parent_bus")])
    return bool(bus) and bool(qemu.several([_get(str(bus), _HANDLER)])[0])


def on_link(row: Row, link: Link, links: Sequence[Link]) -> Row:
    """The row with what it is on."""
    lower = Host(links=tuple(links)).below(link)
    return replace(
        row, ifname=link.name, mode=str(link.mode or ""), parent=lower.readable if lower is not None else "",
        carrier=link.carrier,
    )  # fmt: skip


def _row(device: Device, links: Sequence[Link]) -> Row | None:
    """What has a MAC and a netdev is a NIC."""
    said = device.properties
    mac, netdev, vectors = said["mac"], said["netdev"], said["vectors"]
    if not isinstance(mac, str) or not isinstance(netdev, str):
        return None
    mac = mac.lower()
    row = Row(
        id=device.id, mac=mac, model=plan.model_of(device.type), bus=str(said["parent_bus"] or "").rpartition("/")[2],
        queues=max(1, (vectors - 2) // 2) if said["mq"] and isinstance(vectors, int) else 1,
    )  # fmt: skip
    link = next((link for link in links if link.mac == mac and link.owner is Owner.QEMU), None)
    return row if link is None or netdev != plan.id_of(mac) else on_link(row, link, links)


def _list(path: str) -> Call:
    return "qom-list", {"path": path}


def _get(path: str, name: str) -> Call:
    return "qom-get", {"path": path, "property": name}


def _children(listed: Sequence[Mapping[str, str]] | None) -> list[tuple[str, str]]:
    """Type and name of each child of an object (qom-list calls their type ``child<TYPE>``)."""
    return [
        (one["type"].removeprefix("child<").removesuffix(">"), one["name"])
        for one in listed or ()
        if one["type"].startswith("child<")
    ]
