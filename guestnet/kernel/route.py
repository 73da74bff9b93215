"""Routes of the main table: asked for and changed with rtnetlink messages (RTM_NEWROUTE, rtnetlink(7)).

Numbers are those of include/uapi/linux/rtnetlink.h.
"""

import errno
import socket
import struct
from ipaddress import ip_address, ip_network

from guestnet.closes import Closes
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError
from guestnet.inet import ROUTE_PROTOCOL, Entry, Route
from guestnet.kernel import netns
from guestnet.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NetlinkError, Rtnl, attribute, attributes

_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_DST, _OIF, _GATEWAY, _TABLE, _VIA = 1, 4, 5, 15, 18
_MAIN, _UNICAST, _SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE, _ONLINK = 254, 1, 0, 253, 255, 4
_RTMSG = struct.Struct("=8BI")
_U32 = struct.Struct("=I")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ANY = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}


class Routes(Closes):
    """The routes of one network namespace: the caller's, or that of the fd given. It owns one socket."""

    def __init__(self, namespace: int | None = None) -> None:
        self._rtnl = Rtnl() if namespace is None else netns.call(namespace, Rtnl)

    def close(self) -> None:
        """Close the socket."""
        self._rtnl.close()

    def all(self, *, ours: bool = False) -> tuple[Entry, ...]:
        """The unicast routes of the main table, or those of our protocol alone: the kernel picks them."""
        found = []
        for family in _FAMILIES.values():
            header = _RTMSG.pack(family, 0, 0, 0, _MAIN, ROUTE_PROTOCOL if ours else 0, 0, 0, 0)
            try:
                dump = self._rtnl.dump(_GETROUTE, header + attribute(_TABLE, _MAIN))
            except NetlinkError as error:
                if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):  # no route yet, or no such IP in this kernel
                    continue
                raise
            found += [one for message in dump if (one := _entry(message)) is not None and (one.ours or not ours)]
        return tuple(found)

    def add(self, index: int, route: Route, what: str) -> None:
        """Add a route by the link; ``what`` names that for a person. Another to the same network: ConflictError."""
        with_router = route.via is not None
        scope = _SCOPE_UNIVERSE if with_router or route.to.version == 6 else _SCOPE_LINK
        try:
            self._rtnl.request(_NEWROUTE, _message(index, route, scope), flags=NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            raise _refused(error, f"the route {route} on {what}") from error

    def delete(self, index: int, route: Route, what: str) -> None:
        """Take a route of ours away; one that is not there is no error."""
        try:
            self._rtnl.request(_DELROUTE, _message(index, route, _SCOPE_NOWHERE))
        except NetlinkError as error:
            if error.errno not in (errno.ESRCH, errno.ENODEV):
                raise _refused(error, f"the route {route} on {what}") from error


def _refused(error: NetlinkError, what: str) -> GuestnetError:
    reason = error.strerror or str(error)
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return NotPermittedError(f"{what}: {reason}", hint="run this with sudo")
        case errno.EEXIST:
            return ConflictError(f"{what}: there is another route to it", hint="`ip route`, `ip -6 route` show them")
        case errno.ENODEV:
            return NotFoundError(f"{what}: the link is gone")
        case errno.ENETDOWN:
            return ConflictError(f"{what}: the link is down")
        case _:
            return GuestnetError(f"{what}: {reason}")


def _message(index: int, route: Route, scope: int) -> bytes:
    flags = _ONLINK if route.onlink else 0
    header = _RTMSG.pack(
        _FAMILIES[route.to.version], route.to.prefixlen, 0, 0, _MAIN, ROUTE_PROTOCOL, scope, _UNICAST, flags
    )
    parts = [attribute(_DST, route.to.network_address.packed), attribute(_OIF, index)]
    if route.via is not None:
        parts.append(attribute(_GATEWAY, route.via.packed))
    return header + b"".join(parts)


def _entry(message: bytes) -> Entry | None:
    family, length, _, _, table, protocol, _, kind, flags = _RTMSG.unpack_from(message)
    found = attributes(message, _RTMSG.size)
    if _TABLE in found:
        (table,) = _U32.unpack(found[_TABLE])
    if kind != _UNICAST or table != _MAIN or family not in _ANY:
        return None
    to = ip_network(f"{ip_address(found[_DST])}/{length}" if _DST in found else _ANY[family])
    via = ip_address(found[_GATEWAY]) if _GATEWAY in found else None
    if via is None and _VIA in found:  # an IPv4 route by an IPv6 router: struct rtvia, its family and its address
        via = ip_address(found[_VIA][2:])
    index = _U32.unpack(found[_OIF])[0] if _OIF in found else 0
    return Entry(to=to, via=via, index=int(index), onlink=bool(flags & _ONLINK), ours=protocol == ROUTE_PROTOCOL)
