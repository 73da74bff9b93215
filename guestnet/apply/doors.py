"""Where effects go: links, a namespace, a guest, the hook. Libvirt's own door is seen through a protocol, so that what
only makes links, and the hook, never come near libvirt."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from guestnet.kernel.link import Links
from guestnet.model import Guest, Link

UNPLUG_TIMEOUT = 30.0
"""Seconds a guest gets to let go of a NIC unless it is said otherwise."""


class GuestDoor(Protocol):
    """What a step does to a guest; guestnet.guest.domain.Domain is the one there is."""

    name: str

    def snapshot(self) -> Guest:
        """What is known of it now."""

    def attach(self, xml: str, *, live: bool, config: bool) -> None:
        """Plug an <interface> in."""

    def update(self, xml: str, *, live: bool, config: bool) -> None:
        """Change an <interface>."""

    def unplug(self, mac: str, timeout: float, waiting: Callable[[float], None] | None = None) -> None:
        """Ask it to let go of a NIC, and wait until it has."""

    def detach_config(self, mac: str) -> None:
        """Take a NIC out of the configuration."""

    def define(self, xml: str) -> None:
        """Set the whole configuration."""

    def set_metadata(self, text: str | None, *, live: bool, config: bool) -> None:
        """Write our metadata element, or take it out."""


class HookDoor(Protocol):
    """The hook that libvirt calls; guestnet.attachment has the one there is."""

    @property
    def used(self) -> bool:
        """Whether it is to make the links of a guest that does not run."""

    def check(self) -> None:
        """Raise GuestnetError unless the next start of a guest calls it."""

    def install(self) -> None:
        """Put it there, and let libvirt look for it."""

    def put_back(self) -> None:
        """Take it away again, where it was not there before and nobody else needs it by now."""


@dataclass(slots=True, kw_only=True)
class Doors:
    """Where effects go: the links of this host, those of the namespace a link is for, the guest, and libvirt's hook.

    ``into`` is the fd of that namespace, None for this one. ``waiting`` hears the seconds spent on an unplug. ``held``
    are the MACs a guest would not let go of while its plugging in was undone. ``made`` are the links made so far, as
    they were just after: the steps that dress one need not look it up again, nor take back what goes with it.
    ``parents`` are the lower links looked up so far. ``shared`` are the VLANs that somebody else made since the plan,
    by the name they have in it.
    """

    links: Links
    target: Links
    into: int | None = None
    domain: GuestDoor | None = None
    hook: HookDoor | None = None
    timeout: float = UNPLUG_TIMEOUT
    waiting: Callable[[float], None] | None = None
    held: set[str] = field(default_factory=set)
    made: dict[str, Link] = field(default_factory=dict)
    parents: dict[str, Link] = field(default_factory=dict)
    shared: dict[str, Link] = field(default_factory=dict)
