"""Sysctls of a network namespace: /proc/sys/net shows those of the namespace that the reading thread is in."""

import errno
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from guestnet.errors import GuestnetError, NotFoundError, NotPermittedError
from guestnet.kernel import netns

_ROOT = "/proc/sys"
_NOT_READ = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENODEV, errno.EACCES, errno.EPERM),
    errno.EIO,  # what a secret answers that is not set (addrconf_sysctl_stable_secret, net/ipv6/addrconf.c)
)
_T = TypeVar("_T")


def read(names: Iterable[str], *, namespace: int | None = None) -> dict[str, str | None]:
    """The values of sysctls by their names with slashes, of words with one blank between them; None where there is none
    of that name, and for one that cannot be read."""
    return _in(namespace, lambda: {name: _read(name) for name in names})


def write(name: str, value: str, *, namespace: int | None = None) -> None:
    """Set a sysctl. Raises NotFoundError where there is none of that name, GuestnetError for what it does not take."""

    def put() -> None:
        try:
            fd = os.open(f"{_ROOT}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise _refused(error, name, value) from error

    _in(namespace, put)


def siblings(name: str, *, namespace: int | None = None) -> tuple[str, ...]:
    """What else changes when this sysctl is written, of those that are there: a switch for all links is one for each.

    Forwarding and disable_ipv6 are written through to each link, and IPv4's turns the redirects of all around
    (inet_forward_change, net/ipv4/devinet.c; addrconf_forward_change, addrconf_disable_change, net/ipv6/addrconf.c).
    """
    name = "net/ipv4/conf/all/forwarding" if name == "net/ipv4/ip_forward" else name
    parts = name.split("/")
    if parts[:1] + parts[2:4] != ["net", "conf", "all"] or parts[4:] not in (["forwarding"], ["disable_ipv6"]):
        return ()
    version, key = parts[1], parts[4]

    def look() -> tuple[str, ...]:
        try:
            links = sorted(os.listdir(f"{_ROOT}/net/{version}/conf"))
        except FileNotFoundError:
            return ()
        found = [f"net/{version}/conf/{link}/{key}" for link in links if link != "all"]
        if version == "ipv4":
            found.append("net/ipv4/conf/all/accept_redirects")
        return tuple(found)

    return _in(namespace, look)


def _in(namespace: int | None, function: Callable[[], _T]) -> _T:
    return function() if namespace is None else netns.call(namespace, function)


def _read(name: str) -> str | None:
    try:
        with open(f"{_ROOT}/{name}", encoding="utf-8", errors="replace") as file:
            return " ".join(file.read().split())
    except OSError as error:
        if error.errno not in _NOT_READ:
            raise
        return None


def _refused(error: OSError, name: str, value: str) -> GuestnetError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.EISDIR:
            return NotFoundError(
                f"this kernel has no sysctl {name} here",
                hint="a link's are there while it is; some are the host's only",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return NotPermittedError(
                f"the sysctl {name} cannot be written: {error.strerror}", hint="run this with sudo"
            )
        case _:
            return GuestnetError(f"the sysctl {name} does not take {value!r}: {error.strerror}")
