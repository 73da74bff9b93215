"""Who reaches whom in a topology, and by which way: routes, modes and forwarding followed hop by hop, on paper.

It knows what the file says and nothing else: what lies behind a router that is no endpoint is not followed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from guestnet.inet import Address, Ip, Network, Route
from guestnet.model import Mode
from guestnet.plan.layout import Endpoint, Problem, Topology, Where

TTL = 64
"""What a packet sets out with on Linux (IPDEFTTL, include/net/ip.h; ipv6.conf.*.hop_limit)."""

_HOPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way of one packet: the endpoints it comes by, last the one it reaches; ``broken`` says why it does not.

    ``hairpin`` are two endpoints of one node between which only a switch that sends frames back carries it.
    """

    hops: tuple[Endpoint, ...] = ()
    broken: str = ""
    circle: bool = False
    hairpin: tuple[str, str] | None = None

    @property
    def ttl(self) -> int:
        """The TTL or hop limit it arrives with."""
        return TTL - max(len(self.hops) - 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A ping from one endpoint to an address of another, sent from its address ``own``: the way there and back."""

    source: Endpoint
    own: Ip
    target: Endpoint
    address: Ip
    there: Way
    back: Way

    @property
    def problem(self) -> str:
        """Why it gets no answer; empty where it does."""
        if self.there.broken:
            return self.there.broken
        return f"no way back: {self.back.broken}" if self.back.broken else ""

    @property
    def hairpin(self) -> tuple[str, str] | None:
        """The two endpoints that need a switch which sends frames back, if any do."""
        return self.there.hairpin or self.back.hairpin


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A topology with an eye on its ways."""

    topology: Topology
    _by_address: dict[Ip, Endpoint] = field(init=False, default_factory=dict)
    _places: dict[tuple[str, Where, str], list[Endpoint]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for endpoint in self.topology.endpoints:
            self._places.setdefault(endpoint.place, []).append(endpoint)
            for address in endpoint.addresses:
                self._by_address.setdefault(address.ip, endpoint)

    def pairs(self) -> Iterator[Pair]:
        """A ping of every endpoint to every address of every other that has one of that version of IP itself."""
        for source in self.topology.endpoints:
            for target in self.topology.endpoints:
                if source.place == target.place:
                    continue
                for address in target.addresses:
                    own = _own_towards(source, address.ip)
                    if own is not None:
                        yield self.ping(source, own, target, address.ip)

    def ping(self, source: Endpoint, own: Address, target: Endpoint, address: Ip) -> Pair:
        """One ping, with the address it is sent from."""
        there = self.way(source, address)
        back = self.way(target, own.ip) if not there.broken else Way()
        return Pair(source=source, own=own.ip, target=target, address=address, there=there, back=back)

    def way(self, source: Endpoint, address: Ip) -> Way:
        """The way of a packet that the place of ``source`` sends to that address."""
        here, hops = source, list[Endpoint]()
        target = self._by_address.get(address)
        hairpin: tuple[str, str] | None = None
        seen = {here.place}
        while len(hops) < _HOPS:
            found = self._lookup(here, address)
            if found is None:
                return Way(hops=tuple(hops), broken=f"{_who(here)} has no route to {address}", hairpin=hairpin)
            out, route = found
            router = route.via or address
            other = self._by_address.get(router)
            if other is None:
                return Way(hops=tuple(hops), broken=f"nobody here has {router}, where {_who(here)} sends it")
            why, reflected = _on_wire(out, other)
            if why:
                return Way(hops=tuple(hops), broken=why)
            hairpin = (out.title, other.title) if reflected else hairpin
            hops.append(other)
            if target is not None and target.place == other.place:
                return Way(hops=tuple(hops), hairpin=hairpin)
            if other.place in seen:
                circle = " to ".join(_who(one) for one in (source, *hops))
                what = str(address) if target is not None else "addresses that no endpoint has"
                return Way(hops=tuple(hops), circle=True, broken=f"packets for {what} go in a circle: {circle}")
            if not self._forwards(other, address.version):
                return Way(hops=tuple(hops), broken=f"{_who(other)} does not forward IPv{address.version}")
            seen.add(other.place)
            here = other
        return Way(hops=tuple(hops), broken=f"over {_HOPS} hops")

    def _lookup(self, here: Endpoint, address: Ip) -> tuple[Endpoint, Route] | None:
        """The link and the route by which a place sends a packet: the longest prefix."""
        best: tuple[Endpoint, Route] | None = None
        for endpoint in self._places[here.place]:
            for route in (*(Route(to=one) for one in endpoint.networks), *endpoint.routes):
                if _has(route.to, address) and (best is None or route.to.prefixlen > best[1].to.prefixlen):
                    best = endpoint, route
        return best

    def _forwards(self, entry: Endpoint, version: int) -> bool:
        """Whether a place forwards what comes in by that link.

        IPv4 asks the link's own switch; IPv6 one for all links, or, from Linux 6.17 on, force_forwarding of the link
        (Documentation/networking/ip-sysctl.rst).
        """
        said = {}
        for endpoint in self._places[entry.place]:
            said.update(endpoint.sysctls_of(endpoint.link, "{parent}"))
        four = ("net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", f"net/ipv4/conf/{entry.link}/forwarding")
        six = ("net/ipv6/conf/all/forwarding", f"net/ipv6/conf/{entry.link}/force_forwarding")
        return any(said.get(name) == "1" for name in (four if version == 4 else six))


def circles(topology: Topology) -> Iterator[Problem]:
    """The routes that send a packet in a circle: for the addresses of the topology, and for one that nobody has."""
    reach = Reach(topology=topology)
    told = set()
    for endpoint in topology.endpoints:
        for address in _destinations(topology):
            way = reach.way(endpoint, address)
            places = frozenset(hop.place for hop in way.hops)
            if way.circle and places not in told:
                told.add(places)
                yield Problem(
                    path=("nodes", endpoint.node, "endpoints", endpoint.name, "routes"), message=way.broken,
                    hint="let one of them send it elsewhere",
                )  # fmt: skip


def _destinations(topology: Topology) -> list[Ip]:
    addresses = [address.ip for endpoint in topology.endpoints for address in endpoint.addresses]
    # of the networks that routes lead to, an address that no endpoint has stands for the rest
    networks = {route.to for endpoint in topology.endpoints for route in endpoint.routes}
    for network in sorted(networks, key=str):
        free = next((ip for ip in _some(network) if ip not in addresses), None)
        addresses += [free] if free is not None else []
    return addresses


def _some(network: Network) -> Iterator[Ip]:
    """A few addresses from the end of a network, where none is handed out first."""
    for back in range(2, min(network.num_addresses, 64)):
        yield network[-back]


def _own_towards(endpoint: Endpoint, target: Ip) -> Address | None:
    """The address a packet to the target is sent from: one of the target's subnet, else the first of its version."""
    own = [one for one in endpoint.addresses if one.version == target.version]
    return next((one for one in own if _has(one.network, target)), own[0] if own else None)


def _has(network: Network, address: Ip) -> bool:
    return network.version == address.version and address in network


def _who(endpoint: Endpoint) -> str:
    """Whose table of routes it is, in words."""
    if endpoint.kind is Where.HOST:
        return f"the host {endpoint.node}"
    return f"{endpoint.node}/{endpoint.inside}"


def _on_wire(one: Endpoint, other: Endpoint) -> tuple[str, bool]:
    """Why a frame of one does not get to the other, and whether only a switch that sends it back carries it.

    macvlan_queue_xmit and macvlan_handle_frame, drivers/net/macvlan.c: only two links in mode bridge reach each other
    by themselves; between others of one parent all goes out, and what a switch sends back does not get into a private
    one.
    """
    if one.wire != other.wire:
        return f"{one.title} is on {one.wire} and {other.title} on {other.wire}", False
    if one.node != other.node or one.mode is other.mode is Mode.BRIDGE:
        return "", False
    if Mode.PRIVATE in (one.mode, other.mode):
        private = one if one.mode is Mode.PRIVATE else other
        return f"{private.title} is in mode private, which no other on its parent reaches", False
    return "", True
