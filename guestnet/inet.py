"""IP addresses, routes and sysctls as frozen values: parsed once at the edge, carried everywhere."""

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Self

from guestnet.errors import UsageError

Ip = IPv4Address | IPv6Address
Address = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

ROUTE_PROTOCOL = 71
"""What marks a route as made by guestnet (rtm_protocol, rtnetlink(7)): a number that no routing daemon has."""

IPV6_MTU = 1280
"""What a link must carry to have IPv6 at all (RFC 8200, 5)."""

DEFAULTS: dict[int, Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
"""The default route's destination, by the version of IP."""

_SYSCTL = re.compile(r"[A-Za-z0-9_.:@{}-]+(?:/[A-Za-z0-9_.:@{}-]+)+")


def address(text: str) -> Address:
    """The address and prefix length that ``text`` says, as in 192.0.2.1/24. Raises UsageError.

    Both are needed, and it must be one that a link of a host can have: no network or broadcast address, no multicast,
    no loopback.
    """
    try:
        found = ip_interface(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is not an IP address with prefix length", hint="write it as in 192.0.2.1/24 or 2001:db8::1/64"
        ) from None
    whole = f"{found.ip}/{found.max_prefixlen}"
    if "/" not in text:
        raise UsageError(f"{text!r} says no prefix length", hint=f"{whole} is that address alone")
    network = found.network
    if "%" in text or found.ip.is_multicast or found.ip.is_unspecified or found.ip.is_loopback:
        raise UsageError(f"{text!r} is no address for a link", hint="give a unicast address")
    if network.num_addresses > 2 and found.ip == network.network_address:
        raise UsageError(f"{text!r} is the address of the whole network {network}", hint=f"the first is {network[1]}")
    if found.version == 4 and network.num_addresses > 2 and found.ip == network.broadcast_address:
        raise UsageError(f"{text!r} is the broadcast address of {network}", hint=f"the last is {network[-2]}")
    return found


def ip(text: str) -> Ip:
    """The address that ``text`` says, without prefix length. Raises UsageError."""
    try:
        found = ip_address(text)
    except ValueError:
        raise UsageError(f"{text!r} is not an IP address", hint="write it as in 192.0.2.1 or 2001:db8::1") from None
    if "%" in text:
        raise UsageError(f"{text!r} names an interface", hint="leave out what follows the %")
    return found


def network(text: str) -> Network:
    """The network that ``text`` says; one address is a network of its own. Raises UsageError."""
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        near = ip_network(text, strict=False)
    except ValueError:
        raise UsageError(f"{text!r} is not a network", hint="write it as in 192.0.2.0/24 or 2001:db8::/64") from None
    raise UsageError(f"{text!r} has bits behind its prefix", hint=f"the network is {near}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route by one link: to a network, through a router (``via``) or to whoever has the address on that wire.

    ``onlink`` takes the router for a neighbour though no address of the link says so.
    """

    to: Network
    via: Ip | None = None
    onlink: bool = False

    @classmethod
    def parse(cls, text: str, link: str = "", versions: frozenset[int] = frozenset()) -> tuple[Self, ...]:
        """The routes that ``text`` says in ip-route(8)'s words: ``default via A``, ``NET via A``, ``NET dev LINK``.

        ``dev`` may be left out, and may name no other link than ``link``. ``default`` without a router is one route for
        each of ``versions``, the versions of IP of the link's addresses. Raises UsageError.
        """
        words = text.split()
        hint = "write it as in `default via 192.0.2.1`, `default dev LINK`, or `192.0.2.64/26 dev LINK`"
        if not words:
            raise UsageError("the route is empty", hint=hint)
        to, via, onlink, device = words[0], None, False, False
        rest = words[1:]
        while rest:
            match rest:
                case ["via", where, *more] if via is None:
                    via, rest = ip(where), more
                case ["dev", name, *more] if not device:
                    device, rest = True, more
                    if link and name != link:
                        raise UsageError(f"the route {text!r} is by {name}, and its link is {link}", hint=f"dev {link}")
                case ["dev"] if not device:
                    device, rest = True, []
                case ["onlink", *more] if not onlink:
                    onlink, rest = True, more
                case _:
                    raise UsageError(f"{rest[0]!r} has no place in the route {text!r}", hint=hint)
        if onlink and via is None:
            raise UsageError(f"the route {text!r} is onlink and has no router", hint="leave onlink out")
        if to != "default":
            networks: tuple[Network, ...] = (network(to),)
        elif via is not None:
            networks = (DEFAULTS[via.version],)
        else:
            networks = tuple(DEFAULTS[version] for version in sorted(versions))
        for one in networks:
            if via is not None and via.version != one.version:
                raise UsageError(f"{one} and its router {via} are not of one version of IP", hint=hint)
        return tuple(cls(to=one, via=via, onlink=onlink) for one in networks)

    def __str__(self) -> str:
        via = f" via {self.via}" if self.via is not None else " dev"
        return ("default" if self.to.prefixlen == 0 else str(self.to)) + via + (" onlink" if self.onlink else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A unicast route as the kernel has it; ``index`` is 0 for one by several links. ``ours`` by its protocol."""

    to: Network
    via: Ip | None
    index: int
    onlink: bool
    ours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """An address as the kernel has it: on the link of that ifindex.

    ``by_hand`` is false where the kernel made it itself, of the link's MAC or of a router's prefix. ``tentative`` says
    that nobody on the wire has objected yet, ``duplicate`` that somebody has (RFC 4862, 5.4): neither can be used.
    """

    index: int
    address: Address
    by_hand: bool
    tentative: bool = False
    duplicate: bool = False


def sysctl(text: str) -> str:
    """A sysctl's name with slashes: ``net.ipv4.ip_forward`` is ``net/ipv4/ip_forward``. Raises UsageError.

    As sysctl(8) has it: the separator is the one that comes first, dot or slash, and the other one stands for itself.
    Only what belongs to a network namespace is taken.
    """
    first = next((one for one in text if one in "./"), ".")
    name = text if first == "/" else text.translate(str.maketrans("./", "/."))
    if not _SYSCTL.fullmatch(name) or {".", ".."} & set(name.split("/")):
        raise UsageError(f"{text!r} is not the name of a sysctl", hint="write it as in net.ipv4.ip_forward")
    if not name.startswith("net/"):
        raise UsageError(
            f"the sysctl {text} is the whole machine's, not a network's", hint="those that begin with net. can be set"
        )
    return name


def sysctl_words(name: str) -> str:
    """A sysctl's name as people write it, with dots, unless a part of it has dots itself."""
    return name if "." in name else name.replace("/", ".")
