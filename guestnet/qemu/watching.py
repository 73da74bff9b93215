"""Watchers for the NICs of a QEMU that outlives whoever gave it the taps."""

from collections.abc import Callable

from guestnet import watcher
from guestnet.errors import GuestnetError
from guestnet.kernel.handover import LastClose
from guestnet.qemu.nics import Opened


def watch(made: Opened, notice: Callable[[str], None] | None, *, learn: bool = False) -> None:
    """See to it that the links go when the QEMU ends that is about to get their taps, which may be after us.

    ``learn`` also gives a link the MAC that the guest turns out to have. Where that cannot be, ``notice`` is told.
    """
    for nic, link in zip(made.nics, made.links, strict=True):
        try:
            with LastClose.of(*(f"/proc/self/fd/{fd}" for fd in nic.fds)) as last_close:
                watcher.start(last_close, link, learn=learn)
        except GuestnetError as error:
            if notice is not None:
                notice(f"{link.name} will be left when QEMU ends, for `guestnet gc`: {error.message}")
