"""The plan of NICs for a QEMU without libvirt: the links they need, and the words that QEMU is told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from guestnet.errors import ConflictError, NotFoundError, UsageError
from guestnet.model import (
    GROUP,
    HOST_ALIAS,
    Kind,
    Link,
    Mac,
    Mode,
    Multicast,
    NewLink,
    Request,
)
from guestnet.plan.host import Host
from guestnet.plan.nic import check_model
from guestnet.plan.parent import (
    MTU_MAX,
    Parent,
    check_guest_mode,
    check_mac,
    check_mtu,
    check_parent,
    describe,
    make_link,
    make_parent,
    parent_notes,
    resolve_parent,
)
from guestnet.plan.steps import DeleteLink, LinkStep

_DRIVERS = {
    "virtio": "virtio-net-pci",
    "virtio-transitional": "virtio-net-pci-transitional",
    "virtio-non-transitional": "virtio-net-pci-non-transitional",
}
"""What QEMU calls a model where it is not the same word (hw/virtio/virtio-net-pci.c)."""

_PORTS = ("pcie-root-port", "ioh3420", "xio3130-downstream")
"""Devices with room for one other."""
_BRIDGES = ("pci-bridge", "pcie-pci-bridge")
"""Devices with room for 31 others."""

PORT_HINT = "start QEMU with a port for each NIC: -device pcie-root-port,id=rp1,chassis=1,slot=1"
"""What to do where QEMU has no room for a NIC."""


class Vhost(StrEnum):
    """Whether the kernel moves a NIC's frames itself: where it can, always, or never."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One NIC as it will be. ``parent`` is as a person said it, ``mtu`` what a virtio guest is told."""

    mac: Mac
    ifname: str
    parent: str
    mode: Mode = Mode.BRIDGE
    model: str = "virtio"
    queues: int = 1
    mtu: int | None = None

    @property
    def id(self) -> str:
        """What QEMU calls its device and its netdev: derived from the MAC, as an ID may not have all that a name of a
        link may have (id_wellformed, util/id.c)."""
        return id_of(self.mac)

    @property
    def virtio(self) -> bool:
        """Whether it has queues, an MTU it is told, and can be served by vhost-net."""
        return self.model.startswith("virtio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The plan of the links of some NICs."""

    nics: tuple[Nic, ...]
    steps: tuple[LinkStep, ...]
    notes: tuple[str, ...]


def id_of(mac: str) -> str:
    """What QEMU calls the NIC of that MAC where guestnet plugged it in."""
    return "gn" + mac.replace(":", "")


def check_requests(requests: Sequence[Request], vhost: Vhost) -> None:
    """Raise UsageError for words that no host would take."""
    for request in requests:
        check_guest_mode(request.mode)
        check_model(request.model or "virtio", request.queues)
        if vhost is Vhost.ON and request.model is not None and not request.model.startswith("virtio"):
            raise UsageError(f"vhost-net is for virtio, not for the model {request.model}", hint="leave --vhost out")
    for word, values in (
        ("MAC", [request.mac for request in requests]),
        ("interface name", [request.ifname for request in requests]),
    ):
        said = [value for value in values if value is not None]
        for value in said:
            if said.count(value) > 1:
                raise UsageError(f"the {word} {value} is asked for twice", hint="give each NIC its own")


def wire(
    requests: Sequence[Request], host: Host, *, guest: str, machine_id: str, alias: str, stale: Iterable[Link] = ()
) -> Wiring:
    """The plan that makes the macvtaps of these NICs, marked with ``alias``.

    A MAC that is not said is derived from this host, the name of the guest and the parent: the first that is unused.
    ``stale`` links, which nobody has open any more, are deleted before. A macvtap of the host's own that is there just
    so is used. Raises what any of the checks raises.
    """
    stale = tuple(stale)
    host = replace(host, links=tuple(link for link in host.links if link not in stale))
    steps: dict[LinkStep, None] = {DeleteLink(name=link.name, index=link.index): None for link in stale}
    nics: list[Nic] = []
    notes: list[str] = []
    taken: list[tuple[tuple[object, ...], Nic]] = []
    for request in requests:
        parent = resolve_parent(request.parent, request.vlan, host, request.outer)
        nic, there = _nic(request, parent, host, taken, guest=guest, machine_id=machine_id, alias=alias)
        new = NewLink(
            kind=Kind.MACVTAP, name=nic.ifname, parent=parent.device, mode=nic.mode, mac=nic.mac, mtu=nic.mtu,
            multicast=request.multicast or Multicast.ALL, alias=alias,
        )  # fmt: skip
        made = make_parent(parent) + (() if there else make_link(new, quiet=True))
        steps.update(dict.fromkeys(made))
        notes += [f"{link.readable} was down and is brought up" for link in parent.down]
        notes += parent_notes(parent)
        nics.append(nic)
        taken.append((parent.identity, nic))
    return Wiring(nics=tuple(nics), steps=tuple(steps), notes=tuple(dict.fromkeys(notes)))


def _nic(
    request: Request,
    parent: Parent,
    host: Host,
    taken: list[tuple[tuple[object, ...], Nic]],
    *,
    guest: str,
    machine_id: str,
    alias: str,
) -> tuple[Nic, bool]:
    """The NIC, and whether its macvtap is there just so."""
    mode = request.mode or Mode.BRIDGE
    check_parent(parent, host)
    check_mtu(request.mtu, parent)
    siblings = [nic for place, nic in taken if place == parent.identity]
    if siblings and Mode.PASSTHRU in (mode, *(nic.mode for nic in siblings)):
        raise ConflictError(f"mode passthru takes {parent.name} whole, for one NIC", hint="choose mode bridge")
    mac = _mac(request, parent, host, [nic.mac for _, nic in taken], guest=guest, machine_id=machine_id, alias=alias)
    model = request.model or "virtio"
    mtu = request.mtu
    if mtu is None and model.startswith("virtio") and parent.base.mtu != 1500:
        mtu = min(parent.base.mtu, MTU_MAX)  # the guest would send 1500 by itself
    nic = Nic(
        mac=mac, ifname=request.ifname or mac.ifname, parent=parent.name, mode=mode, model=model,
        queues=request.queues or 1, mtu=mtu,
    )  # fmt: skip
    there = host.find(nic.ifname)
    if there is not None:
        if not _is_so(there, nic, parent, alias):
            raise ConflictError(
                f"the interface name {nic.ifname} is taken by {describe(there, host)}",
                hint="choose another with --ifname, or another --mac",
            )
        return nic, True
    check_parent(parent, host, mode=mode)
    if mode is not Mode.PASSTHRU:
        check_mac(mac, parent, host)
    return nic, False


def _mac(
    request: Request, parent: Parent, host: Host, taken: Sequence[str], *, guest: str, machine_id: str, alias: str
) -> Mac:
    if request.mode is Mode.PASSTHRU:
        if request.mac is not None and request.mac != parent.base.mac:
            raise ConflictError(
                f"in mode passthru the guest has the MAC of {parent.name}, {parent.base.mac}; {request.mac} would be "
                "ignored by the kernel",
                hint="leave --mac out",
            )
        return Mac(parent.base.mac)
    if request.mac is not None:
        return request.mac
    # the host's own links are there to be used again: their MAC is not taken
    used = {link.mac for link in host.links if not (alias == HOST_ALIAS == link.alias and link.ours)}
    ordinal = 0
    while True:
        mac = Mac.derive(machine_id, guest, parent.readable, ordinal)
        if mac not in used and mac not in taken:
            return mac
        ordinal += 1


def _is_so(link: Link, nic: Nic, parent: Parent, alias: str) -> bool:
    """Whether it is a macvtap of the host's own just as this NIC needs it."""
    return (
        alias == HOST_ALIAS == link.alias
        and link.group == GROUP
        and parent.link is not None
        and (link.kind, link.mac, link.mode, link.up) == (Kind.MACVTAP, nic.mac, nic.mode, True)
        and (link.parent, link.parent_netnsid) == (parent.link.index, None)
        and nic.mtu in (None, link.mtu)
    )


# What QEMU is told


def netdev(nic: Nic, fds: Sequence[object], vhost_fds: Sequence[object] = ()) -> dict[str, object]:
    """The netdev of a NIC as QMP takes it (NetdevTapOptions, qapi/net.json). The fds are numbers, or names of fds that
    QEMU was given."""
    words: dict[str, object] = {"type": "tap", "id": nic.id}
    words |= {"fd": str(fds[0])} if len(fds) == 1 else {"fds": ":".join(map(str, fds))}
    if vhost_fds:
        words |= {"vhost": True}
        words |= {"vhostfd": str(vhost_fds[0])} if len(fds) == 1 else {"vhostfds": ":".join(map(str, vhost_fds))}
    return words


def device(nic: Nic, bus: str = "") -> dict[str, object]:
    """The device of a NIC as QMP takes it."""
    words: dict[str, object] = {
        "driver": _DRIVERS.get(nic.model, nic.model), "id": nic.id, "netdev": nic.id, "mac": str(nic.mac),
    }  # fmt: skip
    if nic.queues > 1:
        # one vector for each queue's two directions, one for the control queue, one for the configuration
        words |= {"mq": True, "vectors": 2 * nic.queues + 2}
    if nic.virtio and nic.mtu is not None:
        words |= {"host_mtu": nic.mtu}
    return words | ({"bus": bus} if bus else {})


def command_line(nic: Nic, fds: Sequence[object], vhost_fds: Sequence[object] = ()) -> tuple[str, ...]:
    """The two options, each with its argument, that give a QEMU this NIC when it is started."""
    backend, front = netdev(nic, fds, vhost_fds), device(nic)
    return ("-netdev", _joined(backend, "type"), "-device", _joined(front, "driver"))


def _joined(words: Mapping[str, object], first: str) -> str:
    """As QEMU's command line takes it: a comma within a value is doubled (qemu-options, util/keyval.c)."""
    parts = [_escaped(words[first])]
    parts += [f"{name}={_escaped(value)}" for name, value in words.items() if name != first]
    return ",".join(parts)


def _escaped(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value).replace(",", ",,")


def model_of(driver: str) -> str:
    """The model that QEMU has under that name."""
    return next((model for model, name in _DRIVERS.items() if name == driver), driver)


def guest_name(words: Sequence[str]) -> str:
    """The name that QEMU's command line gives the guest (``-name NAME``, ``-name guest=NAME,…``); empty for none."""
    for option, value in pairwise(words):
        if option in ("-name", "--name"):
            for part in value.replace(",,", "\0").split(","):
                key, equals, text = part.partition("=")
                if not equals or key == "guest":
                    return (text if equals else key).replace("\0", ",")
    return ""


# A running QEMU


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A PCI port or bridge of a running QEMU: its ID, which is also the name of its bus, its type, how many devices are
    behind it, and whether one can be plugged in there while the guest runs."""

    id: str
    type: str
    devices: int
    hotplug: bool


def is_port(kind: str) -> bool:
    """Whether QEMU's device of that type has a bus that a NIC could be plugged into."""
    return kind in _PORTS + _BRIDGES


def choose_buses(ports: Sequence[Port], count: int, *, root: bool) -> tuple[str, ...]:
    """A bus for each of ``count`` NICs: free root ports first, then bridges; empty names where QEMU shall choose.

    ``root`` says whether its root bus may take them. Raises ConflictError where there is no room.
    """
    free = [port.id for port in ports if port.hotplug and port.type in _PORTS and not port.devices]
    bridges = [port.id for port in ports if port.hotplug and port.type in _BRIDGES and port.devices + count <= 31]
    if len(free) < count and bridges:
        free += [bridges[0]] * (count - len(free))
    if len(free) >= count:
        return tuple(free[:count])
    if root:
        return ("",) * count
    have = f"{len(free)} PCI ports are free for hot-plug, and {count} are needed" if free else "no PCI port is free"
    raise ConflictError(f"{have}; the root bus of this QEMU takes no hot-plug", hint=PORT_HINT)


_UNFIT = {
    "inmigrate": "is waiting for an incoming migration",
    "finish-migrate": "is being migrated away",
    "postmigrate": "was migrated away",
    "save-vm": "is being saved",
    "restore-vm": "is being restored",
    "preconfig": "is not set up yet (-preconfig)",
    "internal-error": "has met an internal error",
    "shutdown": "has shut down",
}


def check_state(status: str, *, unplug: bool) -> None:
    """Raise ConflictError where a QEMU of that RunState (qapi/run-state.json) takes no NIC, or cannot give one back: a
    guest that does not run answers no request to let go."""
    if status in _UNFIT:
        raise ConflictError(f"the guest {_UNFIT[status]}", hint="wait until it runs")
    if unplug and status not in ("running", "debug"):
        what = "has not been started yet" if status == "prelaunch" else f"does not run ({status})"
        raise ConflictError(f"the guest {what}, so it cannot let go of a NIC", hint="let it run: QMP cont")


def unknown_nic(name: str, known: Iterable[str]) -> NotFoundError:
    """The error for a NIC that a QEMU has not."""
    from difflib import get_close_matches

    names = [*known]
    near = get_close_matches(name, names, n=2)
    shown = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names)}" if names else "it has none"
    return NotFoundError(f"this QEMU has no NIC {name}", hint=shown)


# Its helper protocol


def told_of(line: Sequence[str], helper: Sequence[str], bridge: str) -> tuple[str, ...]:
    """The MACs of a QEMU's NICs whose tap is made by a helper called with the words ``helper``, in the order of QEMU's
    line; where none is, those of any helper, as ours may be called by a script.

    ``bridge`` is what QEMU called the bridge. A NIC without a MAC of its own is left out: QEMU gives it one that all
    QEMUs have.
    """
    named: list[str] = []
    others: list[str] = []
    devices = [_options(value, "driver") for value in _values(line, "-device")]
    for value in (*_values(line, "-netdev"), *_values(line, "-nic")):
        backend = _options(value, "type")
        kind, said = backend.get("type"), backend.get("helper", "")
        if kind not in ("tap", "bridge") or (kind == "tap" and not said) or backend.get("br", "br0") != bridge:
            continue
        fronts = [one for one in devices if one.get("netdev", "") == backend.get("id")]
        mac = (fronts[0] if fronts else backend).get("mac", "").lower()
        if mac:
            (named if _words(said)[-len(helper) :] == [*helper] else others).append(mac)
    return tuple(named or others)


def _words(text: str) -> list[str]:
    from shlex import split

    try:
        return split(text)
    except ValueError:
        return []


def _values(line: Sequence[str], option: str) -> list[str]:
    return [value for word, value in pairwise(line) if word in (option, "-" + option)]


def _options(text: str, first: str) -> dict[str, str]:
    """The argument of an option of QEMU's as its names and values: as ``first,name=value,…`` or as JSON."""
    if text.startswith("{"):
        import json

        try:
            read = json.loads(text)
        except ValueError:
            return {}
        return {str(name): str(value) for name, value in read.items()} if isinstance(read, dict) else {}
    found = {}
    for number, part in enumerate(text.replace(",,", "\0").split(",")):
        name, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            found[name] = value
        else:
            found[first if not number else name] = name if not number else "on"
    return found
