"""Orphans: links of ours that nobody uses any more, and why each link is one or is not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guestnet.guest import xml
from guestnet.model import HOST_ALIAS, SHIM_ALIAS, VLAN_ALIAS, Guest, Kind, Link, Owner
from guestnet.plan.host import Host
from guestnet.plan.layout import marked


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a link of ours is an orphan, and why, in words that follow the link's name."""

    link: Link
    orphan: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that a judgement looks at.

    ``host`` has the links as they are and all their uses, ``before`` is as they were before the guests were asked.
    ``holders`` are, by ifindex, the processes that have a macvtap open. ``busy`` says of guests, by UUID, why nothing
    can be said of their links; ``others`` why nothing can be said of VLANs; ``unasked`` why nothing can be said of any
    link that a guest of libvirt may use, as its guests are not known.
    """

    host: Host
    before: tuple[Link, ...]
    guests: tuple[Guest, ...]
    holders: Mapping[int, tuple[object, ...]]
    busy: Mapping[str, str]
    others: str = ""
    unasked: str = ""


def judge(evidence: Evidence) -> tuple[Verdict, ...]:
    """A verdict on each link of ours, topmost first: so the orphans can be deleted in this order."""
    host = evidence.host
    users = _users(evidence.guests)
    known = {guest.uuid: guest.name for guest in evidence.guests}
    same = {(link.index, link.name, link.alias, link.group) for link in evidence.before}
    gone: set[int] = set()
    verdicts = []
    for link in sorted((link for link in host.links if link.ours), key=host.depth, reverse=True):
        kept = _use(link, host, evidence, users, gone)
        if not kept and (link.index, link.name, link.alias, link.group) not in same:
            kept = "came or changed while this looked"
        if not kept:
            gone.add(link.index)
        verdicts.append(Verdict(link=link, orphan=not kept, why=kept or _why(link, known)))
    return tuple(verdicts)


def _users(guests: Iterable[Guest]) -> dict[str, str]:
    """The NICs that the XML of a guest names, by their link: "a NIC of vm1 (live, config)"."""
    found: dict[str, dict[str, list[str]]] = {}
    for guest in guests:
        for where, text in (("live", guest.live), ("config", guest.config)):
            for target in {nic.target for nic in xml.interfaces(text)} if text is not None else ():
                found.setdefault(target, {}).setdefault(guest.name, []).append(where)
    return {
        target: " and ".join(f"a NIC of {name} ({', '.join(places)})" for name, places in names.items())
        for target, names in found.items()
    }


def _use(link: Link, host: Host, evidence: Evidence, users: Mapping[str, str], gone: set[int]) -> str:
    """Why the link stays, empty where it does not."""
    if link.alias == HOST_ALIAS:
        return "the host's own"
    if link.alias == SHIM_ALIAS:
        return "the host's own, beside its guests"
    topology, _ = marked(link.alias)
    if topology:
        return f"of the topology {topology}"
    if link.name in users:
        return users[link.name]
    held = evidence.holders.get(link.index, ())
    if held:
        return f"held open by {', '.join(map(str, held))}"
    if evidence.unasked and link.owner is not Owner.QEMU:
        return evidence.unasked
    if link.guest_uuid in evidence.busy:
        return evidence.busy[link.guest_uuid]
    if link.guest_uuid and link.kind != Kind.MACVTAP:
        return f"marked as a guest's, but a {link.kind or 'network card'}"
    marks = ("", VLAN_ALIAS) if link.kind == Kind.VLAN else ("",)
    if link.owner is Owner.HOST and not (link.kind in list(Kind) and link.alias in marks):
        return f"not marked as guestnet marks a {link.kind or 'network card'}: {link.alias!r}"
    use = host.use_of(link, gone)
    if use:
        return f"in use: {use}"
    return evidence.others if link.kind == Kind.VLAN else ""


def _why(link: Link, known: Mapping[str, str]) -> str:
    if link.guest_uuid in known:
        return f"no <interface> of its guest {known[link.guest_uuid]} names it"
    if link.guest_uuid:
        return f"its guest {link.guest_name or link.guest_uuid} is gone"
    if link.owner is Owner.QEMU:
        return "no process holds it open any more"
    if link.alias == VLAN_ALIAS:
        return "nothing uses it"
    return "made by a guestnet that was ended before it could say for whom"
