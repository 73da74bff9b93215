"""fds that were handed to another process: whether it has taken them, and when it has closed the last of them."""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
import time
from typing import Self

from guestnet.closes import Closes
from guestnet.errors import GuestnetError

# include/uapi/linux/inotify.h
_IN_ATTRIB, _IN_CLOSE_WRITE, _IN_CLOSE_NOWRITE, _IN_DELETE_SELF = 0x4, 0x8, 0x10, 0x400
_EVENTS = _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_CLOSE_NOWRITE | _IN_DELETE_SELF
_SIOCOUTQ = 0x5411  # include/uapi/linux/sockios.h; of a unix socket: what the other side has not read yet

_AGAIN = 0.002  # seconds between two looks at what was taken
_libc = ctypes.CDLL(None, use_errno=True)


class LastClose(Closes):
    """Hears when an open file is closed for good, in whatever process that is; it holds nothing open itself.

    A queue of a macvtap is one open file, however often its fd is duplicated, inherited or sent: the kernel tells of
    its end (inotify(7), IN_CLOSE) when the last fd is gone, also by the death of its holder. ``fd`` is readable then,
    and when the node goes, as it does with its device.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def of(cls, *paths: str) -> Self:
        """One for what was opened by these nodes; /proc/self/fd/N stands for the node, even one that is gone, by which
        the fd N was opened. Raises GuestnetError where this user may have no more of them (128 unless set otherwise).
        """
        made = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if made < 0:
            raise _error()
        hears = cls(made)
        for path in paths:
            if _libc.inotify_add_watch(made, path.encode(), _EVENTS) < 0:
                problem = _error()
                hears.close()
                raise problem
        return hears

    def close(self) -> None:
        """Stop listening."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def clear(self) -> None:
        """Forget what was heard."""
        while True:
            try:
                os.read(self.fd, 4096)
            except BlockingIOError:
                return


def _error() -> GuestnetError:
    code = ctypes.get_errno()
    hint = "sysctl fs.inotify.max_user_instances" if code in (errno.EMFILE, errno.ENFILE, errno.ENOSPC) else ""
    return GuestnetError(f"the end of a tap cannot be watched for (inotify): {os.strerror(code)}", hint=hint)


def was_taken(channel: socket.socket, timeout: float) -> bool:
    """Wait until the other end of a unix socket has read what was sent, or is closed; False where it did neither.

    An fd that was sent is nobody's in between: no process has it in its table.
    """
    never = threading.Event()
    deadline = time.monotonic() + timeout
    while struct.unpack("=i", fcntl.ioctl(channel, _SIOCOUTQ, b"\0" * 4))[0]:
        if time.monotonic() > deadline:
            return False
        never.wait(_AGAIN)
    return True
