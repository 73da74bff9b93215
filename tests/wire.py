"""What passes on a link, frame by frame, with the VLAN tags as they are on the wire."""

import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from guestnet.closes import Closes
from guestnet.kernel import netns

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata, include/uapi/linux/if_packet.h
_TCI_VALID, _TPID_VALID = 1 << 4, 1 << 6
_TAGS = (0x8100, 0x88A8)


@dataclass(frozen=True)
class Frame:
    """One frame: its addresses, its tags from the outside in as (protocol, VLAN ID), its ethertype and the rest."""

    to: str
    by: str
    tags: tuple[tuple[int, int], ...]
    ethertype: int
    payload: bytes

    @property
    def vids(self) -> tuple[int, ...]:
        """The VLAN IDs from the outside in."""
        return tuple(vid for _, vid in self.tags)


class Wire(Closes):
    """A listener on one link of a network namespace; it hears what comes from the moment it is made."""

    def __init__(self, ifname: str, namespace: int | None = None) -> None:
        def listen() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            made.bind((ifname, _ETH_P_ALL))
            return made

        self._socket = listen() if namespace is None else netns.call(namespace, listen)

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def heard(self) -> list[Frame]:
        """The frames that have come in since the last call."""
        found = []
        while select.select([self._socket], [], [], 0)[0]:
            data, ancillary, _, address = self._socket.recvmsg(65536, 256)
            if address[2] != socket.PACKET_OUTGOING:
                found.append(_frame(data, ancillary))
        return found

    def wait(self, wanted: Callable[[Frame], bool], *, timeout: float = 20.0) -> Frame:
        """The first frame that is wanted; AssertionError with what came instead."""
        deadline, seen = time.monotonic() + timeout, []
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                for frame in self.heard():
                    if wanted(frame):
                        return frame
                    seen.append(frame)
        raise AssertionError(f"the frame did not come; these did: {seen}")


def _frame(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> Frame:
    tags = []
    for level, kind, content in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(content)
            if status & _TCI_VALID:  # the kernel has taken the outer tag off the frame
                tags.append((tpid if status & _TPID_VALID else 0x8100, tci & 0xFFF))
    at = 12
    while (protocol := int.from_bytes(data[at : at + 2])) in _TAGS:
        tags.append((protocol, int.from_bytes(data[at + 2 : at + 4]) & 0xFFF))
        at += 4
    to, by = (data[start : start + 6].hex(":") for start in (0, 6))
    return Frame(to, by, tuple(tags), protocol, data[at + 2 :])


def ethernet(to: str, by: str, *, ethertype: int = 0x88B5, payload: bytes = b"guestnet") -> bytes:
    """A frame of an ethertype kept for experiments (IEEE 802), as raw bytes."""
    addresses = (bytes.fromhex(text.replace(":", "")) for text in (to, by))
    return b"".join(addresses) + ethertype.to_bytes(2) + payload.ljust(46, b"\0")


def send(frame: bytes, ifname: str, namespace: int | None = None) -> None:
    """Put a frame on a link."""

    def put() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as raw:
            raw.bind((ifname, 0))
            raw.send(frame)

    put() if namespace is None else netns.call(namespace, put)
