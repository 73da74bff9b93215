"""What udev, devtmpfs and syslogd do for a node's private /dev: /dev/tapN comes and goes with its macvtap, and what is
said to /dev/log is written down.

Run as a process of its own inside the node. The kernel tells of a macvtap's character device in the network namespace
of its link (uevent_net_broadcast_tagged, lib/kobject_uevent.c), so each node hears of its own alone. Standard library
only: it is started with ``python3 -I -S``.
"""

import contextlib
import os
import re
import select
import socket
import stat
import sys

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_BUFFER = 1 << 20
_NAME = re.compile(r"tap[0-9]{1,10}")


def follow(message: bytes, directory: str) -> None:
    """Make or remove the node that a uevent speaks of; any other event is nothing to us."""
    words = dict(word.split("=", 1) for word in message.decode(errors="replace").split("\0") if "=" in word)
    name = words.get("DEVNAME", "")
    if words.get("SUBSYSTEM") != "macvtap" or not _NAME.fullmatch(name):
        return
    path = f"{directory}/{name}"
    number = os.makedev(int(words["MAJOR"]), int(words["MINOR"]))
    if words.get("ACTION") == "add":
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFCHR | 0o600, number)
    elif words.get("ACTION") == "remove":
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path, follow_symlinks=False).st_rdev == number:
                os.unlink(path)


def hear(events: socket.socket) -> None:
    """Follow one event of the kernel's."""
    try:
        message, (sender, _) = events.recvfrom(_BUFFER)
    except OSError:  # ENOBUFS: more events at once than the buffer holds; those that follow are heard again
        return
    if sender == 0:  # the kernel, and nobody who may send to the group
        follow(message, "/dev")


def main(ready: int, log: str) -> None:
    """Follow the kernel's events and append what is logged (syslog(3)) to the file ``log``, a line each, for ever.

    Closes the fd ``ready`` once nothing can be missed any more.
    """
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT) as events,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as said,
        open(log, "ab", buffering=0) as file,
    ):
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        events.bind((0, _KERNEL_GROUP))
        said.bind("/dev/log")
        os.close(ready)
        while True:
            for heard in select.select([events, said], [], [])[0]:
                if heard is events:
                    hear(events)
                else:
                    file.write(said.recv(_BUFFER).rstrip(b"\0\n") + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
