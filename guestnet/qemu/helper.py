"""QEMU's helper protocol: a program that QEMU, or a libvirt of an ordinary user, runs to be given a tap.

It is called with ``--use-vnet --fd=N --br=NAME`` after its own words; the fd N is a unix socket over which it sends one
fd, and then it exits with 0 (net_bridge_run_helper, net/tap.c; qemuCreateInBridgePortWithHelper of libvirt).
"""

import os
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from guestnet.errors import ConflictError, GuestnetError, UsageError
from guestnet.kernel import tap
from guestnet.kernel.handover import was_taken
from guestnet.kernel.link import Links
from guestnet.model import Mac, Mode, Owner, Request
from guestnet.plan import qemu as plan
from guestnet.plan.qemu import Vhost
from guestnet.qemu import nics as making
from guestnet.qemu import watching
from guestnet.qemu.nics import Options

_UCRED = struct.Struct("=iII")
_TAKEN_SECONDS = 5.0


def serve(request: Request, fd: int, bridge: str, words: Sequence[str], options: Options) -> None:
    """Make a macvtap and send its tap over the socket ``fd``; a watcher takes it away when it is closed for good.

    Without a MAC in the request it is the one that QEMU's command line gives the NIC for which it has called us with
    these ``words``; where that does not say, such as when libvirt calls, it is that of the guest's first frame.
    Raises UsageError where ``fd`` is no such socket, and what making the NIC raises; nothing is left then.
    """
    with _channel(fd) as channel:
        pid, line = _caller(channel)
        named = replace(options, guest=plan.guest_name(line) or options.guest, vhost=Vhost.OFF)
        learn = False
        if request.mac is None and request.mode is not Mode.PASSTHRU:
            told = _told(line, words, bridge, pid)
            request = replace(request, mac=Mac(told) if told is not None else None)
            learn = told is None
        with making.opened((request,), named) as made:
            watching.watch(made, options.notice, learn=learn)
            try:
                socket.send_fds(channel, [b"\0"], list(made.nics[0].fds))
            except OSError as error:
                raise GuestnetError(f"process {pid} does not take the tap: {error.strerror}") from error
            if not was_taken(channel, _TAKEN_SECONDS):
                raise GuestnetError(
                    f"process {pid} has not taken the tap in {_TAKEN_SECONDS:g} s", hint="see whether it is stopped"
                )
            made.hand_over()
    if options.notice is not None:
        for text in made.notes:
            options.notice(text)


def _channel(fd: int) -> socket.socket:
    hint = 'this is for QEMU to call: -netdev tap,id=n0,helper="guestnet qemu helper --parent NIC"'
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            channel = socket.socket(fileno=fd)
            if channel.family == socket.AF_UNIX:
                return channel
            channel.detach()
    except OSError:
        raise UsageError(f"fd {fd} is not open", hint=hint) from None
    raise UsageError(f"fd {fd} is no unix socket", hint=hint)


def _caller(channel: socket.socket) -> tuple[int, tuple[str, ...]]:
    """The process that made the socket, and its command line; empty where it cannot be seen from here."""
    pid: int
    pid, _, _ = _UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return pid, ()
    return pid, tuple(os.fsdecode(word) for word in line.rstrip(b"\0").split(b"\0"))


def _told(line: Sequence[str], words: Sequence[str], bridge: str, pid: int) -> str | None:
    """The MAC of the NIC that this call is for: of those whose helper has our words, the first that the caller has no
    tap for yet.

    None where each has one, as when another NIC is plugged in later. Raises ConflictError where somebody else has it.
    """
    found = plan.told_of(line, words, bridge)
    if not found:
        return None
    with Links() as links:
        there = {link.mac: link for link in links.all() if link.kind == "macvtap"}
    for mac in found:
        link = there.get(mac)
        if link is None:
            return mac
        held = tap.held([link]).get(link.index, ())
        if not held and link.owner is Owner.QEMU:
            return mac
        if pid not in {holder.pid for holder in held}:
            raise ConflictError(
                f"{mac} is the MAC of {link.name} already", hint="give this guest another: -device …,mac=MAC"
            )
    return None
