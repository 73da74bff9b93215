"""One guestnet at a time changes this host: a lock file that the kernel lets go of when its holder dies."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from guestnet.errors import NotPermittedError, TimedOutError

PATH = Path("/run/guestnet/lock")

_AGAIN = 0.02  # seconds between two tries
_SILENT = 1.0  # seconds that are waited without a word


@contextmanager
def held(timeout: float = 60.0, *, path: Path = PATH, notice: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock for the block, waiting for it at most ``timeout`` seconds; ``notice`` is told after the first one.

    Raises TimedOutError that names the process which has it, NotPermittedError for who may not write the file.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise NotPermittedError(f"{path} cannot be written: {error.strerror}", hint="run this as root") from error
    try:
        _wait(fd, timeout, notice)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _wait(fd: int, timeout: float, notice: Callable[[str], None] | None) -> None:
    never = threading.Event()
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            spent = time.monotonic() - begun
            if notice is not None and spent > _SILENT:
                notice(f"waiting for another guestnet: {_holder(fd)}")
                notice = None
            if spent > timeout:
                raise TimedOutError(
                    f"another guestnet is at work on this host, for over {timeout:g} s: {_holder(fd)}",
                    hint="wait for it, or end it if it hangs",
                ) from None
            never.wait(_AGAIN)
        else:
            return


def _holder(fd: int) -> str:
    pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
    try:
        words = Path(f"/proc/{int(pid)}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except (ValueError, OSError):
        return "its process is not known"
    return f"process {pid}, " + " ".join(word.decode(errors="replace") for word in words)
