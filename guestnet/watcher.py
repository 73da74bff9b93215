"""Takes the macvtap of a QEMU away when that has let go of it: a small process of its own that nobody waits for.

    python3 -P -m guestnet.watcher FD IFNAME IFINDEX [PACKETS]

FD is a guestnet.kernel.handover.LastClose of its tap; it holds no tap itself. It imports what it needs to delete a link
when the time has come. It ends with the link, and does nothing for one that another process still has open. PACKETS is
a packet socket on the link: where nobody could say which MAC the guest has, it is that of the first frame it sends.
"""

import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guestnet.kernel.handover import LastClose
    from guestnet.model import Link

_PACKET_OUTGOING = 4  # include/uapi/linux/if_packet.h
_ETH_P_ALL = 3
_SOON = 200  # milliseconds


def start(last_close: "LastClose", link: "Link", *, learn: bool = False) -> None:
    """Start a watcher for that link in a session of its own; it outlives this process, its terminal and its QEMU."""
    import subprocess
    import threading

    words = [sys.executable, "-P", "-m", "guestnet.watcher", str(last_close.fd), link.name, str(link.index)]
    fds = [last_close.fd]
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) if learn else None
    try:
        if packets is not None:
            packets.bind((link.name, _ETH_P_ALL))
            words.append(str(packets.fileno()))
            fds.append(packets.fileno())
        null = subprocess.DEVNULL
        child = subprocess.Popen(
            words, stdin=null, stdout=null, stderr=null, pass_fds=fds, start_new_session=True, cwd="/"
        )
    finally:
        if packets is not None:
            packets.close()
    # who calls this may live longer than it, and shall not keep what is left of a process that has ended
    threading.Thread(target=child.wait, daemon=True).start()


def main() -> None:
    """Watch, until the link is gone."""
    fd, name, index, *packets = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # who stops a whole service stops QEMU, and this right after
    speaks = socket.socket(fileno=int(packets[0])) if packets else None
    poll = select.poll()
    poll.register(int(fd), select.POLLIN)
    if speaks is not None:
        poll.register(speaks, select.POLLIN)
    while True:
        heard = {ready for ready, _ in poll.poll()}
        if int(fd) in heard:
            os.read(int(fd), 4096)
            if _goes(int(fd), name, int(index)) or _take_away(name, int(index)):
                return
        if speaks is not None and speaks.fileno() in heard and _learn(speaks, name, int(index)):
            poll.unregister(speaks)
            speaks.close()
            speaks = None


def _goes(fd: int, name: str, index: int) -> bool:
    """Whether the link is gone, or goes by itself: who detaches a NIC deletes it right after the tap was closed, and
    its node goes with it. This spares most watchers the imports."""
    told = select.poll()
    told.register(fd, select.POLLIN)
    while _is_there(name, index):
        if not told.poll(_SOON):
            return False
        os.read(fd, 4096)
    return True


def _is_there(name: str, index: int) -> bool:
    try:
        return socket.if_nametoindex(name) == index
    except OSError:
        return False


def _take_away(name: str, index: int) -> bool:
    """Delete the link if nobody has it open; whether there is nothing left to watch for."""
    from guestnet.errors import GuestnetError
    from guestnet.kernel.link import Links
    from guestnet.qemu.nics import remove

    try:
        with Links() as links:
            link = links.find(name)
        return link is None or link.index != index or not remove([link])
    except GuestnetError as error:
        _log(f"{name} is left: {error.message}")
        return True


def _learn(speaks: socket.socket, name: str, index: int) -> bool:
    """Give the link the MAC of a frame that the guest has sent; whether there was one."""
    frame, (_, _, kind, _, _) = speaks.recvfrom(12)
    if kind != _PACKET_OUTGOING or frame[6] & 1 or not any(frame[6:12]):
        return False
    from guestnet.errors import GuestnetError
    from guestnet.kernel.link import Links
    from guestnet.model import Mac

    mac = Mac(frame[6:12].hex(":"))
    try:
        with Links() as links:
            link = links.find(name)
            if link is not None and link.index == index and link.mac != mac:
                links.set_mac(link, mac)
                _log(f"{name} has the MAC {mac}, as its guest has")
    except GuestnetError as error:
        _log(f"{name} cannot have the MAC {mac} of its guest: {error.message}")
    return True


def _log(text: str) -> None:
    import syslog

    syslog.openlog("guestnet", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, text)


if __name__ == "__main__":
    main()
