"""Network namespaces by name, as ip-netns(8) keeps them, and code that runs inside one."""

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from guestnet.errors import ConflictError, NotFoundError, NotPermittedError, UsageError

DIRECTORY = Path("/run/netns")
"""Where ip-netns(8) binds a namespace to its name."""

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2
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


def exists(name: str) -> bool:
    """Whether there is a network namespace of that name: an empty file is none."""
    return os.path.ismount(DIRECTORY / name)


def make(name: str, prepare: Callable[[], None], *, over_leftover: bool = False) -> None:
    """Make a network namespace and give it that name, after ``prepare`` has run inside it.

    So one that has a name is always prepared; whatever is made before that goes with its maker. Raises ConflictError
    where the name is taken; ``over_leftover`` takes the empty file that a maker left who was killed.
    """
    path = DIRECTORY / name
    _make_directory()
    if exists(name) or (path.exists() and not over_leftover):
        raise ConflictError(f"there is a network namespace {name} already", hint="`ip netns list` shows them")

    def inside() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare")
        prepare()
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o000))
        try:
            _mount(b"/proc/thread-self/ns/net", path, _MS_BIND)
        except BaseException:
            path.unlink()
            raise

    _in_thread(inside)


def remove(name: str) -> None:
    """Take the name off a network namespace; the kernel deletes it with its last process. One that is gone is no error.

    The links in it go a little later, by themselves: delete first those whose going has to be seen.
    """
    path = DIRECTORY / name
    if exists(name):
        _check(_libc.umount2(bytes(path), _MNT_DETACH), f"umount {path}")
    path.unlink(missing_ok=True)


def _make_directory() -> None:
    """Make the directory of the names as ip-netns(8) does: a mount that all mount namespaces share, so that a name that
    is taken off here is not kept alive there."""
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            _mount(b"", DIRECTORY, _MS_SHARED | _MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is no mount point yet
                raise
            _mount(bytes(DIRECTORY), DIRECTORY, _MS_BIND | _MS_REC)
            _mount(b"", DIRECTORY, _MS_SHARED | _MS_REC)
    finally:
        os.close(fd)


def _mount(source: bytes, target: Path, flags: int) -> None:
    _check(_libc.mount(source, bytes(target), b"none", ctypes.c_ulong(flags), None), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        if code in (errno.EPERM, errno.EACCES):
            raise NotPermittedError(f"{what}: {os.strerror(code)}", hint="run this with sudo")
        raise OSError(code, f"{what}: {os.strerror(code)}")


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

    def inside() -> _T:
        if _libc.setns(fd, _CLONE_NEWNET):
            code = ctypes.get_errno()
            if code == errno.EPERM:
                raise NotPermittedError("only root may enter another network namespace", hint="run this with sudo")
            raise OSError(code, f"setns: {os.strerror(code)}")
        return function()

    return _in_thread(inside)


def _in_thread(function: Callable[[], _T]) -> _T:
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # carried to the caller's thread, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        thread.join()
    except BaseException:  # a signal: what is begun is over before anybody takes it back
        thread.join()
        raise
    if failure:
        raise failure[0]
    return outcome[0]
