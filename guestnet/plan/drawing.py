"""Pictures of networks in characters: what stands on which link, as a person would draw it in a note."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from guestnet.inet import Route
from guestnet.model import NAME_MAX, Kind, Mac, Mode
from guestnet.plan.layout import Endpoint, Node, Topology, Where, Wire

WIDTH = 120
"""Characters in a line, beyond which hosts are drawn one below the other."""

_SLANTS = 3  # lines between what stands on a link and the link's name
_STRAIGHT = 1  # the same on the path of a frame, where one thing stands on one other
_GAP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A link that something has: ``title`` says what, and is empty for the host; ``marks`` are what is wrong."""

    name: str
    title: str
    lines: tuple[str, ...]
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem:
    """A link that others stand on: a NIC, a VLAN, a bond; on the path of a frame also a macvtap and its device node.

    ``words`` say what it does there.
    """

    name: str
    above: tuple["Leaf | Stem", ...]
    marks: tuple[str, ...] = ()
    words: str = ""

    @property
    def straight(self) -> bool:
        """Whether it is a part of a frame's path that nothing joins here."""
        return bool(self.words) and len(self.above) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPicture:
    """A host: its stems, each with the name of the wire it is plugged into, which may be empty."""

    name: str
    stems: tuple[tuple[Stem, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Hosts side by side, and what is said below: pairs that do not reach each other."""

    hosts: tuple[HostPicture, ...]
    below: tuple[str, ...] = ()


def of_topology(
    topology: Topology,
    *,
    links: Mapping[tuple[str, str], str] | None = None,
    marks: Mapping[str, Sequence[str]] | None = None,
    below: Iterable[str] = (),
    macs: Mapping[str, Mac] | None = None,
) -> Picture:
    """The picture of a topology: ``links`` are what a parent is called where it differs, by node and parent; ``marks``
    are what is wrong, by an endpoint's title or by node and parent with a slash. ``macs`` are by an endpoint's title;
    with them the path of each guest's frames is drawn."""
    hosts = tuple(_host(node, links or {}, marks or {}, macs) for node in topology.nodes)
    return Picture(hosts=hosts, below=tuple(below))


def _host(
    node: Node,
    links: Mapping[tuple[str, str], str],
    marks: Mapping[str, Sequence[str]],
    macs: Mapping[str, Mac] | None,
) -> HostPicture:
    names = {wire.name: links.get((node.name, wire.name)) or node.parent_of(wire.name) for wire in node.wires}

    def end(endpoint: Endpoint) -> Leaf | Stem:
        if macs is None or endpoint.kind not in (Where.GUEST, Where.QEMU):
            return _leaf(endpoint, marks)
        mac = macs[endpoint.title]
        return path(
            leaf(
                name="", kind=f"NIC {mac}", title=_title(endpoint), mode=None, routes=endpoint.routes,
                addresses=[str(one) for one in endpoint.addresses], marks=marks.get(endpoint.title, ()),
            ),
            node="/dev/tapN", link=endpoint.link or mac.ifname, mac=mac, mode=endpoint.mode,
        )  # fmt: skip

    def stem(wire: Wire) -> Stem:
        ends = [end(one) for one in node.endpoints if one.wire == wire.name]
        others = [stem(one) for one in node.wires if one.on == wire.name]
        return Stem(
            name=names[wire.name], above=(*ends, *(one for one in others if one.above)),
            marks=tuple(marks.get(f"{node.name}/{wire.name}", ())), words=path_words(wire.vlan) if macs else "",
        )  # fmt: skip

    roots = [(stem(wire), wire.name) for wire in node.wires if not wire.on]
    return HostPicture(name=node.name, stems=tuple((one, wire) for one, wire in roots if one.above))


def _leaf(endpoint: Endpoint, marks: Mapping[str, Sequence[str]]) -> Leaf:
    name = endpoint.link or endpoint.name
    return leaf(
        name=name if endpoint.kind not in (Where.GUEST, Where.QEMU) or endpoint.link else "", kind=endpoint.type,
        title=_title(endpoint), mode=endpoint.mode, addresses=[str(one) for one in endpoint.addresses],
        routes=endpoint.routes, marks=marks.get(endpoint.title, ()),
    )  # fmt: skip


def _title(endpoint: Endpoint) -> str:
    titles = {Where.NETNS: f"NS: {endpoint.inside}", Where.GUEST: f"guest: {endpoint.inside}", Where.HOST: ""}
    return titles.get(endpoint.kind, f"QEMU: {endpoint.inside}")


def path(one: Leaf, *, node: str, link: str, mac: str, mode: Mode | None) -> Stem:
    """What a guest's frames pass on the way to the parent: the device node ``node``, then the macvtap ``link``."""
    device = Stem(name=node, above=(one,), words="device node, held open by QEMU: read() and write()")
    words = [Kind.MACVTAP, *([f"mode {mode}"] if mode is not None else []), f"MAC {mac}"]
    return Stem(name=link, above=(device,), words=", ".join(words))


def path_words(vlan: int | None) -> str:
    """What a parent does on the path of a frame."""
    if vlan is not None:
        return f"VLAN {vlan}: the tag comes on and off here"
    return "the parent: its own addresses stay its own"


def leaf(
    *,
    name: str,
    kind: str,
    title: str,
    mode: Mode | None,
    addresses: Iterable[str],
    routes: Iterable[Route] = (),
    marks: Sequence[str] = (),
) -> Leaf:
    """A leaf with what is said in it: routes, the link with its kind and mode where the name does not say them, and
    addresses."""
    words = [name] if name else []
    said = [] if kind in name else [kind]
    said += [str(mode)] if mode not in (None, Mode.BRIDGE) else []
    if said:
        words.append(f"({', '.join(said)})" if words else ", ".join(said))
    lines = []
    for route in routes:
        alone = route.to.prefixlen == route.to.max_prefixlen
        to = "default" if route.to.prefixlen == 0 else str(route.to.network_address if alone else route.to)
        lines += [f"{to} via", f"  {route.via}"] if route.via is not None else [f"{to} dev"]
    lines += [""] if lines else []
    return Leaf(name=name, title=title, lines=(*lines, " ".join(words), *addresses), marks=tuple(marks))


# Blocks of characters


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines of one length, and the column of the last one that the next line down hangs on."""

    lines: tuple[str, ...]
    anchor: int

    @property
    def width(self) -> int:
        return len(self.lines[0])


def text(picture: Picture, width: int = WIDTH) -> str:
    """The picture in lines of at most ``width`` characters where it can be, with a newline at the end of each. Of a
    host too wide for it, what links do is left out."""
    blocks = [_fitting(host, width) for host in picture.hosts]
    rows: list[list[tuple[_Block, HostPicture]]] = [[]]
    used = 0
    for block, host in zip(blocks, picture.hosts, strict=True):
        if rows[-1] and used + _GAP + block.width > width:
            rows.append([])
            used = 0
        used += block.width + (_GAP if rows[-1] else 0)
        rows[-1].append((block, host))
    lines: list[str] = []
    for row in rows:
        joined, anchors = _beside([block for block, _ in row])
        lines += [*joined, *_wire(row, anchors, len(joined[0]) if joined else 0), ""]
    lines += picture.below
    while lines and not lines[-1]:
        lines.pop()
    return "".join(f"{printable(line).rstrip()}\n" for line in lines)


def printable(line: str) -> str:
    """The line with a `?` for all that is no character: names that others chose may hold what a terminal obeys."""
    return "".join(one if one.isprintable() else "?" for one in line)


def _wire(row: Sequence[tuple[_Block, HostPicture]], anchors: Sequence[int], width: int) -> list[str]:
    """The cable below hosts that are all plugged into one network, and it alone."""
    wires = {wire for _, host in row for _, wire in host.stems}
    if len(wires) != 1 or "" in wires or any(len(host.stems) != 1 for _, host in row):
        return []
    [name] = wires
    hanging = "".join("|" if column in anchors else " " for column in range(width))
    cable = "".join("+" if column in anchors else "-" for column in range(width))
    word = f" {name} "
    free = [column for column in range(2, width - len(word)) if set(cable[column : column + len(word)]) == {"-"}]
    if free:
        at = min(free, key=lambda column: abs(column + len(word) // 2 - width // 2))
        cable = cable[:at] + word + cable[at + len(word) :]
    return [hanging, cable]


def _fitting(host: HostPicture, width: int) -> _Block:
    block = _frame(host, words=True)
    return block if block.width <= width else _frame(host, words=False)


def _frame(host: HostPicture, *, words: bool) -> _Block:
    inner, anchors = _beside([_stem(stem, words=words) for stem, _ in host.stems])
    width = max([len(line) for line in inner], default=0)
    width = max(width, len(host.name) + 2)
    bottom = ["-"] * (width + 4)
    for anchor in anchors:
        bottom[anchor + 2] = "+"
    rows = [f"|  {line.ljust(width)}  |" for line in ("", *inner)]
    title = f"-- {host.name} ".ljust(width + 4, "-")
    anchor = anchors[0] + 3 if len(anchors) == 1 else 0
    return _Block((f"+{title}+", *rows, f"+{''.join(bottom)}+"), anchor)


def _stem(stem: Stem, *, words: bool) -> _Block:
    """What stands on a link, slanted lines down to it, and its name, with the ``words`` or without."""
    blocks = [_box(one) if isinstance(one, Leaf) else _stem(one, words=words) for one in stem.above]
    lines, anchors = _beside(blocks)
    said = [f" {stem.words}"] if words and stem.words else []
    name = stem.name.center(NAME_MAX) if said else stem.name  # so that the words stand below each other
    label = " ".join((name, *said, *(f"! {mark}" for mark in stem.marks)))
    width = max(len(lines[0]) if lines else 0, len(label))
    center = (anchors[0] + anchors[-1]) // 2 if anchors else width // 2
    start = max(center - len(name) // 2, 0)
    width = max(width, start + len(label)) if said else width
    start = min(start, width - len(label))
    center = start + len(name) // 2
    rows = []
    slants = _STRAIGHT if stem.straight else _SLANTS
    for number in range(1, slants + 1):
        row = [" "] * width
        for anchor in anchors:
            column = anchor + round((center - anchor) * number / (slants + 1))
            row[column] = "|" if abs(center - anchor) < _SLANTS else "\\" if center > anchor else "/"
        rows.append("".join(row))
    named = (" " * start + label).ljust(width)
    return _Block((*(line.ljust(width) for line in lines), *rows, named), center)


def _box(one: Leaf) -> _Block:
    """A namespace or guest in a box with its title above; what is the host's own stands by itself."""
    lines = [*one.lines, *(f"! {mark}" for mark in one.marks)]
    width = max(len(line) for line in lines)
    if not one.title:
        return _Block(tuple(line.ljust(width) for line in lines), width // 2)
    width = max(width, len(one.title) - 2)
    edge = f"+{'-' * (width + 2)}+"
    rows = [f"| {line.ljust(width)} |" for line in lines]
    return _Block((f" {one.title}".ljust(width + 4), edge, *rows, edge), (width + 4) // 2)


def _beside(blocks: Sequence[_Block]) -> tuple[list[str], list[int]]:
    """Blocks side by side, standing on one line; and the columns of their anchors."""
    height = max((len(block.lines) for block in blocks), default=0)
    anchors, at = [], 0
    for block in blocks:
        anchors.append(at + block.anchor)
        at += block.width + _GAP
    padded = [(" " * block.width,) * (height - len(block.lines)) + block.lines for block in blocks]
    return [(" " * _GAP).join(row) for row in zip_longest(*padded)], anchors
