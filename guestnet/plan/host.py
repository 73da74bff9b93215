"""What every plan looks at: the links of this host."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from guestnet.errors import ConflictError, NotFoundError
from guestnet.model import VLAN_ALIAS, Kind, Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The links of this host as one dump gave them, and which of the parents asked for are Wi-Fi.

    ``used_elsewhere`` are the ifindexes of those on which a link of another network namespace stands, ``addressed`` of
    those on which the host itself has an address.
    """

    links: tuple[Link, ...]
    wireless: frozenset[str] = frozenset()
    used_elsewhere: frozenset[int] = frozenset()
    addressed: frozenset[int] = frozenset()

    def find(self, name: str) -> Link | None:
        """The link of that name, or alternative name."""
        return next((link for link in self.links if link.name == name or name in link.altnames), None)

    def at(self, index: int | None) -> Link | None:
        """The link of that ifindex."""
        return next((link for link in self.links if link.index == index), None)

    def below(self, link: Link) -> Link | None:
        """The lower link of ``link``; None where it has none, or one of another namespace, whose ifindex means nothing
        here."""
        return self.at(link.parent) if link.parent_netnsid is None else None

    def named(self, kind: Kind, name: str) -> Link:
        """The link of that name. Raises NotFoundError with the near names, ConflictError for another kind."""
        link = self.find(name)
        if link is None:
            near = get_close_matches(name, [one.name for one in self.links if one.kind == kind], n=3)
            raise NotFoundError(
                f"there is no {kind} {name}",
                hint=f"did you mean {', '.join(near)}?" if near else f"guestnet {kind} list shows those there are",
            )
        if link.kind != kind:
            raise ConflictError(
                f"{name} is no {kind}, it is a {link.kind or 'network card'}",
                hint=f"guestnet {link.kind} list shows its like"
                if link.kind in list(Kind)
                else f"`ip -d link show {name}` shows it, `ip link set {name} …` changes it",
            )
        return link

    def above(self, parent: Link) -> tuple[Link, ...]:
        """The links stacked on ``parent``: macvtaps, macvlans, VLANs, whatever names it as its lower link."""
        return tuple(
            link
            for link in self.links
            if link.parent == parent.index and link.parent_netnsid is None and link.kind != "veth"
        )

    def unused_vlans(self, going: Iterable[Link]) -> list[Link]:
        """The VLANs that an attach made and nobody uses once these links are gone, topmost first.

        A use is a link on it, here or in another namespace, an address of the host's own, and being a bridge's port.
        """
        going = list(going)
        gone = {link.index for link in going}
        found: list[Link] = []
        queue = [link.parent for link in going if link.parent_netnsid is None]
        while queue:
            vlan = self.at(queue.pop(0))
            if vlan is None or vlan.index in gone or vlan.kind != "vlan" or not vlan.ours or vlan.alias != VLAN_ALIAS:
                continue
            if vlan.index in self.used_elsewhere | self.addressed or vlan.master is not None:
                continue
            if any(link.index not in gone for link in self.above(vlan)):
                continue
            gone.add(vlan.index)
            found.append(vlan)
            queue.append(vlan.parent)
        return found
