"""The systemd unit that brings a topology up at each boot."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from guestnet import templates, units
from guestnet.plan.host import Host
from guestnet.plan.layout import Node, Topology
from guestnet.plan.topology import parents
from guestnet.plan.unit import WriteUnit, card, command_line, device_unit, escaped, filled
from guestnet.topology import document

_TEMPLATE = "systemd/guestnet-topology.service"


def unit_name(topology: str) -> str:
    """The unit of a topology, by that one's name."""
    return f"guestnet-topology-{escaped(topology)}.service"


def unit(
    topology: Topology, node: Node, host: Host, source: str, stand_ins: Mapping[str, str], options: Iterable[str]
) -> WriteUnit:
    """The unit that brings a node's part up from that file, with these options, when the cards that it needs are there.

    It takes nothing down when it is stopped: guests would lose NICs of their configuration at each shutdown.
    """
    cards = dict.fromkeys(card(parent.base, host).name for parent in parents(node, host, stand_ins).values())
    start = [*units.ME, "topology", "up", document.from_anywhere(source), "--node", node.name]
    start += [word for name, link in stand_ins.items() for word in ("--parent", f"{name}={link}")]
    words = {
        "NAME": topology.name, "DEVICES": " ".join(map(device_unit, cards)),
        "START": command_line([*start, *options]),
    }  # fmt: skip
    return WriteUnit(name=unit_name(topology.name), text=filled(templates.read(_TEMPLATE).decode(), words))


def notes(source: str) -> tuple[str, ...]:
    """What a person should know who has such a unit written: it reads the file again at each boot."""
    return units.notes(*([Path(source)] if document.is_file(source) else []))
