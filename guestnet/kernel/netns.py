"""Network namespaces by name, as ip-netns(8) keeps them, and code that runs inside one."""

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from guestnet.errors import NotFoundError, NotPermittedError, UsageError

DIRECTORY = Path("/run/netns")
"""Where ip-netns(8) binds a namespace to its name."""

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


def names() -> list[str]:
    """The named network namespaces of this machine, sorted."""
    try:
        return sorted(entry.name for entry in DIRECTORY.iterdir())
    except FileNotFoundError:
        return []


@contextmanager
def opened(name: str) -> Iterator[int]:
    """An fd of the network namespace of that name, closed at the end of the block.

    Raises UsageError for what cannot be a name, NotFoundError (with the near names) where there is none.
    """
    if not name or "/" in name or name in {".", ".."} or "\0" in name:
        raise UsageError(f"{name!r} is not a network namespace name", hint="`ip netns list` shows the names there are")
    try:
        fd = os.open(DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        near = get_close_matches(name, names(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"make it with: ip netns add {name}"
        raise NotFoundError(f"there is no network namespace {name}", hint=hint) from None
    try:
        yield fd
    finally:
        os.close(fd)


def others() -> Iterator[int]:
    """An fd of every other network namespace that has a name or a process in it, each once; closed with the next.

    A container's has no name in ip-netns(8). One that neither has is kept by a link or a socket alone, and cannot be
    entered.
    """
    with own() as here:
        seen = {os.fstat(here).st_ino}
    paths = [f"{DIRECTORY}/{name}" for name in names()]
    paths += [f"/proc/{entry}/ns/net" for entry in os.listdir("/proc") if entry.isdecimal()]
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it went meanwhile, or is not for this user to look into
        try:
            inode = os.fstat(fd).st_ino
            if inode not in seen:
                seen.add(inode)
                yield fd
        finally:
            os.close(fd)


@contextmanager
def own() -> Iterator[int]:
    """An fd of the network namespace this thread is in, closed at the end of the block."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def call(fd: int, function: Callable[[], _T]) -> _T:
    """What ``function`` gives when it runs inside the network namespace ``fd``, in a thread of its own.

    The thread ends with the call, so nothing else of this process ever changes its namespace (setns(2) works on one
    thread). What the function raises is raised here.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if _libc.setns(fd, _CLONE_NEWNET):
                code = ctypes.get_errno()
                if code == errno.EPERM:
                    raise NotPermittedError("only root may enter another network namespace", hint="run this as root")
                raise OSError(code, f"setns: {os.strerror(code)}")
            outcome.append(function())
        except BaseException as error:  # carried to the caller's thread, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
