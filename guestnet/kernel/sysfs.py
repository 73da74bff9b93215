"""sysfs of a network namespace, read without mounting it anywhere.

/sys/class/net shows the namespace in which that sysfs was mounted, which need not be the one asked about. fsopen(2),
fsconfig(2) and fsmount(2) give a sysfs of the calling thread's namespace as a bare fd that no path leads to and that is
gone when it is closed (Linux 5.2; the namespace is taken in sysfs_init_fs_context, fs/sysfs/mount.c).
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from guestnet.errors import GuestnetError, NotPermittedError

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture
_CLOEXEC, _CMD_CREATE = 1, 6
_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: Any) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        if code in (1, 13):
            raise NotPermittedError("sysfs of this network namespace cannot be opened", hint="run this as root")
        raise GuestnetError(f"sysfs of this network namespace cannot be opened: {os.strerror(code)}")
    return result


@contextmanager
def opened() -> Iterator[int]:
    """A directory fd of the root of sysfs, of the network namespace this thread is in."""
    context = _syscall(_FSOPEN, b"sysfs", ctypes.c_uint(_CLOEXEC))
    try:
        _syscall(_FSCONFIG, context, ctypes.c_uint(_CMD_CREATE), None, None, 0)
        mount = _syscall(_FSMOUNT, context, ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
    finally:
        os.close(context)
    try:
        yield mount
    finally:
        os.close(mount)


def read(root: int, path: str) -> str | None:
    """What the file at ``path`` below ``root`` says, stripped; None where there is no such file, or its device goes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
        with open(fd, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # kernfs: a file that was open when its device went
            raise
        return None


def exists(root: int, path: str) -> bool:
    """Whether ``path`` is there below ``root``."""
    try:
        os.stat(path, dir_fd=root)
    except FileNotFoundError:
        return False
    return True
