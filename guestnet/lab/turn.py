"""One at a time: file locks that the kernel lets go of when the last holder dies."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestnet.errors import GuestnetError, TimedOutError
from guestnet.lab.programs import program


@contextmanager
def turn(path: Path, *, timeout: float, busy: str) -> Iterator[int]:
    """Hold the lock file ``path`` for the block; gives its fd, and a child that inherits that holds the lock too.

    Waits at most ``timeout`` seconds and then raises TimedOutError with the message ``busy``; FileNotFoundError where
    the directory is missing. The file stays. It is flock(1) that waits: flock(2) knows no deadline, and the lock is on
    the open file, which the program shares with us.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        command = (program("flock", "util-linux"), "-x", "-w", f"{max(timeout, 0):.3f}", "-E", "75", str(fd))
        done = subprocess.run(
            command, check=False, pass_fds=(fd,), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode == 75:
            raise TimedOutError(busy)
        if done.returncode != 0:
            raise GuestnetError(f"{path} cannot be locked: {' '.join(done.stderr.split())}")
        yield fd
    finally:
        os.close(fd)
