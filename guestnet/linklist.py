"""The list of the links of one kind: what each is and whose. It is asked for most, so it imports little."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from guestnet.kernel import netns
from guestnet.kernel.link import Links
from guestnet.model import Kind, Link
from guestnet.plan.host import Host, made_for_guests

_ADDRGENMODES = {None: "", 0: "eui64", 1: "none", 2: "stable_secret", 3: "random"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One link as `ip -d link show` has it, and whose it is. ``name`` and ``parent`` are for a person, ``device``
    is the link's name in the kernel. A parent in a namespace that is not the caller's is ``ifN``, as in ip(8)."""

    name: str
    device: str
    kind: str
    parent: str
    mode: str
    vlan: int | None
    vlan_protocol: str
    reorder_hdr: bool
    mac: str
    mtu: int
    up: bool
    carrier: bool
    operstate: str
    owner: str
    guest: str
    netns: str
    ifindex: int
    master: str
    source_macs: tuple[str, ...]
    nopromisc: bool
    allmulti: int
    promiscuity: int
    addrgenmode: str
    txqueuelen: int
    bcqueuelen: int | None
    group: int
    alias: str
    altnames: tuple[str, ...]


def listed(kind: Kind, name: str | None = None, namespace: str | None = None) -> tuple[Row, ...]:
    """The links of that kind, or the one of that name: here or in a named network namespace, in the kernel's order.

    Raises NotFoundError with the near names.
    """
    with ExitStack() as stack:
        fd = None if namespace is None else stack.enter_context(netns.opened(namespace))
        door = stack.enter_context(Links(fd))
        links = door.all()
        lowers = {}
        if fd is not None and any(link.parent_netnsid is not None for link in links):
            number = number_of_ours(door)
            lowers = {(number, link.index): link.readable for link in stack.enter_context(Links()).all()}
    found = [link for link in links if link.kind == kind]
    if name is not None:
        found = [Host(links=links).named(kind, name)]
    return rows_of(links, found, namespace or "", lowers)


def number_of_ours(links: Links) -> int:
    """The number by which links of another namespace call the one this process runs in, negative if by none."""
    with netns.own() as own:
        return links.number_of(own)


def rows_of(
    links: Iterable[Link], chosen: Iterable[Link], namespace: str, lowers: Mapping[tuple[int, int], str] | None = None
) -> tuple[Row, ...]:
    """The rows of the chosen ones among all links of a namespace, which is named where it is not this one.

    ``lowers`` are the names of links of other namespaces, by the number of theirs and the ifindex.
    """
    names = {link.index: link.readable for link in links}

    def lower(link: Link) -> str:
        if link.parent is None:
            return ""
        if link.parent_netnsid is None:
            return names.get(link.parent, f"if{link.parent}")
        return (lowers or {}).get((link.parent_netnsid, link.parent), f"if{link.parent}")

    return tuple(
        Row(
            name=link.readable, device=link.name, kind=link.kind, parent=lower(link), mode=link.mode or "",
            vlan=link.vlan, vlan_protocol=link.vlan_protocol, reorder_hdr=link.reorder_hdr, mac=link.mac, mtu=link.mtu,
            up=link.up, carrier=link.carrier, operstate=link.operstate, owner=_owner(link), guest=link.guest_name,
            netns=namespace, ifindex=link.index,
            master="" if link.master is None else names.get(link.master, f"if{link.master}"),
            source_macs=link.source_macs, nopromisc=bool(link.flags & 1), allmulti=link.allmulti,
            promiscuity=link.promiscuity, addrgenmode=_ADDRGENMODES.get(link.addrgenmode, ""),
            txqueuelen=link.txqueuelen, bcqueuelen=link.bcqueuelen, group=link.group, alias=link.alias,
            altnames=link.altnames,
        )
        for link in chosen
    )  # fmt: skip


def _owner(link: Link) -> str:
    """Whose it is; a VLAN that was made on the way to guests goes with the last of them."""
    return "guests" if made_for_guests(link) else link.owner
