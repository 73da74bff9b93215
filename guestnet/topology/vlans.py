"""The VLANs that an attach or a topology made on the way, when what stood on them goes."""

from collections.abc import Collection

from guestnet.errors import GuestnetError
from guestnet.kernel.link import Links
from guestnet.model import Link
from guestnet.plan.host import Host, made_for_guests


def sources(links: Links, uri: str, notes: list[str]) -> frozenset[str] | None:
    """The links on which libvirt makes macvtaps itself, asked for only where a VLAN may have to go.

    None, and a note, where it has to be asked and does not answer. Not to be called with the host's lock held.
    """
    if not any(made_for_guests(link) for link in links.all()):
        return frozenset()
    from guestnet.guest.domain import Hypervisor
    from guestnet.plan.situation import direct_sources

    try:
        with Hypervisor(uri) as hypervisor:
            return direct_sources(hypervisor.guests())
    except GuestnetError as error:
        notes.append(f"VLANs stay, since libvirt does not say whether guests need them: {error.message}")
        return None


def unused(links: Links, lower: Collection[int], needed: frozenset[str]) -> list[Link]:
    """The VLANs among these ifindexes, and those below them, that nobody uses any more, topmost first."""
    host = Host(links=links.all())
    vlans = [link for link in host.links if link.index in lower and made_for_guests(link)]
    if not vlans:
        return []
    host = Host(links=host.links, used_elsewhere=links.used_elsewhere(), addressed=links.addressed(), sources=needed)
    return host.unused_vlans((), vlans)
