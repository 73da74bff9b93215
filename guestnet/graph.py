"""Pictures of networks: of what is on this host, and of what a file says; as SVG, or in Graphviz's words."""

import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guestnet.errors import GuestnetError, NotFoundError
from guestnet.inet import Address, Ip, Route
from guestnet.kernel import echo, netns
from guestnet.kernel.place import Places
from guestnet.machine import machine_id
from guestnet.model import Kind, Link, Owner
from guestnet.plan.drawing import HostPicture, Leaf, Picture, Stem, leaf, of_topology, path_words, printable
from guestnet.plan.drawing import path as path_of
from guestnet.plan.host import Host
from guestnet.plan.layout import Topology
from guestnet.plan.reach import Reach
from guestnet.plan.topology import Contents
from guestnet.topology import check as checking
from guestnet.topology import deploy

if TYPE_CHECKING:
    from guestnet.inventory import Row

_PING_SECONDS = 2.0
_FONT = "DejaVu Sans Mono,monospace"
_RED = "#b00020"


def of_file(topology: Topology, options: deploy.Options | None = None, *, path: bool = False) -> Picture:
    """The picture of a file, with the pairs that by its routes and modes do not reach each other.

    With ``options`` it is beside what is on this node: endpoints that are not there or not right are marked, and what
    does not answer a ping from here is told. ``path`` draws what each guest's frames pass as well.
    """
    macs = {one.title: one.mac_of(topology.name, machine_id()) for one in topology.endpoints} if path else None
    if options is None:
        return of_topology(topology, below=_unreached(topology), macs=macs)
    outcome = deploy.status(topology, options)
    node = topology.node(outcome.node)
    marks = {f"{node.name}/{row.name}": (row.state,) for row in outcome.rows if row.state != "up"}
    links = {(node.name, name): link for name, link in options.parents.items()}
    answers = checking.ping(topology, node)
    return of_topology(topology, links=links, marks=marks, below=checking.told(answers), macs=macs)


def _unreached(topology: Topology) -> tuple[str, ...]:
    """One line for each pair that by the file gets no answer, or only from a switch that sends frames back."""
    answers = [checking.answer(pair, None) for pair in Reach(topology=topology).pairs()]
    return checking.told(answers, only=lambda one: bool(one.why))


def of_host(uri: str, *, check: bool = False, path: bool = False) -> Picture:
    """The picture of what is on this host: macvtaps and macvlans here and in named network namespaces, what they stand
    on, whose they are, and what is amiss with them.

    With ``check`` the host and the namespaces ping each other, with ``path`` what each guest's frames pass is drawn.
    Where libvirt does not answer, guests go by the name on their link. Raises NotPermittedError for who may not look
    into the namespaces.
    """
    with Places() as places, netns.own() as home:
        rooms = {"": _contents(places, "", None)}
        for name in netns.names():
            if netns.exists(name):
                rooms[name] = _contents(places, name, home)
        look = _Look(host=Host(links=rooms[""].links), rooms=rooms, path=path)
        look.guests(uri)
        stems = tuple((stem, "") for stem in look.stems())
        below = [*look.below, *(_pings(look, places) if check else ())]
    return Picture(hosts=(HostPicture(name=socket.gethostname().partition(".")[0], stems=stems),), below=tuple(below))


def _contents(places: Places, name: str, home: int | None) -> Contents:
    place = places.at(name)
    return Contents(
        links=place.links.all(), addresses=place.addresses.all(), routes=place.routes.all(),
        host=None if home is None else place.links.number_of(home),
    )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _Look:
    """What is found on a host, on its way into a picture."""

    host: Host
    rooms: Mapping[str, Contents]
    path: bool
    nics: dict[str, "Row"] = field(default_factory=dict)
    homeless: list["Row"] = field(default_factory=list)
    below: list[str] = field(default_factory=list)

    def guests(self, uri: str) -> None:
        """Ask libvirt whose the NICs are."""
        from guestnet import inventory

        try:
            rows = inventory.rows(uri)
        except GuestnetError as error:
            self.below.append(f"! guests are known by the marks of their links alone: {error.message}")
            return
        for row in rows:
            if row.interface and self.host.find(row.interface) is not None:
                self.nics[row.interface] = row
            elif row.problems:
                self.homeless.append(row)

    def stems(self) -> Iterator[Stem]:
        """The links at the bottom that something of ours, or any macvtap or macvlan, stands on."""
        bottoms = [link for link in self.host.links if self.host.below(link) in (None, link) or link.kind == "veth"]
        for link in bottoms:
            stem = self._stem(link)
            if stem.above:
                yield stem
        missing = [row for row in self.homeless if self.host.find(row.parent) is None]
        for parent in dict.fromkeys(row.parent for row in missing):
            leaves = tuple(self._missing(row) for row in missing if row.parent == parent)
            yield Stem(name=parent or "?", above=leaves, marks=("is not there",))

    def _stem(self, link: Link) -> Stem:
        above: list[Leaf | Stem] = []
        for room, contents in self.rooms.items():
            for child in contents.links:
                if (child.parent, child.parent_netnsid) != (link.index, contents.host) or child.kind == "veth":
                    continue
                if child.mode is not None:
                    above.append(self._leaf(child, room, contents))
                elif not room and child is not link:
                    stem = self._stem(child)
                    above += [stem] if stem.above else []
        above += [self._missing(row) for row in self.homeless if self.host.find(row.parent) is link]
        words = path_words(link.vlan) if self.path else ""
        return Stem(name=link.readable, above=tuple(above), marks=_state(link), words=words)

    def _leaf(self, link: Link, room: str, contents: Contents) -> Leaf | Stem:
        marks = list(_state(link))
        title, addresses, routes = f"NS: {room}" if room else "", _addresses(link, contents), _routes(link, contents)
        row = self.nics.get(link.name) if not room else None
        if row is not None or link.owner in (Owner.GUEST, Owner.QEMU):
            name = row.guest if row is not None else link.guest_name or link.alias.rpartition(":")[2]
            title = f"QEMU: {name}" if link.owner is Owner.QEMU else f"guest: {name}"
            addresses, routes = [link.mac], []
            marks = [*(row.problems if row is not None else ()), *(marks if row is None or not row.problems else ())]
            if self.path and link.kind == Kind.MACVTAP:
                has = leaf(name="", kind=f"NIC {link.mac}", title=title, mode=None, addresses=(), marks=marks)
                return path_of(has, node=f"/dev/tap{link.index}", link=link.name, mac=link.mac, mode=link.mode)
        return leaf(
            name=link.name, kind=link.kind, title=title, mode=link.mode, addresses=addresses, routes=routes, marks=marks
        )

    def _missing(self, row: "Row") -> Leaf:
        return leaf(
            name=row.interface, kind="macvtap", title=f"guest: {row.guest}", mode=None, addresses=[row.mac],
            marks=row.problems,
        )  # fmt: skip


def _state(link: Link) -> tuple[str, ...]:
    if not link.up:
        return ("down",)
    return () if link.carrier else ("no carrier",)


def _addresses(link: Link, contents: Contents) -> list[str]:
    return [
        f"{one.address}{' (duplicate)' if one.duplicate else ''}"
        for one in contents.addresses
        if one.index == link.index and one.by_hand
    ]


def _routes(link: Link, contents: Contents) -> list[Route]:
    """The routes by the link but those that its addresses make."""
    own = [one.address.network for one in contents.addresses if one.index == link.index]
    return [
        Route(to=one.to, via=one.via, onlink=one.onlink)
        for one in contents.routes
        if one.index == link.index and one.to not in own and not one.to.is_link_local and not one.to.is_multicast
    ]


def _pings(look: _Look, places: Places) -> list[str]:
    """What of the host's links and the namespaces does not answer what, by all addresses that were found."""
    known: list[tuple[str, str, Address]] = []
    for room, contents in look.rooms.items():
        links = {link.index: link for link in contents.links if link.mode is not None}
        for one in contents.addresses:
            if one.index in links and one.by_hand and links[one.index].owner is not Owner.GUEST:
                known.append((room, links[one.index].name, one.address))
    probes: dict[tuple[str, str, Ip], echo.Probe] = {}
    for room, link, own in known:
        for other_room, _, other in known:
            if room != other_room and own.version == other.version and (room, link, other.ip) not in probes:
                probes[room, link, other.ip] = echo.Probe(source=own.ip, target=other.ip, namespace=places.at(room).fd)
    names = {address.ip: f"{room or 'this host'} ({link})" for room, link, address in known}
    heard = echo.ping(probes, timeout=_PING_SECONDS) if probes else {}
    return [
        f"x {room or 'this host'} ({link}) does not reach {names[target]}: {target}"
        for (room, link, target), answer in heard.items()
        if answer is None
    ]


# Graphviz


def dot(picture: Picture) -> str:
    """The picture in Graphviz's language."""
    return str(_graph(picture).source)


def svg(picture: Picture) -> bytes:
    """The picture as SVG, drawn by Graphviz's program ``dot``. Raises NotFoundError where that is not installed."""
    import graphviz

    try:
        made: bytes = _graph(picture).pipe(format="svg")
    except graphviz.ExecutableNotFound:
        raise NotFoundError(
            "drawing an SVG takes the program dot, which is not installed",
            hint="apt install graphviz, or --format dot, or --format text",
        ) from None
    except graphviz.CalledProcessError as error:
        raise GuestnetError(f"dot failed: {_last_words(error.stderr)}") from error
    return made


def _last_words(stderr: bytes | str | None) -> str:
    text = stderr.decode(errors="replace") if isinstance(stderr, bytes) else stderr or ""
    return " ".join(text.split())[-200:] or "it says nothing"


def _graph(picture: Picture) -> Any:
    import graphviz

    graph = graphviz.Graph(
        name="guestnet",
        graph_attr={"rankdir": "BT", "ordering": "out", "fontname": _FONT, "labeljust": "l", "labelloc": "b"},
        node_attr={"fontname": _FONT, "fontsize": "10", "shape": "box"}, edge_attr={"color": "#555555"},
    )  # fmt: skip
    if picture.below:
        graph.attr(label=_label(picture.below), fontcolor=_RED, fontsize="10")
    wires: dict[str, str] = {}
    for number, host in enumerate(picture.hosts):
        with graph.subgraph(name=f"cluster_{number}") as cluster:
            cluster.attr(label=_label([host.name]), labelloc="t", fontsize="12", color="#333333")
            bottoms = [_add_stem(cluster, stem, f"h{number}s{place}") for place, (stem, _) in enumerate(host.stems)]
        for bottom, (_, wire) in zip(bottoms, host.stems, strict=True):
            if wire:
                name = wires.setdefault(wire, f"w{len(wires)}")
                graph.node(
                    name, label=_label([wire], justify=""), shape="box", style="rounded,filled", fillcolor="#e8eef8"
                )
                graph.edge(name, bottom)
    return graph


def _add_stem(graph: Any, stem: Stem, name: str) -> str:
    words = [stem.words] if stem.words else []
    graph.node(name, **_dress([stem.name, *words], stem.marks, shape="ellipse"))
    for number, above in enumerate(stem.above):
        if isinstance(above, Stem):
            other = _add_stem(graph, above, f"{name}_{number}")
        else:
            other = f"{name}_{number}"
            lines = [above.title, "", *above.lines] if above.title else [*above.lines]
            graph.node(other, **_dress(lines, above.marks, shape="box" if above.title else "plaintext"))
        graph.edge(name, other)
    return name


def _dress(lines: Iterable[str], marks: Iterable[str], *, shape: str) -> dict[str, str]:
    marked = [f"! {mark}" for mark in marks]
    dress = {"label": _label([*lines, *marked], justify="" if shape == "ellipse" else "\\l"), "shape": shape}
    return dress | ({"color": _RED, "fontcolor": _RED, "penwidth": "2"} if marked else {})


def _label(lines: Iterable[str], *, justify: str = "\\l") -> str:
    """Lines as a label; what others named may hold what Graphviz would obey."""
    import graphviz

    parts = [str(graphviz.escape(printable(line))) for line in lines]
    return "".join(f"{part}{justify}" for part in parts) if justify else "\\n".join(parts)


def write(path: str, content: bytes) -> None:
    """Write a picture into a file. Raises GuestnetError."""
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise GuestnetError(f"{path} cannot be written: {error.strerror}") from error
