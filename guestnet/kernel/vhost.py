"""/dev/vhost-net: the kernel threads that move a virtio NIC's frames without QEMU in between."""

import errno
import fcntl
import os
import stat
import struct
from typing import Self

from guestnet.closes import Closes
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError, UsageError
from guestnet.model import QUEUES_MAX

PATH = "/dev/vhost-net"

_RDEV = os.makedev(10, 238)  # MISC_MAJOR, VHOST_NET_MINOR: include/uapi/linux/major.h, include/linux/miscdevice.h
_VHOST_GET_FEATURES = 0x8008AF00  # include/uapi/linux/vhost.h


class Vhost(Closes):
    """Open vhost-net devices, one for each queue of a NIC, closed at the end of the block.

    ``fds`` are O_CLOEXEC. They are this object's until ``release`` hands them to the caller.
    """

    def __init__(self, fds: tuple[int, ...]) -> None:
        self.fds = fds

    @classmethod
    def open(cls, queues: int = 1) -> Self:
        """Open the device ``queues`` times (1 to 256); opening it loads the module where there is a node for it.

        Raises UsageError for a count out of range, NotFoundError where this host has no vhost-net, NotPermittedError,
        ConflictError where something else stands at its path. Nothing stays open on failure.
        """
        if not 1 <= queues <= QUEUES_MAX:
            raise UsageError(f"{queues} queues are not possible", hint=f"1 to {QUEUES_MAX}")
        fds: list[int] = []
        try:
            for _ in range(queues):
                fds.append(_open())
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return cls(tuple(fds))

    def release(self) -> tuple[int, ...]:
        """Hand the fds to the caller, who closes them from then on."""
        fds, self.fds = self.fds, ()
        return fds

    def close(self) -> None:
        """Close what was not released."""
        for fd in self.release():
            os.close(fd)


def features(fd: int) -> int:
    """The feature bits that vhost-net offers on this fd (VHOST_GET_FEATURES)."""
    answer = fcntl.ioctl(fd, _VHOST_GET_FEATURES, b"\0" * 8)
    return int(struct.unpack("=Q", answer)[0])


def _open() -> int:
    try:
        fd = os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                raise NotFoundError(
                    f"this host has no {PATH} (CONFIG_VHOST_NET)", hint="modprobe vhost_net, or go without: --vhost off"
                ) from None
            case errno.EACCES | errno.EPERM:
                raise NotPermittedError(f"{PATH}: {error.strerror}", hint="run this with sudo") from None
            case _:
                raise GuestnetError(f"{PATH}: {error.strerror}") from error
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _RDEV:
        os.close(fd)
        raise ConflictError(f"{PATH} is not the vhost-net device", hint="modprobe vhost_net makes the right one")
    return fd
