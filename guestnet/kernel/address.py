"""IP addresses of links: asked for and changed with rtnetlink messages (RTM_NEWADDR, rtnetlink(7)).

Numbers are those of include/uapi/linux/if_addr.h.
"""

import errno
import socket
import struct
from ipaddress import ip_address, ip_interface

from guestnet.closes import Closes
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError
from guestnet.inet import Address, Assigned
from guestnet.kernel import netns
from guestnet.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NetlinkError, Rtnl, attribute, attributes

_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_ADDRESS, _LOCAL, _FLAGS = 1, 2, 8
_F_TENTATIVE, _F_DADFAILED, _F_PERMANENT = 0x40, 0x08, 0x80
_SCOPE_LINK = 253
_IFADDR = struct.Struct("=BBBBI")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Addresses(Closes):
    """The addresses of one network namespace: the caller's, or that of the fd given. It owns one socket."""

    def __init__(self, namespace: int | None = None) -> None:
        self._rtnl = Rtnl() if namespace is None else netns.call(namespace, Rtnl)

    def close(self) -> None:
        """Close the socket."""
        self._rtnl.close()

    def all(self) -> tuple[Assigned, ...]:
        """Every address, by one dump."""
        dump = self._rtnl.dump(_GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        return tuple(one for message in dump if (one := _assigned(message)) is not None)

    def add(self, index: int, address: Address, what: str) -> None:
        """Give the link an address; ``what`` names it for a person. One that it has already is no error."""
        try:
            self._rtnl.request(_NEWADDR, _message(index, address), flags=NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            if error.errno == errno.EEXIST:
                return
            raise _refused(error, f"{address} on {what}") from error

    def delete(self, index: int, address: Address, what: str) -> None:
        """Take an address off the link; one that is not there is no error."""
        try:
            self._rtnl.request(_DELADDR, _message(index, address))
        except NetlinkError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise _refused(error, f"{address} on {what}") from error


def _refused(error: NetlinkError, what: str) -> GuestnetError:
    reason = error.strerror or str(error)
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return NotPermittedError(f"{what}: {reason}", hint="run this with sudo")
        case errno.ENODEV:
            return NotFoundError(f"{what}: the link is gone")
        case errno.EOPNOTSUPP:
            return ConflictError(f"{what}: this kernel or this link has no such IP ({reason})")
        case _:
            return GuestnetError(f"{what}: {reason}")


def _message(index: int, address: Address) -> bytes:
    header = _IFADDR.pack(_FAMILIES[address.version], address.network.prefixlen, 0, 0, index)
    return header + attribute(_LOCAL, address.ip.packed) + attribute(_ADDRESS, address.ip.packed)


def _assigned(message: bytes) -> Assigned | None:
    family, length, flags, scope, index = _IFADDR.unpack_from(message)
    if family not in _FAMILIES.values():
        return None
    found = attributes(message, _IFADDR.size)
    if _FLAGS in found:
        (flags,) = struct.unpack("=I", found[_FLAGS])
    ip = ip_address(found.get(_LOCAL, found.get(_ADDRESS, b"")))
    by_hand = family == socket.AF_INET or bool(flags & _F_PERMANENT and scope != _SCOPE_LINK)
    return Assigned(
        index=index, address=ip_interface(f"{ip}/{length}"), by_hand=by_hand, tentative=bool(flags & _F_TENTATIVE),
        duplicate=bool(flags & _F_DADFAILED),
    )  # fmt: skip
