"""Who may change what: one lock for the links of this host, one for each guest; the kernel lets go of them when their
holder dies.

The order is always guest, then host. The host's is held only while links are looked at and changed, and never across a
call to libvirt: libvirt waits for its hook, and the hook waits for this lock.
"""

import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from guestnet.errors import ConflictError, NotPermittedError, TimedOutError

DIRECTORY = Path("/run/guestnet")
PATH = DIRECTORY / "lock"
"""The lock of the host's links."""

TIMEOUT = 60.0
"""Seconds a lock is waited for unless it is said otherwise."""

Notice = Callable[[str], None]

_UUID = re.compile(r"[0-9a-fA-F-]{36}")
_AGAIN = 0.02  # seconds between two tries
_SILENT = 1.0  # seconds that are waited without a word


class Held:
    """A lock that is held."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {_now():.3f}\n".encode(), 0)
        self._size = os.fstat(fd).st_size

    def stirred(self) -> bool:
        """Whether ``stir`` was called for this guest since the lock is held."""
        return os.fstat(self._fd).st_size != self._size


@contextmanager
def held(timeout: float = TIMEOUT, *, path: Path | None = None, notice: Notice | None = None) -> Iterator[Held]:
    """Hold the host's lock for the block, waiting for it at most ``timeout`` seconds.

    ``notice`` is told after the first one. Raises TimedOutError that names the process which has it and since when,
    NotPermittedError for who may not write the file.
    """
    with _held(path or PATH, "this host", timeout, notice, keep=True) as lock:
        yield lock


@contextmanager
def guest(uuid: str, name: str, timeout: float = TIMEOUT, *, notice: Notice | None = None) -> Iterator[Held]:
    """Hold the lock of one guest for the block: as ``held``, but the file goes with the lock."""
    with _held(_of(uuid), f"the guest {name}", timeout, notice, keep=False) as lock:
        yield lock


@contextmanager
def guest_if_free(uuid: str) -> Iterator[Held]:
    """Hold the lock of one guest for the block, without waiting: ConflictError, which names the holder, where it is
    not free."""
    with _held(_of(uuid), "it", None, None, keep=False) as lock:
        yield lock


def others(mine: Container[str]) -> str:
    """Who is at work on a guest, apart from those whose locks are ``mine``: one of them, or empty for nobody."""
    for path in sorted(PATH.parent.glob("guest-*.lock")):
        if path.name.removeprefix("guest-").removesuffix(".lock") in mine:
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(fd)
        finally:
            os.close(fd)
    return ""


def stir(uuid: str) -> None:
    """Tell whoever holds the lock of that guest that the guest starts: what was known of it before is out of date.

    For the hook, which takes no lock of a guest. To be called with the host's lock held.
    """
    try:
        fd = os.open(_of(uuid), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # nobody holds it
    try:
        os.write(fd, b"stirred\n")
    finally:
        os.close(fd)


def _of(uuid: str) -> Path:
    if not _UUID.fullmatch(uuid):  # it may come from a link's alias
        raise ConflictError(f"{uuid!r} is not the UUID of a guest")
    return PATH.parent / f"guest-{uuid}.lock"


@contextmanager
def _held(path: Path, what: str, timeout: float | None, notice: Notice | None, *, keep: bool) -> Iterator[Held]:
    begun = time.monotonic()
    while True:
        fd = _opened(path)
        try:
            _wait(fd, what, begun, timeout, notice)
            if not _is_at(fd, path):
                continue  # its holder took the file away while we waited
            try:
                yield Held(fd)
            finally:
                if not keep and _is_at(fd, path):
                    os.unlink(path)
            return
        finally:
            os.close(fd)


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise NotPermittedError(f"{path} cannot be written: {error.strerror}", hint="run this with sudo") from error


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _wait(fd: int, what: str, begun: float, timeout: float | None, notice: Notice | None) -> None:
    never = threading.Event()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            spent = time.monotonic() - begun
            if timeout is None:
                raise ConflictError(f"another guestnet is at work on {what}: {_holder(fd)}") from None
            if notice is not None and spent > _SILENT:
                notice(f"waiting for another guestnet that is at work on {what}: {_holder(fd)}")
                notice = None
            if spent > timeout:
                raise TimedOutError(
                    f"another guestnet is at work on {what}, waited {timeout:g} s for it: {_holder(fd)}",
                    hint="wait for it, or end it if it hangs",
                ) from None
            never.wait(_AGAIN)
        else:
            return


def _now() -> float:
    """Seconds since the machine was started, the same for every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _holder(fd: int) -> str:
    try:
        pid, since = os.pread(fd, 64, 0).split(b"\n")[0].split()
        line = Path(f"/proc/{int(pid)}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        seconds = max(_now() - float(since), 0)
    except (ValueError, OSError):
        return "its process is not known"  # it took the lock just now, or is in another PID namespace
    words = " ".join(word.decode(errors="replace") for word in line)
    return f"process {int(pid)}, {words}, for {seconds:.0f} s"
