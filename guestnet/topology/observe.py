"""What a node is like: its own network namespace and those of its topologies."""

import os
import threading
import time
from collections.abc import Callable, Iterable

from guestnet.errors import ConflictError
from guestnet.inet import Assigned
from guestnet.kernel import netns
from guestnet.kernel.place import Place, Places
from guestnet.model import Link
from guestnet.plan import topology as plan
from guestnet.plan.layout import marked
from guestnet.topology import state as states

_DAD_SECONDS = 6.0  # DupAddrDetectTransmits 1, RetransTimer 1 s, and a delay of up to 1 s before (RFC 4862, 5.4.2)
_LOOK = 0.02


def mark_of(place: Place) -> str:
    """The mark of a namespace that a topology made: the ifalias of its lo. Empty for any other."""
    return next((link.alias for link in place.links.all() if link.loopback and link.ours), "")


def _contents(place: Place, home: int | None) -> plan.Contents:
    links = place.links.all()
    return plan.Contents(
        links=links, addresses=place.addresses.all(), routes=place.routes.all(ours=True),
        mark=next((link.alias for link in links if link.loopback and link.ours), ""),
        host=None if home is None else place.links.number_of(home),
    )  # fmt: skip


def rooms_of(places: Places, mark: str, names: Iterable[str]) -> dict[str, plan.Contents]:
    """The namespaces of these names that are there, and those that carry the mark; the caller's own is among them."""
    wanted = set(names)
    found = {plan.HERE: _contents(places.here, None)}
    with netns.own() as home:
        for name in netns.names():
            if not netns.exists(name):
                continue
            if name in wanted or mark_of(places.at(name)) == mark:
                found[name] = _contents(places.at(name), home)
            else:
                places.forget(name)
    return found


def running() -> tuple[str, ...]:
    """The topologies that are up here, whole or half: by the marks of links and namespaces, and by what is kept."""
    found = set(states.names())
    with Places() as places:
        found.update(marked(link.alias)[0] for link in places.here.links.all() if link.ours)
        for name in netns.names():
            if os.geteuid() == 0 and netns.exists(name):
                found.add(marked(mark_of(places.at(name)))[0])
                places.forget(name)
    return tuple(sorted(found - {""}))


def wait_addresses(look: Callable[[], Iterable[tuple[str, Link, Assigned]]]) -> None:
    """Wait until nobody on the wire has objected to these addresses, where there is a wire: they can be used then.

    ``look`` gives them as they are now, each with the name of its namespace and its link. Raises ConflictError where
    somebody else has one (duplicate address detection, RFC 4862, 5.4).
    """
    deadline = time.monotonic() + _DAD_SECONDS
    never = threading.Event()
    while True:
        waits = False
        for room, link, one in look():
            if one.duplicate:
                raise ConflictError(
                    f"another on the wire has {one.address.ip}, the address of {link.name}"
                    + (f" in {room}" if room else ""),
                    hint="choose another address, or find who has it: tcpdump -e icmp6",
                )
            waits = waits or (one.tentative and link.carrier)
        if not waits or time.monotonic() > deadline:
            return
        never.wait(_LOOK)
