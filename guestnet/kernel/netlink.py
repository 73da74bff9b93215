"""rtnetlink messages: what of rtnetlink(7) and netlink(7) links need, on a plain socket.

Numbers are those of include/uapi/linux/netlink.h and rtnetlink.h. Attributes go in and out as bytes; what they mean is
for the caller (guestnet.kernel.link) to know.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator

from guestnet import trail
from guestnet.closes import Closes

NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
NLM_F_DUMP, NLM_F_DUMP_INTR = 0x300, 0x10
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_STRICT = 270, 10, 11, 12
_NLA_F_NESTED, _NLA_TYPE_MASK = 0x8000, 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 16
_DUMPS = 20


_NAMES = {
    16: "NEWLINK", 17: "DELLINK", 18: "GETLINK", 20: "NEWADDR", 21: "DELADDR", 22: "GETADDR", 24: "NEWROUTE",
    25: "DELROUTE", 26: "GETROUTE", 36: "NEWQDISC", 37: "DELQDISC", 38: "GETQDISC", 88: "NEWNSID", 90: "GETNSID",
    108: "NEWLINKPROP",
}  # fmt: skip
_LINKS = range(16, 20)


class NetlinkError(OSError):
    """The kernel refused a request; ``strerror`` is its extended-ack sentence where it gave one."""


def attribute(kind: int, value: bytes | int | str) -> bytes:
    """One attribute: an int as u32, a str as a zero-terminated string, bytes as they are."""
    if isinstance(value, int):
        value = struct.pack("=I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """One attribute that holds others."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes in ``data`` from ``offset`` on, by number; of several with one number the last."""
    found = {}
    end = len(data)
    unpack = _ATTRIBUTE.unpack_from
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def attribute_list(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in ``data`` in their order, for the lists in which one number comes several times."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Rtnl(Closes):
    """One rtnetlink socket, of the network namespace in which it was made.

    Requests are answered in order; a refused one raises NetlinkError and leaves the socket usable.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_STRICT):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, kind: int, payload: bytes, *, flags: int = 0) -> None:
        """Send one request and wait for its acknowledgement."""
        sequence = self._send(kind, payload, NLM_F_REQUEST | NLM_F_ACK | flags)
        for _ in self._answers(sequence):
            pass

    def get(self, kind: int, payload: bytes) -> bytes:
        """Send one request and give the payload of its one answer."""
        sequence = self._send(kind, payload, NLM_F_REQUEST | NLM_F_ACK)
        answers = list(self._answers(sequence))
        return answers[0]

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """Send a dump request and give the payloads of all answers.

        A dump that the kernel marks as interrupted by a change (NLM_F_DUMP_INTR) is asked again, some times over; links
        that change all the while raise NetlinkError (EAGAIN).
        """
        for _ in range(_DUMPS):
            sequence = self._send(kind, payload, NLM_F_REQUEST | NLM_F_DUMP)
            try:
                return list(self._answers(sequence))
            except InterruptedError:
                continue
        raise NetlinkError(errno.EAGAIN, "the links change faster than they can be listed")

    def _send(self, kind: int, payload: bytes, flags: int) -> int:
        self._sequence += 1
        trail.tell(lambda: _words(kind, payload, flags))
        self._socket.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, self._sequence, 0) + payload)
        return self._sequence

    def _answers(self, sequence: int) -> Iterator[bytes]:
        interrupted = False
        while True:
            data, _, truncated, _ = self._socket.recvmsg(_BUFFER)
            if truncated & socket.MSG_TRUNC:
                raise NetlinkError(errno.EMSGSIZE, f"the kernel sent a message of over {_BUFFER} bytes")
            offset = 0
            while offset < len(data):
                length, kind, flags, answered, _ = _HEADER.unpack_from(data, offset)
                body = data[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3
                if answered != sequence:  # the rest of an answer whose reader was interrupted
                    continue
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _raise_error(kind, body, flags)
                    if interrupted:
                        raise InterruptedError
                    return
                yield body


def _words(kind: int, payload: bytes, flags: int) -> str:
    """A request as a person follows it: its name in rtnetlink(7), and which link it is about."""
    name = _NAMES.get(kind, str(kind))
    index = struct.unpack_from("=i", payload, 4)[0] if kind in _LINKS and len(payload) >= 8 else 0
    about = " of all" if flags & NLM_F_DUMP == NLM_F_DUMP else f" of link {index}" if index else ""
    return f"netlink: RTM_{name}{about}"


def _raise_error(kind: int, body: bytes, flags: int) -> None:
    code = -struct.unpack_from("=i", body)[0]
    if code == 0:
        return
    text = ""
    if flags & _NLM_F_ACK_TLVS:
        start = 4
        if kind == _NLMSG_ERROR:
            # struct nlmsgerr: the code, the header of the request, and the request itself unless capped
            (length,) = struct.unpack_from("=I", body, 4)
            start += _HEADER.size if flags & _NLM_F_CAPPED else (length + 3) & ~3
        text = attributes(body, start).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    raise NetlinkError(code, text or os.strerror(code))
