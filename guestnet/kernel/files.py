"""Files that are there whole or not at all."""

import os
import tempfile
from pathlib import Path

UNFINISHED = ".guestnet-"
"""How the names of files begin that were not finished."""


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
