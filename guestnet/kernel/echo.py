"""Pings: ICMP echo requests from many network namespaces at once, and the TTL that the answers come back with."""

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Generic, TypeVar

from guestnet.errors import NotPermittedError
from guestnet.inet import Ip
from guestnet.kernel import netns

_ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply: RFC 792, RFC 4443
_FAMILIES = {4: (socket.AF_INET, socket.IPPROTO_ICMP), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6)}
_ICMP6_FILTER, _ICMP_FILTER, _SOL_RAW = 1, 1, 255
_HEADER = struct.Struct("!BBHHH")
_PAYLOAD = b"guestnet"
_AGAIN = 0.25  # seconds between two requests to who has not answered
_NOT_YET = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.ENOBUFS, errno.ENETDOWN)

_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One ping to be: from an address in the namespace of the fd (None is the caller's) to an address."""

    source: Ip
    target: Ip
    namespace: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """An answer: its TTL or hop limit on arrival, and the seconds since the request that it answers."""

    ttl: int
    seconds: float


@dataclass(slots=True)
class _Door:
    """A raw socket for all pings from one address; ``identity`` tells its answers from what others are answered."""

    socket: socket.socket
    source: Ip
    identity: int
    bound: bool = False


@dataclass(slots=True)
class _Asked(Generic[_K]):
    door: _Door
    target: Ip
    keys: list[_K] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)


def ping(probes: Mapping[_K, Probe], *, timeout: float = 2.0) -> dict[_K, Echo | None]:
    """What came of each ping by its key: the first answer, or None where none came within ``timeout`` seconds.

    All are sent at once, and again four times a second to who has not answered. What has no answer because its own
    address is not there (any more) has none either. Raises NotPermittedError without root.
    """
    answers: dict[_K, Echo | None] = dict.fromkeys(probes)
    waiting: dict[tuple[int, Ip], _Asked[_K]] = {}
    with ExitStack() as stack, select.epoll() as poll:
        doors: dict[tuple[int | None, Ip], _Door] = {}
        by_fd: dict[int, _Door] = {}
        for key, probe in probes.items():
            place = probe.namespace, probe.source
            if place not in doors:
                opened = stack.enter_context(_socket(probe))
                doors[place] = by_fd[opened.fileno()] = _Door(opened, probe.source, int.from_bytes(os.urandom(2)))
                poll.register(opened.fileno(), select.EPOLLIN)
            door = doors[place]
            one = waiting.setdefault((door.socket.fileno(), probe.target), _Asked(door, probe.target))
            one.keys.append(key)
        deadline = time.monotonic() + timeout
        while waiting and (now := time.monotonic()) < deadline:
            for asked in waiting.values():
                _send(asked)
            again = min(now + _AGAIN, deadline)
            while waiting and (left := again - time.monotonic()) > 0:
                for fd, _ in poll.poll(left):
                    for target, sequence, ttl in _heard(by_fd[fd]):
                        found = waiting.get((fd, target))
                        if found is not None and sequence < len(found.sent):
                            echo = Echo(ttl=ttl, seconds=time.monotonic() - found.sent[sequence])
                            answers.update(dict.fromkeys(found.keys, echo))
                            del waiting[fd, target]
    return answers


def _socket(probe: Probe) -> socket.socket:
    def make() -> socket.socket:
        family, protocol = _FAMILIES[probe.target.version]
        try:
            made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
        except PermissionError:
            raise NotPermittedError("pinging needs root", hint="run this with sudo") from None
        if probe.target.version == 6:
            # include/uapi/linux/icmpv6.h: a bit that is set is a type that is not wanted
            wanted = bytearray(b"\xff" * 32)
            wanted[129 // 8] &= ~(1 << 129 % 8) & 0xFF
            made.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(wanted))
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        else:
            made.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~1 & 0xFFFFFFFF))
        return made

    return make() if probe.namespace is None else netns.call(probe.namespace, make)


def _send(asked: _Asked[_K]) -> None:
    """Send one request, if it can leave from its address: it may be gone, or in its duplicate address detection."""
    door = asked.door
    try:
        if not door.bound:
            door.socket.bind((str(door.source), 0))
            door.bound = True
        door.socket.sendto(_request(door, asked.target, len(asked.sent)), (str(asked.target), 0))
        asked.sent.append(time.monotonic())
    except OSError as error:
        if error.errno not in _NOT_YET:
            raise


def _request(door: _Door, target: Ip, sequence: int) -> bytes:
    kind, _ = _ECHO[target.version]
    body = _HEADER.pack(kind, 0, 0, door.identity, sequence) + _PAYLOAD
    if target.version == 6:
        return body  # the kernel puts the checksum in: it covers addresses that are chosen later
    return body[:2] + _checksum(body) + body[4:]


def _checksum(data: bytes) -> bytes:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return (~(total + (total >> 16)) & 0xFFFF).to_bytes(2)


def _heard(door: _Door) -> Iterator[tuple[Ip, int, int]]:
    """The answers that the socket has: from whom, to which request, with which TTL. A raw socket hears what others
    are answered too."""
    version = door.source.version
    while True:
        try:
            data, ancillary, _, sender = door.socket.recvmsg(2048, 256)
        except BlockingIOError:
            return
        except OSError:  # what an earlier request met, such as no answer to ARP
            continue
        if version == 4:
            ttl, data = data[8], data[(data[0] & 15) * 4 :]
        else:
            limits = [value for _, kind, value in ancillary if kind == socket.IPV6_HOPLIMIT]
            ttl = struct.unpack("=i", limits[0])[0] if limits else 0
        if len(data) < _HEADER.size:
            continue
        kind, _, _, identity, sequence = _HEADER.unpack_from(data)
        if (kind, identity) == (_ECHO[version][1], door.identity):
            yield ip_address(sender[0].partition("%")[0]), sequence, ttl
