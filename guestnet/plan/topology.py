"""The plans of a topology on one node: what brings it up from whatever is there, and what takes it down."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

from guestnet.errors import ConflictError, NotFoundError, UsageError
from guestnet.inet import Address, Assigned, Entry, Route, sysctl_words
from guestnet.model import LIVE_MODES, Link, LinkName, Mac, Mode, Multicast, NewLink, Request
from guestnet.plan.host import Host
from guestnet.plan.layout import Endpoint, Node, Topology, Where, marked
from guestnet.plan.parent import (
    Parent,
    check_mac,
    check_mtu,
    check_parent,
    describe,
    make_link,
    make_parent,
    parent_notes,
    resolve_parent,
)
from guestnet.plan.steps import AllowMulticast, DeleteLink, LinkStep, Mark, SetMac, SetMode, SetMtu, SetUp

HERE = ""
"""The name of the namespace the command runs in, among the named ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddNamespace:
    """Make a named network namespace, marked and with lo up."""

    name: str
    mark: str

    def __str__(self) -> str:
        return f"make network namespace {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteNamespace:
    """Take the name off a network namespace, which goes with it."""

    name: str

    def __str__(self) -> str:
        return f"delete network namespace {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """A step on a link, in the network namespace of that name."""

    netns: str
    step: LinkStep

    def __str__(self) -> str:
        return f"{self.step}{_in(self.netns)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAddress:
    """Give a link an address, or take it off."""

    netns: str
    link: str
    address: Address
    there: bool = True

    def __str__(self) -> str:
        words = f"give {self.link} the address" if self.there else f"take off {self.link} the address"
        return f"{words} {self.address}{_in(self.netns)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRoute:
    """Add a route by a link, or take it away."""

    netns: str
    link: str
    route: Route
    there: bool = True

    def __str__(self) -> str:
        word = "add the route" if self.there else "take away the route"
        dev = f"{self.route} {self.link}" if self.route.via is None else f"{self.route} dev {self.link}"
        return f"{word} {dev}{_in(self.netns)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSysctl:
    """Set a sysctl; ``before`` is what it and those that change with it are now, for the way back."""

    netns: str
    name: str
    value: str
    before: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        was = dict(self.before).get(self.name)
        return f"set {sysctl_words(self.name)} to {self.value}" + (f" (it is {was})" if was else "") + _in(self.netns)


Step = AddNamespace | DeleteNamespace | Within | SetAddress | SetRoute | SetSysctl


def _in(netns: str) -> str:
    return f" in network namespace {netns}" if netns else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """An address that is wanted on a link, and one that another link has: ``same`` or in a subnet that overlaps."""

    wanted: Address
    there: Address
    link: str
    same: bool

    @property
    def alone(self) -> str:
        """The address that is wanted without a subnet."""
        return f"{self.wanted.ip}/{self.wanted.max_prefixlen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is in one network namespace. ``mark`` is the ifalias of its ``lo``, ``host`` the number by which its links
    call the node's own namespace; None for that one itself."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Assigned, ...] = ()
    routes: tuple[Entry, ...] = ()
    mark: str = ""
    host: int | None = None

    def find(self, name: str) -> Link | None:
        """The link of that name."""
        return next((link for link in self.links if link.name == name), None)

    def clash(self, addresses: Iterable[Address], *, besides: Container[str]) -> Clash | None:
        """The first of these addresses that another link has, or whose subnet overlaps one of another link: by which
        of the two a packet would leave is chance. ``besides`` are links that do not count. An address alone has no
        subnet."""
        names = {link.index: link.name for link in self.links}
        wanted = tuple(addresses)
        for one in self.addresses:
            name = names.get(one.index, "?")
            for address in wanted if name not in besides else ():
                same = one.address.ip == address.ip
                alone = address.max_prefixlen in (one.address.network.prefixlen, address.network.prefixlen)
                if same or (one.address.version == address.version and not alone and _overlap(one.address, address)):
                    return Clash(wanted=address, there=one.address, link=name, same=same)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a node is like: its links, the namespaces that matter by name (its own is HERE), and sysctls by namespace
    and name: None for one that is not there. ``siblings`` are those that change with a sysctl, and what they are."""

    host: Host
    rooms: Mapping[str, Contents]
    sysctls: Mapping[tuple[str, str], str | None] = field(default_factory=dict)
    siblings: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An endpoint as it shall be on this node: in which namespace, under which name, on which parent, with which MAC.

    ``mac`` None is the parent's, in mode passthru.
    """

    endpoint: Endpoint
    room: str
    name: str
    parent: Parent
    mac: Mac | None
    alias: str

    @property
    def sysctls(self) -> dict[str, str]:
        """Its sysctls by name."""
        return self.endpoint.sysctls_of(self.name, self.parent.device)

    def own(self, sysctl: str) -> bool:
        """Whether a sysctl is of its own link alone, and so goes with it."""
        return f"/{self.name}/" in sysctl


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestWanted:
    """An endpoint that is a NIC of a libvirt guest, and the request that an attach makes it of."""

    endpoint: Endpoint
    guest: str
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps on this node, the guests' NICs, what a person should be told, and what was amiss, by endpoint."""

    steps: tuple[Step, ...] = ()
    guests: tuple[GuestWanted, ...] = ()
    notes: tuple[str, ...] = ()
    amiss: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def parents(node: Node, host: Host, stand_ins: Mapping[str, str]) -> dict[str, Parent]:
    """The parents that this node's endpoints stand on, by their names in the file; ``stand_ins`` are links by parent
    name.

    Raises what the resolving of a parent raises; NotFoundError says where in the file the link is named.
    """
    for name in stand_ins:
        node.wire(name)
    found: dict[str, Parent] = {}
    for wire in dict.fromkeys(endpoint.wire for endpoint in node.endpoints):
        lowest = node.lowest(wire, stand_ins)
        try:
            found[wire] = resolve_parent(node.parent_of(wire, stand_ins), None, host)
        except NotFoundError as error:
            said = f"--parent {lowest.name}={stand_ins[lowest.name]}" if lowest.name in stand_ins else lowest.at
            raise NotFoundError(
                f"{said}: {error.message} on this host",
                hint=f"{error.hint}; where it is called otherwise: --parent {lowest.name}=LINK",
            ) from None
    return found


def wanted(
    topology: Topology, node: Node, host: Host, machine_id: str, stand_ins: Mapping[str, str]
) -> tuple[Wanted, ...]:
    """The endpoints that are links of this node's own, in the file's order. Raises as ``parents``."""
    resolved = parents(node, host, stand_ins)
    found = []
    for endpoint in node.endpoints:
        if endpoint.kind is Where.GUEST:
            continue
        mac = None if endpoint.mode is Mode.PASSTHRU else endpoint.mac_of(topology.name, machine_id)
        parent = resolved[endpoint.wire]
        found.append(
            Wanted(
                endpoint=endpoint, room=endpoint.inside if endpoint.kind is Where.NETNS else HERE,
                name=endpoint.link or (mac or Mac(parent.base.mac)).ifname, parent=parent, mac=mac,
                alias=topology.alias(endpoint),
            )
        )  # fmt: skip
    return tuple(found)


def guests(topology: Topology, node: Node, machine_id: str, stand_ins: Mapping[str, str]) -> tuple[GuestWanted, ...]:
    """The NICs of libvirt guests on this node. Each has a MAC of its own from the file, so that it is found again."""
    return tuple(
        GuestWanted(
            endpoint=endpoint, guest=endpoint.inside,
            request=Request(
                parent=node.parent_of(endpoint.wire, stand_ins), mode=endpoint.mode, mtu=endpoint.mtu,
                mac=None if endpoint.mode is Mode.PASSTHRU else endpoint.mac_of(topology.name, machine_id),
                ifname=LinkName(endpoint.link) if endpoint.link else None, multicast=endpoint.multicast,
            ),
        )
        for endpoint in node.endpoints
        if endpoint.kind is Where.GUEST
    )  # fmt: skip


def up(topology: Topology, links: Iterable[Wanted], nics: tuple[GuestWanted, ...], seen: Seen) -> Plan:
    """The plan that makes it so; no steps where it is so. Raises ConflictError where something of others is in the way,
    and what the checks of a parent raise."""
    work = _Up(topology=topology, links=tuple(links), seen=seen)
    return Plan(steps=work.steps(), guests=nics, notes=tuple(dict.fromkeys(work.notes)), amiss=work.told())


def down(name: str, seen: Seen, begun: Mapping[str, str] | None = None) -> tuple[Step, ...]:
    """The steps that take away all links and namespaces marked with that topology's name.

    ``begun`` are the links that it was to have on the host, by name, with their MACs: one of ours that has no mark yet
    was left by a maker that was killed.
    """
    steps: list[Step] = []
    for room, contents in seen.rooms.items():
        if room != HERE and marked(contents.mark)[0] == name:
            steps += _empty(room, contents)
            steps.append(DeleteNamespace(name=room))
    here = seen.rooms[HERE]
    steps += (_delete(HERE, link) for link in here.links if _is_of(link, name) or _is_half_made(link, begun or {}))
    return tuple(steps)


def _is_half_made(link: Link, begun: Mapping[str, str]) -> bool:
    return link.ours and not link.alias and link.mode is not None and begun.get(link.name) in ("", link.mac)


def _is_of(link: Link, name: str) -> bool:
    return link.ours and bool(marked(link.alias)[1]) and marked(link.alias)[0] == name


def _delete(room: str, link: Link) -> Within:
    return Within(netns=room, step=DeleteLink(name=link.name, index=link.index))


def _empty(room: str, contents: Contents) -> list[Step]:
    """The links of a namespace that goes: by name, so that their device nodes go before the answer. What a person
    moved in goes with the namespace, as the kernel has it."""
    return [_delete(room, link) for link in contents.links if link.ours and not link.loopback]


@dataclass(slots=True, kw_only=True)
class _Up:
    """The work of planning: steps are collected by phase, since each phase needs what the one before it made."""

    topology: Topology
    links: tuple[Wanted, ...]
    seen: Seen
    notes: list[str] = field(default_factory=list)
    amiss: dict[str, list[str]] = field(default_factory=dict)
    deletions: list[Step] = field(default_factory=list)
    making: list[Step] = field(default_factory=list)
    sysctls: list[Step] = field(default_factory=list)
    rising: list[Step] = field(default_factory=list)
    addresses: list[Step] = field(default_factory=list)
    routes: list[Step] = field(default_factory=list)

    def told(self) -> dict[str, tuple[str, ...]]:
        """What is amiss by endpoint."""
        return {name: tuple(dict.fromkeys(words)) for name, words in self.amiss.items()}

    def steps(self) -> tuple[Step, ...]:
        """All steps in their order."""
        self._stale()
        self._namespaces()
        parents: dict[tuple[object, ...], Parent] = {}
        for one in self.links:
            if one.parent.identity not in parents:
                parents[one.parent.identity] = one.parent
                self._parent(one.parent)
            self._link(one)
        self._sysctls()
        return (*self.deletions, *self.making, *self.sysctls, *self.rising, *self.addresses, *self.routes)

    def _amiss(self, one: Wanted, word: str) -> None:
        self.amiss.setdefault(one.endpoint.name, []).append(word)

    def _stale(self) -> None:
        """What an earlier version of the file made and this one has not."""
        rooms = {one.room for one in self.links}
        wanted = {(one.room, one.name) for one in self.links}
        for room, contents in self.seen.rooms.items():
            ours = room != HERE and contents.mark == self.topology.mark
            if ours and room not in rooms:
                self.deletions += (*_empty(room, contents), DeleteNamespace(name=room))
                continue
            for link in contents.links:
                mine = _is_of(link, self.topology.name) or (ours and link.ours and not link.loopback)
                if mine and (room, link.name) not in wanted:
                    self.deletions.append(_delete(room, link))

    def _namespaces(self) -> None:
        for room in dict.fromkeys(one.room for one in self.links if one.room != HERE):
            contents = self.seen.rooms.get(room)
            if contents is None:
                self.making.append(AddNamespace(name=room, mark=self.topology.mark))
                continue
            if contents.mark != self.topology.mark:
                name, _ = marked(contents.mark)
                raise ConflictError(
                    f"there is a network namespace {room} already"
                    + (f", of the topology {name}" if name else ", and guestnet did not make it"),
                    hint=f"guestnet topology down {name}"
                    if name
                    else "delete it, or call the one in the file otherwise",
                )
            self.rising += [
                Within(netns=room, step=SetUp(name=link.name))
                for link in contents.links
                if link.loopback and not link.up
            ]

    def _parent(self, parent: Parent) -> None:
        self.making += (Within(netns=HERE, step=step) for step in make_parent(parent))
        self.notes += parent_notes(parent)
        self.notes += [f"{link.name} was down and is brought up" for link in parent.down]

    def _link(self, one: Wanted) -> None:
        contents = self.seen.rooms.get(one.room, Contents())
        link = contents.find(one.name)
        if link is not None:
            self._check_ours(one, link)
            if not self._fits(one, link, contents):
                self._amiss(one, f"{describe(link, self.seen.host)} is in its place")
                self.deletions.append(_delete(one.room, link))
                link = None
        else:
            self._amiss(one, "missing")
        if link is None:
            self._add(one)
        else:
            self._mend(one, link)
        self._addresses(one, link, contents)
        self._routes(one, link, contents)

    def _check_ours(self, one: Wanted, link: Link) -> None:
        """Raise ConflictError unless the link of that name is this topology's, or was being made for it."""
        half_made = link.ours and not link.alias and (one.room != HERE or one.mac in (None, link.mac))
        if not (_is_of(link, self.topology.name) or half_made):
            name, _ = marked(link.alias)
            where = _in(one.room) or " on this host"
            raise ConflictError(
                f"there is an interface {link.name} already{where}: "
                + (f"that of the topology {name}" if name else describe(link, self.seen.host)),
                hint=f"guestnet topology down {name}" if name else "give the endpoint another `link:` in the file",
            )

    def _fits(self, one: Wanted, link: Link, contents: Contents) -> bool:
        """Whether the link is of that kind and on that parent, in a mode that can become the right one."""
        below = one.parent.link
        if below is None or link.kind != one.endpoint.type:
            return False
        if (link.parent, link.parent_netnsid) != (below.index, contents.host):
            return False
        mode = one.endpoint.mode
        return link.mode is mode or {link.mode, mode} <= LIVE_MODES

    def _add(self, one: Wanted) -> None:
        endpoint, parent = one.endpoint, one.parent
        mine = {(one.room, link.name) for one in self.links for link in self._rivals(one)}
        host = replace(
            self.seen.host, links=tuple(link for link in self.seen.host.links if (HERE, link.name) not in mine)
        )
        check_parent(parent, host, mode=endpoint.mode)
        check_mtu(endpoint.mtu, parent)
        if one.mac is not None:
            check_mac(one.mac, parent, host)
        multicast = Multicast.FILTERED
        if endpoint.kind is Where.QEMU:
            multicast = endpoint.multicast or Multicast.ALL
        new = NewLink(
            kind=endpoint.type, name=one.name, parent=parent.device, alias=one.alias, mode=endpoint.mode, mac=one.mac,
            mtu=endpoint.mtu, multicast=multicast, up=False,
        )  # fmt: skip
        self.making += (Within(netns=one.room, step=step) for step in make_link(new, quiet=endpoint.kind is Where.QEMU))
        self.rising.append(Within(netns=one.room, step=SetUp(name=one.name)))

    def _rivals(self, one: Wanted) -> list[Link]:
        """The link of ours that stands in the place of an endpoint: no rival of the one to be made."""
        link = self.seen.rooms.get(one.room, Contents()).find(one.name)
        return [link] if link is not None else []

    def _mend(self, one: Wanted, link: Link) -> None:
        endpoint, steps = one.endpoint, list[LinkStep]()
        if link.alias != one.alias:
            new = NewLink(
                kind=endpoint.type, name=one.name, parent=one.parent.device, alias=one.alias,
                multicast=endpoint.multicast or Multicast.ALL if endpoint.kind is Where.QEMU else Multicast.FILTERED,
                up=False,
            )  # fmt: skip
            dress = make_link(new, quiet=endpoint.kind is Where.QEMU)[1:]
            steps += dress if not link.alias else [Mark(name=one.name, alias=one.alias)]
            self._amiss(one, "half made" if not link.alias else "marked otherwise")
        if link.mode is not endpoint.mode:
            self._amiss(one, f"in mode {link.mode}")
            steps.append(SetMode(name=one.name, mode=endpoint.mode))
        if one.mac is not None and link.mac != one.mac:
            self._amiss(one, f"MAC {link.mac}")
            steps.append(SetMac(name=one.name, mac=one.mac))
        if endpoint.mtu is not None and link.mtu != endpoint.mtu:
            self._amiss(one, f"MTU {link.mtu}")
            check_mtu(endpoint.mtu, one.parent)
            steps.append(SetMtu(name=one.name, mtu=endpoint.mtu))
        if endpoint.kind is Where.QEMU and endpoint.multicast is not Multicast.FILTERED and not link.allmulti:
            self._amiss(one, "filters multicast")
            steps.append(AllowMulticast(name=one.name))
        self.making += (Within(netns=one.room, step=step) for step in dict.fromkeys(steps))
        if not link.up:
            self._amiss(one, "down")
            self.rising.append(Within(netns=one.room, step=SetUp(name=one.name)))

    def _addresses(self, one: Wanted, link: Link | None, contents: Contents) -> None:
        if one.endpoint.kind is Where.QEMU:
            return  # they are for what runs in it
        if one.room == HERE:
            self._check_subnets(one, contents)
        there = [] if link is None else [it for it in contents.addresses if it.index == link.index and it.by_hand]
        good = [it.address for it in there if not it.duplicate]
        for it in there:
            if it.duplicate or it.address not in one.endpoint.addresses:
                words = "is another's too" if it.duplicate else "is not in the file"
                self._amiss(one, f"{it.address} {words}")
                self.addresses.append(SetAddress(netns=one.room, link=one.name, address=it.address, there=False))
        for address in one.endpoint.addresses:
            if address not in good:
                self._amiss(one, f"no {address}")
                self.addresses.append(SetAddress(netns=one.room, link=one.name, address=address))

    def _check_subnets(self, one: Wanted, contents: Contents) -> None:
        """Raise ConflictError where another link of the host has the address, or a subnet that overlaps."""
        clash = contents.clash(one.endpoint.addresses, besides={it.name for it in self.links if it.room == HERE})
        if clash is None:
            return
        if clash.same:
            raise ConflictError(
                f"{clash.link} of this host has the address {clash.wanted.ip} already",
                hint="choose another in the file",
            )
        raise ConflictError(
            f"{clash.wanted} of {one.endpoint.title} overlaps {clash.there} of {clash.link} on this host: what is for "
            "both would leave by one of them",
            hint=f"choose a subnet apart, or {clash.alone} and routes to the others",
        )

    def _routes(self, one: Wanted, link: Link | None, contents: Contents) -> None:
        if one.endpoint.kind is Where.QEMU:
            return
        there = [] if link is None else [it for it in contents.routes if it.index == link.index and it.ours]
        known = [Route(to=it.to, via=it.via, onlink=it.onlink) for it in there]
        for route in known:
            if route not in one.endpoint.routes:
                self._amiss(one, f"the route {route} is not in the file")
                self.routes.append(SetRoute(netns=one.room, link=one.name, route=route, there=False))
        # a router is found by a route without one
        for route in sorted(one.endpoint.routes, key=lambda route: (route.via is not None, -route.to.prefixlen)):
            if route not in known:
                self._amiss(one, f"no route {route}")
                self.routes.append(SetRoute(netns=one.room, link=one.name, route=route))

    def _sysctls(self) -> None:
        seen: dict[tuple[str, str], tuple[str, Wanted]] = {}
        for one in self.links:
            if one.endpoint.kind is Where.QEMU:
                continue
            for name, value in one.sysctls.items():
                said, by = seen.setdefault((one.room, name), (value, one))
                if said != value:
                    who = f"{by.endpoint.title} and {one.endpoint.title}"
                    raise UsageError(f"{who} want {sysctl_words(name)} to be {said} and {value}", hint="say it once")
        for (room, name), (value, one) in seen.items():
            now = self.seen.sysctls.get((room, name))
            if now == value:
                continue
            comes = room not in self.seen.rooms or one.own(name) or one.parent.link is None
            if now is None and not comes:
                raise NotFoundError(
                    f"this kernel has no sysctl {sysctl_words(name)}, which {one.endpoint.title} wants",
                    hint="see its spelling, and whether the kernel has the feature",
                )
            before = ((name, now), *self.seen.siblings.get(name, ())) if now is not None and room == HERE else ()
            self.sysctls.append(SetSysctl(netns=room, name=name, value=value, before=before))
            self._amiss(one, f"{sysctl_words(name)} is {now if now is not None else 'not there'}")
            if before and not one.own(name):
                self.notes.append(
                    f"{sysctl_words(name)} of this host becomes {value} (it is {now}) until the topology is taken down"
                )
            if room == HERE and name == "net/ipv6/conf/all/forwarding" and value == "1":
                self.notes.append("a host that forwards IPv6 takes no router's word any more, where accept_ra is 1")


def _overlap(one: Address, other: Address) -> bool:
    return one.network.overlaps(other.network)
