"""sysfs of a network namespace, read without mounting it anywhere.

/sys/class/net shows the namespace in which that sysfs was mounted, which need not be the one asked about. fsopen(2),
fsconfig(2) and fsmount(2) give a sysfs of the calling thread's namespace as a bare fd that no path leads to and that is
gone when it is closed (Linux 5.2; the namespace is taken in sysfs_init_fs_context, fs/sysfs/mount.c).
"""

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from guestnet.errors import GuestnetError, NotPermittedError

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture
_CLOEXEC, _CMD_CREATE = 1, 6
_MOUNTED = "/sys"
_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: Any) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        if code in (1, 13):
            raise NotPermittedError("sysfs of this network namespace cannot be opened", hint="run this with sudo")
        raise GuestnetError(f"sysfs of this network namespace cannot be opened: {os.strerror(code)}")
    return result


@contextmanager
def opened() -> Iterator[int]:
    """A directory fd of the root of sysfs, of the network namespace this thread is in.

    Where this user may mount none it is /sys, if that shows the same interfaces as the kernel lists here.
    """
    try:
        mount = _mount()
    except NotPermittedError:
        mount = os.open(_MOUNTED, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if not _is_of_this_namespace(mount):
            os.close(mount)
            raise
    try:
        yield mount
    finally:
        os.close(mount)


def _mount() -> int:
    context = _syscall(_FSOPEN, b"sysfs", ctypes.c_uint(_CLOEXEC))
    try:
        _syscall(_FSCONFIG, context, ctypes.c_uint(_CMD_CREATE), None, None, 0)
        return _syscall(_FSMOUNT, context, ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
    finally:
        os.close(context)


def _is_of_this_namespace(root: int) -> bool:
    """Whether a sysfs has the interfaces of this thread's namespace, each with its ifindex (if_nameindex(3))."""
    directory = os.open("class/net", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        names = [name for name in os.listdir(directory) if exists(directory, f"{name}/ifindex")]
    finally:
        os.close(directory)
    shown = {(int(read(root, f"class/net/{name}/ifindex") or 0), name) for name in names}
    return shown == set(socket.if_nameindex())


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
