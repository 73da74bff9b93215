"""A topology as it is written: nodes, their parents, and the endpoints on them; and what in it contradicts itself."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum

from guestnet.errors import NotFoundError
from guestnet.inet import IPV6_MTU, Address, Network, Route
from guestnet.model import ALIAS_PREFIX, Kind, Mac, Mode, Multicast
from guestnet.plan.parent import MTU_MAX, MTU_MIN

_MARK = ALIAS_PREFIX + "topology:"


class Where(StrEnum):
    """What an endpoint is in: a network namespace of its own, the host itself, a libvirt guest, a bare QEMU."""

    NETNS = "netns"
    HOST = "host"
    GUEST = "guest"
    QEMU = "qemu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A parent of a node under the name that the file gives it: a link by its name, or VLAN ``vlan`` on another wire.

    Parents of one name are on one wire, whatever the link is called on each node. ``at`` is where that is written.
    """

    name: str
    link: str = ""
    on: str = ""
    vlan: int | None = None
    at: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One link on a parent, and what has it: ``inside`` names the namespace, guest or QEMU, and is empty for the host.

    ``link`` is empty where the name is made from the MAC. ``mac`` None is one that is always the same for this machine
    and endpoint. ``sysctls`` are names with slashes, with ``{link}`` and ``{parent}`` for what these are called.
    """

    name: str
    node: str
    kind: Where
    wire: str
    link: str = ""
    type: Kind = Kind.MACVTAP
    mode: Mode = Mode.BRIDGE
    mac: Mac | None = None
    mtu: int | None = None
    multicast: Multicast | None = None
    inside: str = ""
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> tuple[str, Where, str]:
        """What shares one table of routes: node, kind, and name of the namespace or guest."""
        return self.node, self.kind, self.inside

    @property
    def title(self) -> str:
        """How a person is told of it: ``n1/tap0``."""
        return f"{self.node}/{self.name}"

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks that its addresses put on its link; one address alone puts none there."""
        return tuple(one.network for one in self.addresses if one.network.prefixlen < one.max_prefixlen)

    def mac_of(self, topology: str, machine_id: str) -> Mac:
        """Its address: as written, else one made of the machine's id and its names."""
        return self.mac or Mac.derive(machine_id, f"{self.node}/{self.name}", f"topology {topology}", 0)

    def sysctls_of(self, link: str, parent: str) -> dict[str, str]:
        """Its sysctls with the names of its link and its parent put in."""
        return {name.replace("{link}", link).replace("{parent}", parent): value for name, value in self.sysctls}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host, with the parents it has and the endpoints on them."""

    name: str
    wires: tuple[Wire, ...]
    endpoints: tuple[Endpoint, ...]

    def wire(self, name: str) -> Wire:
        """The parent of that name; NotFoundError with the near names."""
        for wire in self.wires:
            if wire.name == name:
                return wire
        raise NotFoundError(f"{self.name} has no parent {name}", hint=_near(name, [wire.name for wire in self.wires]))

    def parent_of(self, name: str, links: Mapping[str, str] | None = None) -> str:
        """What ``--parent`` would say for the parent of that name; ``links`` are links that stand in by parent name."""
        wire = self.wire(name)
        if links and name in links:
            return links[name]
        return wire.link if not wire.on else f"{self.parent_of(wire.on, links)}.{wire.vlan}"

    def lowest(self, name: str, links: Mapping[str, str] | None = None) -> Wire:
        """The parent below the VLANs of the parent of that name: that whose link must be there."""
        wire = self.wire(name)
        return wire if not wire.on or (links and name in links) else self.lowest(wire.on, links)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Nodes and what is on them, under one name."""

    name: str
    nodes: tuple[Node, ...]
    about: str = ""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints of all nodes."""
        return tuple(endpoint for node in self.nodes for endpoint in node.endpoints)

    def node(self, name: str) -> Node:
        """The node of that name. Raises NotFoundError that names those there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise NotFoundError(f"the topology {self.name} has no node {name}", hint=f"say which with --node: {names}")

    def node_here(self, hostname: str) -> Node:
        """The node that a host of that name is; where there is one node only, it is that."""
        short = hostname.partition(".")[0]
        found = [node for node in self.nodes if node.name in (hostname, short)]
        if not found and len(self.nodes) > 1:
            names = ", ".join(node.name for node in self.nodes)
            raise NotFoundError(
                f"the topology {self.name} has no node {short}, which is the name of this host",
                hint=f"say which it is: --node, one of {names}",
            )
        return found[0] if found else self.nodes[0]

    @property
    def mark(self) -> str:
        """What the ifalias of its links begins with, and what that of ``lo`` in its namespaces is."""
        return f"{_MARK}{self.name}"

    def alias(self, endpoint: Endpoint) -> str:
        """The ifalias of an endpoint's link."""
        return f"{self.mark}:{endpoint.name}"


def marked(alias: str) -> tuple[str, str]:
    """The topology and the endpoint that an ifalias names, the latter empty for a namespace; else two empty words."""
    if not alias.startswith(_MARK):
        return "", ""
    name, _, endpoint = alias.removeprefix(_MARK).partition(":")
    return name, endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a topology: where in the document, what, and what to do."""

    path: tuple[str | int, ...]
    message: str
    hint: str = ""


def problems(topology: Topology) -> Iterator[Problem]:
    """All that contradicts itself in a topology, whatever the hosts are like."""
    for node in topology.nodes:
        yield from _wires(node)
        for endpoint in node.endpoints:
            yield from _endpoint(endpoint, node)
        yield from _links(node)
        yield from _passthru(node)
    yield from _twice(topology)
    yield from _subnets(topology)
    yield from _routes(topology)


def _near(name: str, names: Iterable[str], what: str = "") -> str:
    there = list(names)
    near = get_close_matches(name, there, n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(there) or 'none'}{what}"


def _at(endpoint: Endpoint, *path: str | int) -> tuple[str | int, ...]:
    return "nodes", endpoint.node, "endpoints", endpoint.name, *path


def _wires(node: Node) -> Iterator[Problem]:
    names = [wire.name for wire in node.wires]
    links: dict[tuple[str, int | None], str] = {}
    told: set[frozenset[str]] = set()
    for wire in node.wires:
        path = ("nodes", node.name, "parents", wire.name)
        if wire.on and wire.on not in names:
            yield Problem(
                path=(*path, "on"), message=f"{node.name} has no parent {wire.on}",
                hint=_near(wire.on, [one for one in names if one != wire.name]),
            )  # fmt: skip
        elif (circle := _circle(wire, node)) and frozenset(circle) not in told:
            told.add(frozenset(circle))
            yield Problem(path=(*path, "on"), message=f"these parents stand on each other: {' on '.join(circle)}")
        other = links.setdefault((wire.on or wire.link, wire.vlan), wire.name)
        if other != wire.name:
            yield Problem(path=path, message=f"{other} and {wire.name} are one link", hint="one name is enough")


def _circle(wire: Wire, node: Node) -> list[str]:
    by_name = {one.name: one for one in node.wires}
    way = [wire.name]
    here: Wire | None = wire
    while here is not None and here.on:
        way.append(here.on)
        if here.on in way[:-1]:
            return way[way.index(here.on) :]
        here = by_name.get(here.on)
    return []


def _endpoint(endpoint: Endpoint, node: Node) -> Iterator[Problem]:
    """What is wrong with one endpoint by itself."""
    if endpoint.wire not in [wire.name for wire in node.wires]:
        yield Problem(
            path=_at(endpoint, "parent"), message=f"{node.name} has no parent {endpoint.wire}",
            hint=_near(endpoint.wire, [wire.name for wire in node.wires]),
        )  # fmt: skip
    in_vm = endpoint.kind in (Where.GUEST, Where.QEMU)
    if in_vm and endpoint.type is not Kind.MACVTAP:
        yield Problem(path=_at(endpoint, "type"), message="a guest needs a macvtap", hint="leave type out")
    if endpoint.mode is Mode.SOURCE:
        yield Problem(
            path=_at(endpoint, "mode"), message="mode source is for a link made by hand",
            hint="one of bridge, vepa, private, passthru",
        )  # fmt: skip
    if endpoint.mode is Mode.PASSTHRU and endpoint.mac is not None:
        yield Problem(
            path=_at(endpoint, "mac"), message="in mode passthru a link has the MAC of its parent", hint="leave it out"
        )
    if endpoint.mtu is not None and not MTU_MIN <= endpoint.mtu <= MTU_MAX:
        yield Problem(
            path=_at(endpoint, "mtu"), message=f"{endpoint.mtu} is not an MTU", hint=f"{MTU_MIN} to {MTU_MAX} bytes"
        )
    elif endpoint.mtu is not None and endpoint.mtu < IPV6_MTU and any(one.version == 6 for one in endpoint.addresses):
        yield Problem(
            path=_at(endpoint, "mtu"), message=f"a link with an MTU of {endpoint.mtu} has no IPv6",
            hint=f"{IPV6_MTU} or more, or no IPv6 address",
        )  # fmt: skip
    if endpoint.routes and not endpoint.addresses:
        yield Problem(path=_at(endpoint, "routes"), message="it has routes and no address", hint="give it addresses")


def _links(node: Node) -> Iterator[Problem]:
    """Names of links that meet in one namespace; the macvtap of a guest is in the host's."""
    seen: dict[tuple[str, str], str] = {}
    parents = {wire.link for wire in node.wires if wire.link}
    for endpoint in node.endpoints:
        if not endpoint.link:
            continue
        inside = endpoint.inside if endpoint.kind is Where.NETNS else ""
        other = seen.setdefault((inside, endpoint.link), endpoint.name)
        where = f"the namespace {inside}" if inside else node.name
        if other != endpoint.name:
            yield Problem(
                path=_at(endpoint, "link"), message=f"{where} has a link {endpoint.link} already, that of {other}",
                hint="give each link of a namespace its own name",
            )  # fmt: skip
        elif endpoint.link == "lo" or (not inside and endpoint.link in parents):
            yield Problem(
                path=_at(endpoint, "link"), message=f"{where} has another link {endpoint.link}", hint="choose a name"
            )


def _passthru(node: Node) -> Iterator[Problem]:
    for endpoint in node.endpoints:
        others = [one.name for one in node.endpoints if one.wire == endpoint.wire and one is not endpoint]
        if endpoint.mode is Mode.PASSTHRU and others:
            yield Problem(
                path=_at(endpoint, "mode"),
                message=f"mode passthru takes {endpoint.wire} whole, and {others[0]} is on it too",
                hint="choose mode bridge, or another parent",
            )


def _twice(topology: Topology) -> Iterator[Problem]:
    """What there must be once only among all nodes: a MAC, an address, a guest."""
    macs: dict[str, Endpoint] = {}
    addresses: dict[object, Endpoint] = {}
    guests: dict[str, Endpoint] = {}
    for endpoint in topology.endpoints:
        if endpoint.mac is not None:
            other = macs.setdefault(endpoint.mac, endpoint)
            if other is not endpoint:
                yield Problem(
                    path=_at(endpoint, "mac"), message=f"{endpoint.mac} is the MAC of {other.title} already",
                    hint="leave it out: each endpoint gets one of its own",
                )  # fmt: skip
        for number, address in enumerate(endpoint.addresses):
            other = addresses.setdefault(address.ip, endpoint)
            if other is not endpoint or address.ip in [one.ip for one in endpoint.addresses[:number]]:
                yield Problem(
                    path=_at(endpoint, "addresses", number),
                    message=f"{address.ip} is an address of {other.title} already", hint="give each address once",
                )  # fmt: skip
        if endpoint.kind is Where.GUEST:
            other = guests.setdefault(endpoint.inside, endpoint)
            if other.node != endpoint.node:
                yield Problem(
                    path=_at(endpoint, "guest"),
                    message=f"the guest {endpoint.inside} is on {other.node} and on {endpoint.node}",
                    hint="a guest runs on one node at a time",
                )


def _places(topology: Topology) -> dict[tuple[str, Where, str], list[Endpoint]]:
    found: dict[tuple[str, Where, str], list[Endpoint]] = {}
    for endpoint in topology.endpoints:
        found.setdefault(endpoint.place, []).append(endpoint)
    return found


def _subnets(topology: Topology) -> Iterator[Problem]:
    """Two links of one place on overlapping subnets: which of them a packet takes is decided by chance."""
    for endpoints in _places(topology).values():
        for number, endpoint in enumerate(endpoints):
            for other in endpoints[:number]:
                for mine in endpoint.networks:
                    theirs = next((one for one in other.networks if _overlap(mine, one)), None)
                    if theirs is not None:
                        yield Problem(
                            path=_at(endpoint, "addresses"),
                            message=f"{mine} overlaps {theirs} of {other.name}, in the same place",
                            hint="what is for both would leave by one of them: choose subnets apart",
                        )  # fmt: skip


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _routes(topology: Topology) -> Iterator[Problem]:
    """Routes that the kernel would refuse or that would not count."""
    for endpoints in _places(topology).values():
        seen: dict[Network, Endpoint] = {}
        own = {address.ip for endpoint in endpoints for address in endpoint.addresses}
        for endpoint in endpoints:
            for route in endpoint.routes:
                path = _at(endpoint, "routes")
                other = seen.setdefault(route.to, endpoint)
                if other is not endpoint or [one.to for one in endpoint.routes].count(route.to) > 1:
                    name = "default route" if route.to.prefixlen == 0 else f"route to {route.to}"
                    yield Problem(path=path, message=f"a second {name} in the same place as that of {other.name}")
                if any(route.to == network for network in endpoint.networks):
                    yield Problem(
                        path=path,
                        message=f"the route to {route.to} is there by the address already",
                        hint="leave it out",
                    )
                if route.via is None:
                    continue
                if route.via in own:
                    yield Problem(
                        path=path, message=f"the route {route} is by an address of its own place",
                        hint="name the next router",
                    )  # fmt: skip
                elif not route.onlink and not any(route.via in one for one in _neighbours(endpoint)):
                    yield Problem(
                        path=path,
                        message=f"{route.via} of the route {route} is in no subnet of {endpoint.name}",
                        hint=f"add the route `{route.via} dev {endpoint.link}` before it, or say onlink",
                    )  # fmt: skip


def _neighbours(endpoint: Endpoint) -> list[Network]:
    """What its link takes for its own wire: the subnets of its addresses, and its routes without a router."""
    return [*endpoint.networks, *(one.to for one in endpoint.routes if one.via is None)]
