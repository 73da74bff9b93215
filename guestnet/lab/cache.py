"""What is made once and kept: directories below $GUESTNET_CACHE, or below /var/cache/guestnet."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def directory(name: str) -> Path:
    """The cache of that name; it need not exist."""
    return Path(os.environ.get("GUESTNET_CACHE") or "/var/cache/guestnet").absolute() / name


@contextmanager
def made(target: Path) -> Iterator[Path]:
    """A directory that becomes ``target`` when the block ends well, and is removed when it does not.

    What a killed builder left is cleared away first: the caller holds the cache's lock, so nobody is at work there.
    """
    for leftover in target.parent.glob(f".new-{target.name}-*"):
        shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(prefix=f".new-{target.name}-", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary)
        raise
