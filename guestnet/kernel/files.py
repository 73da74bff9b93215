"""Files that are there whole or not at all."""

import errno
import os
import stat
import tempfile
from pathlib import Path

from guestnet.errors import GuestnetError

UNFINISHED = ".guestnet-"
"""How the names of files begin that were not finished."""


def content(path: Path, most: int = -1) -> bytes | None:
    """What a plain file says, at most so many bytes of it; None where there is none.

    What is no plain file, such as a symbolic link or a pipe, says nothing. Raises GuestnetError for what cannot be
    read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return b""
        raise GuestnetError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        with open(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)


def replace(path: Path, content: bytes, mode: int, *, place: Path | None = None) -> None:
    """Write a file at once and for good: there is the old one or the new one, after a crash too.

    It is written under another name in ``place``, the file's own directory unless said, which must be on the same file
    system; whoever is killed meanwhile leaves that one, UNFINISHED and 8 characters. Raises OSError; the old file
    stays then.
    """
    fd, temporary = tempfile.mkstemp(prefix=UNFINISHED, dir=place or path.parent)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
