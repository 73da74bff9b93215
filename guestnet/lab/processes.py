"""Which processes live in a lab, told by their namespaces alone, and their end.

A name or a pid file says nothing certain about a process; its mount table and its network namespace do.
"""

import errno
import os
import re
import selectors
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

_NOT_OURS = frozenset({errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM})
"""What /proc answers for a process that has ended or is ending (EINVAL), or is closed even to root: not a lab's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Homes:
    """What marks a process as living in a lab.

    ``device`` is the st_dev of the lab's tmpfs, None where it is not mounted: a process whose ``/run`` lies on it is in
    a node's mount namespace or in a copy of one (``ip netns exec`` makes copies). ``subtree``, if given, is the path
    within that tmpfs that must be the process's ``/run``: one node's. ``networks`` are the inodes of network
    namespaces.
    """

    device: int | None
    subtree: str = ""
    networks: frozenset[int] = frozenset()

    def mark(self) -> re.Pattern[str] | None:
        """What a line of /proc/PID/mountinfo looks like in such a mount namespace (proc_pid_mountinfo(5))."""
        if self.device is None:
            return None
        root = re.escape(self.subtree) if self.subtree else r"\S+"
        return re.compile(rf"^\d+ \d+ {os.major(self.device)}:{os.minor(self.device)} {root} /run ", re.MULTILINE)


def living(homes: Homes) -> list[int]:
    """The process ids of what lives in ``homes`` now; zombies have no namespaces and are never among them."""
    tables: dict[int, bool] = {}
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    return [pid for pid in pids if lives(pid, homes, tables)]


def lives(pid: int, homes: Homes, tables: dict[int, bool] | None = None) -> bool:
    """Whether process ``pid`` lives in ``homes``; ``tables`` remembers the answer for each mount namespace met."""
    tables = {} if tables is None else tables
    try:
        if os.stat(f"/proc/{pid}/ns/net").st_ino in homes.networks:
            return True
        mounts = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        if mounts not in tables:
            table = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
            mark = homes.mark()
            tables[mounts] = mark is not None and mark.search(table) is not None
    except OSError as error:
        if error.errno in _NOT_OURS:
            return False
        raise
    return tables[mounts]


def end_all(homes: Homes, *, deadline: float) -> list[int]:
    """Kill what lives in ``homes`` and wait for it to be gone, again until nothing new appears.

    ``deadline`` is a time of time.monotonic(). Gives the process ids that were still there then; empty when all ended.
    Nothing in a lab outlives it, so nobody is asked politely: there is no state worth a slower end.
    """
    while remaining := living(homes):
        if time.monotonic() >= deadline:
            return remaining
        with ExitStack() as closing, selectors.DefaultSelector() as waiting:
            for pid in remaining:
                try:
                    fd = os.pidfd_open(pid)
                    closing.callback(os.close, fd)
                    if lives(pid, homes):  # the number may have gone to another process before the pidfd held it
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                        waiting.register(fd, selectors.EVENT_READ)
                except ProcessLookupError:
                    continue
            while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    waiting.unregister(key.fd)
    return []
