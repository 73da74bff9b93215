"""What every plan looks at: the links of this host."""

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from guestnet.errors import ConflictError, NotFoundError
from guestnet.model import GROUP, VLAN_ALIAS, Kind, Link, NewLink

if TYPE_CHECKING:
    from guestnet.plan.steps import LinkStep


def made_for_guests(link: Link) -> bool:
    """Whether it is a VLAN that an attach made, one that was killed before it could say so included."""
    return link.kind == Kind.VLAN and link.ours and link.alias in (VLAN_ALIAS, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The links of this host as one dump gave them, and which of the parents asked for are Wi-Fi.

    ``used_elsewhere`` are the ifindexes of those on which a link of another network namespace stands, ``addressed`` of
    those on which the host itself has an address; ``sources`` are the names on which libvirt makes macvtaps itself when
    their guests start.
    """

    links: tuple[Link, ...]
    wireless: frozenset[str] = frozenset()
    used_elsewhere: frozenset[int] = frozenset()
    addressed: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset()

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

    def depth(self, link: Link) -> int:
        """How many links it stands on in this namespace."""
        lower = self.below(link)
        return 0 if lower is None or lower.index == link.index or lower.kind == "veth" else 1 + self.depth(lower)

    def after(self, steps: "Iterable[LinkStep]") -> "Host":
        """The host as it will be after these steps, as far as a plan looks at it."""
        from guestnet.plan.steps import AddLink, DeleteLink, Mark, SetUp  # 5 ms, which a list does without

        links = list(self.links)
        for step in steps:
            match step:
                case AddLink(new=new):
                    links.append(_made(new, links))
                case DeleteLink():
                    links = [link for link in links if link.name != step.name]
                case Mark():
                    links = [replace(link, alias=step.alias) if link.name == step.name else link for link in links]
                case SetUp():
                    links = [replace(link, up=step.up) if link.name == step.name else link for link in links]
        return replace(self, links=tuple(links))

    def unused_vlans(self, going: Iterable[Link], lower: Iterable[Link] = ()) -> list[Link]:
        """The VLANs that an attach made and nobody uses once these links are gone, topmost first.

        ``lower`` are those that are no link's parent any more. See ``use_of`` for what a use is.
        """
        going = list(going)
        gone = {link.index for link in going}
        found: list[Link] = []
        queue = [link.parent for link in going if link.parent_netnsid is None]
        queue += [link.index for link in lower]
        while queue:
            vlan = self.at(queue.pop(0))
            if vlan is None or vlan.index in gone or not made_for_guests(vlan) or self.use_of(vlan, gone):
                continue
            gone.add(vlan.index)
            found.append(vlan)
            queue.append(vlan.parent)
        return found

    def use_of(self, vlan: Link, gone: Container[int] = ()) -> str:
        """What a VLAN is used for once the links of these ifindexes are gone, in words; empty where for nothing.

        A use is a link on it, here or in another namespace, an address of the host's own, being a bridge's port, and a
        guest on which libvirt makes the macvtap itself.
        """
        above = [link.name for link in self.above(vlan) if link.index not in gone]
        if above:
            return f"{', '.join(above[:3])}{', …' if len(above) > 3 else ''} on it"
        if vlan.index in self.used_elsewhere:
            return "a link of another network namespace on it"
        if vlan.index in self.addressed:
            return "an address of the host's own"
        if vlan.master is not None:
            master = self.at(vlan.master)
            return f"a port of {master.name if master is not None else f'if{vlan.master}'}"
        if not self.sources.isdisjoint((vlan.name, *vlan.altnames)):
            return "the parent of a NIC of type='direct'"
        return ""


def _made(new: NewLink, links: list[Link]) -> Link:
    lower = next((link for link in links if link.name == new.parent), None)
    index = min([0, *(link.index for link in links)]) - 1
    mac, mtu, parent = (lower.mac, lower.mtu, lower.index) if lower is not None else ("", 0, None)
    return Link(
        index=index, name=new.name, kind=new.kind, mac=new.mac or mac, mtu=new.mtu or mtu, parent=parent, mode=new.mode,
        vlan=new.vlan, vlan_protocol=new.protocol if new.vlan else "", group=GROUP,
        altnames=(new.altname,) if new.altname else (),
    )  # fmt: skip
