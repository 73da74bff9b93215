"""The plan of the host's own shim: a macvlan of the host beside its guests' macvtaps, so that they reach each other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guestnet.errors import ConflictError, NotFoundError, UsageError
from guestnet.inet import Address, Network, Route
from guestnet.model import NAME_MAX, SHIM_ALIAS, Kind, Link, LinkName, Mac, Mode, NewLink
from guestnet.plan.host import Host
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
from guestnet.plan.steps import SetMac, SetMtu, SetUp
from guestnet.plan.topology import HERE, Contents, SetAddress, SetRoute, SetSysctl, Step, Within
from guestnet.plan.unit import WriteUnit, card, command_line, device_unit, escaped, filled

_PREFIX = "shim-"
UNIT = "guestnet-host-"
"""How the names of their units begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A shim as a person asks for it. ``anyway`` is for guests in mode vepa, which only a switch that sends frames back
    lets be reached."""

    parent: str
    addresses: tuple[Address, ...]
    routes: tuple[Network, ...] = ()
    name: LinkName | None = None
    mac: Mac | None = None
    mtu: int | None = None
    anyway: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps that make a shim, its name, the parent it stands on, and what a person should be told.

    The rest is what it has after them: ``card`` is the link below it that is there at boot, ``mtu`` None the parent's,
    ``anyway`` as it was asked for.
    """

    name: str
    parent: Parent
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    card: str
    mac: str
    addresses: tuple[Address, ...]
    routes: tuple[Network, ...]
    mtu: int | None
    anyway: bool


def shims(host: Host) -> tuple[Link, ...]:
    """The shims there are."""
    return tuple(link for link in host.links if link.ours and link.alias == SHIM_ALIAS)


def name_for(parent: str) -> LinkName:
    """The name of the shim on that parent: the same each time, and short enough for the kernel."""
    name = _PREFIX + parent
    if len(name.encode(errors="surrogatepass")) > NAME_MAX:
        import hashlib

        name = _PREFIX + hashlib.sha256(parent.encode(errors="surrogatepass")).hexdigest()[:8]
    return LinkName(name)


def check_words(wanted: Wanted) -> None:
    """Raise UsageError for what cannot be meant, whatever the host has."""
    if not wanted.addresses:
        raise UsageError(
            "the host's link needs an address", hint="--address 192.0.2.9/32, one that nobody else on the wire has"
        )
    for number, address in enumerate(wanted.addresses):
        if address.ip in [one.ip for one in wanted.addresses[:number]]:
            raise UsageError(f"the address {address.ip} is given twice", hint="give it once")
    for route in wanted.routes:
        if route.prefixlen == 0:
            raise UsageError(
                "a default route is not for this link", hint="--route the guests' addresses, or their subnet"
            )
        if all(route.version != address.version for address in wanted.addresses):
            raise UsageError(
                f"the route to {route} is of IPv{route.version}, and no address is", hint="give an --address for it"
            )


def add(wanted: Wanted, host: Host, contents: Contents, machine_id: str, sysctls: Mapping[str, str | None]) -> Plan:
    """The plan that makes a shim, or gives the one that is there what it has not; no steps where it is so.

    ``sysctls`` are the settings of the shim's link if it is there, and of the kernel's default for a new one. Raises
    ConflictError where it would not help: guests in a mode that no other link on their parent reaches.
    """
    check_words(wanted)
    parent = resolve_parent(wanted.parent, None, host)
    there = next((link for link in shims(host) if parent.link is not None and host.below(link) == parent.link), None)
    if there is not None and wanted.name not in (None, there.name):
        raise ConflictError(
            f"the host has a link on {parent.readable} already: {there.name}", hint="leave --name out, or delete it"
        )
    name = LinkName(there.name) if there is not None else wanted.name or name_for(parent.readable)
    notes = [*parent_notes(parent), *_modes(wanted, parent, host, making=there is None)]
    steps: list[Step] = []
    if there is None:
        steps += _make(wanted, name, parent, host, machine_id)
        notes += [f"{link.name} was down and is brought up" for link in parent.down]
    else:
        steps += _mend(wanted, there, parent, host)
    steps += [
        SetSysctl(netns=HERE, name=one, value=value)
        for one, value in sysctls_of(name).items()
        if sysctls.get(one) != value and (sysctls.get(one) is not None or _known(one, name, sysctls))
    ]
    if there is None or not there.up:
        steps.append(Within(netns=HERE, step=SetUp(name=name)))
    _check_subnets(wanted, there, contents)
    mine = there.index if there is not None else 0
    has = [one.address for one in contents.addresses if one.index == mine]
    by_hand = [one.address for one in contents.addresses if one.index == mine and one.by_hand]
    steps += [SetAddress(netns=HERE, link=name, address=one) for one in wanted.addresses if one not in has]
    known = [one.to for one in contents.routes if one.index == mine and one.via is None]
    own = [one.network for one in (*wanted.addresses, *has)]
    steps += [
        SetRoute(netns=HERE, link=name, route=Route(to=one))
        for one in wanted.routes
        if one not in known and one not in own
    ]
    differs = there is not None and parent.link is not None and there.mtu != parent.link.mtu
    return Plan(
        name=name, parent=parent, steps=tuple(steps), notes=tuple(notes), card=card(parent.base, host).name,
        mac=there.mac if there is not None and wanted.mac is None else _mac(wanted, parent, machine_id),
        addresses=tuple(sorted({*wanted.addresses, *by_hand}, key=_by_version)),
        routes=tuple(sorted({*wanted.routes, *(routes_of(there, contents) if there is not None else ())} - {*own},
                            key=_by_version)),
        mtu=wanted.mtu or (there.mtu if there is not None and differs else None), anyway=wanted.anyway,
    )  # fmt: skip


def routes_of(shim: Link, contents: Contents) -> tuple[Network, ...]:
    """The routes that a shim was given: not those that come with its addresses, or by themselves."""
    own = [one.address.network for one in contents.addresses if one.index == shim.index]
    return tuple(
        one.to
        for one in contents.routes
        if one.index == shim.index and one.to not in own and not one.to.is_link_local and not one.to.is_multicast
    )


def _by_version(one: Address | Network) -> tuple[int, str]:
    return one.version, str(one)


def sysctls_of(name: str) -> dict[str, str]:
    """What keeps a shim from answering for the host's other addresses, and from taking any by itself."""
    return {
        f"net/ipv4/conf/{name}/arp_ignore": "1",
        f"net/ipv6/conf/{name}/accept_ra": "0",
        f"net/ipv6/conf/{name}/autoconf": "0",
    }


def _known(sysctl: str, name: str, sysctls: Mapping[str, str | None]) -> bool:
    """Whether a new link will have the setting: the kernel's default for one does."""
    return sysctls.get(sysctl.replace(f"/{name}/", "/default/")) is not None


def _mac(wanted: Wanted, parent: Parent, machine_id: str) -> Mac:
    return wanted.mac or Mac.derive(machine_id, "the host", parent.readable, 0)


def _make(wanted: Wanted, name: LinkName, parent: Parent, host: Host, machine_id: str) -> list[Step]:
    mac = _mac(wanted, parent, machine_id)
    taken = host.find(name)
    if taken is not None:
        raise ConflictError(
            f"the interface name {name} is taken by {describe(taken, host)}", hint="choose another: --name"
        )
    check_parent(parent, host, mode=Mode.BRIDGE)
    check_mtu(wanted.mtu, parent)
    check_mac(mac, parent, host)
    new = NewLink(
        kind=Kind.MACVLAN, name=name, parent=parent.device, alias=SHIM_ALIAS, mode=Mode.BRIDGE, mac=mac,
        mtu=wanted.mtu, up=False,
    )  # fmt: skip
    return [Within(netns=HERE, step=step) for step in (*make_parent(parent), *make_link(new, quiet=False))]


def _mend(wanted: Wanted, there: Link, parent: Parent, host: Host) -> list[Step]:
    steps: list[Step] = [Within(netns=HERE, step=step) for step in make_parent(parent)]
    if wanted.mac is not None and wanted.mac != there.mac:
        check_mac(wanted.mac, parent, host)
        steps.append(Within(netns=HERE, step=SetMac(name=there.name, mac=wanted.mac)))
    if wanted.mtu is not None and wanted.mtu != there.mtu:
        check_mtu(wanted.mtu, parent)
        steps.append(Within(netns=HERE, step=SetMtu(name=there.name, mtu=wanted.mtu)))
    return steps


def unreached(parent: Link, host: Host) -> tuple[Link, ...]:
    """The macvtaps on a parent that no other link on it reaches by itself: see macvlan_queue_xmit."""
    return tuple(link for link in host.above(parent) if link.kind == Kind.MACVTAP and link.mode is not Mode.BRIDGE)


def _modes(wanted: Wanted, parent: Parent, host: Host, *, making: bool) -> list[str]:
    """Raise ConflictError where a new link would reach no guest on the parent; notes of those that it does not."""
    if parent.link is None:
        return []
    guests = [link for link in host.above(parent.link) if link.kind == Kind.MACVTAP]
    deaf = unreached(parent.link, host)
    whole = next((link for link in deaf if link.mode is Mode.PASSTHRU), None)
    if making and whole is not None:
        raise ConflictError(
            f"{whole.name}{_of(whole)} has {parent.readable} whole, in mode passthru: nothing else goes on it",
            hint="give the guest a macvtap in mode bridge, or the host another way to it",
        )
    vepa = [link for link in deaf if link.mode is Mode.VEPA]
    if making and deaf and len(deaf) == len(guests) and not (wanted.anyway and vepa):
        first = deaf[0]
        hint = f"guestnet set {first.guest_name or 'GUEST'} {first.name} --mode bridge"
        if vepa:
            hint += "; or --yes, if the switch sends frames back out of the port they came from"
        raise ConflictError(
            f"the host would reach no guest on {parent.readable}, only links in mode bridge reach each other: "
            + ", ".join(_told(link) for link in deaf),
            hint=hint,
        )
    return [f"{_told(link)}: the host does not reach it" for link in deaf if not (wanted.anyway and link in vepa)]


def _told(link: Link) -> str:
    return f"{link.name}{_of(link)} is in mode {link.mode}"


def _of(link: Link) -> str:
    return f" of {link.guest_name}" if link.guest_name else ""


def _check_subnets(wanted: Wanted, there: Link | None, contents: Contents) -> None:
    """Raise ConflictError where an address of the host has a part in a subnet that a new one brings."""
    clash = contents.clash(wanted.addresses, besides=[there.name] if there is not None else [])
    if clash is None:
        return
    if clash.same:
        raise ConflictError(
            f"{clash.link} has the address {clash.wanted.ip} already",
            hint="choose one that nobody on the wire has: guests talk to the host by that",
        )
    raise ConflictError(
        f"the subnet of {clash.wanted} overlaps that of {clash.there} on {clash.link}: what is for the wire would "
        "leave by one of them",
        hint=f"--address {clash.alone}, and a --route for each guest, or for a subnet they are in",
    )


def delete(name: str, host: Host) -> Link:
    """The shim of that name, or on the parent of that name. Raises NotFoundError, ConflictError for another link."""
    for link in shims(host):
        lower = host.below(link)
        if name == link.name or (lower is not None and name in (lower.name, *lower.altnames)):
            return link
    other = host.find(name)
    if other is not None and other.mode is not None:
        raise ConflictError(
            f"{name} is no link that `guestnet host add` made: it is {describe(other, host)}",
            hint=f"guestnet {other.kind} delete {name}",
        )
    there = ", ".join(link.name for link in shims(host))
    raise NotFoundError(
        f"no link {name}, and none on {name}, was made by `guestnet host add`",
        hint=f"those it made: {there}" if there else "it made none that is still there",
    )


# The systemd unit


def unit_name(name: str) -> str:
    """The unit that brings the shim of that name back at boot."""
    return f"{UNIT}{escaped(name)}.service"


def units_for(name: str) -> tuple[str, ...]:
    """The units that a person may mean by the name of a shim, of its parent, or of the unit itself."""
    try:
        return name, unit_name(name), unit_name(name_for(name))
    except UsageError:
        return (name,)  # no link is called so


def unit(made: Plan, template: str, me: Iterable[str]) -> WriteUnit:
    """The unit that makes a shim as it will be after its plan; ``me`` are the words that call guestnet."""
    start = [*me, "host", "add", made.parent.readable, "--name", made.name, "--mac", made.mac]
    start += [word for address in made.addresses for word in ("--address", str(address))]
    start += [word for route in made.routes for word in ("--route", str(route))]
    start += ["--mtu", str(made.mtu)] if made.mtu is not None else []
    start += ["--yes"] if made.anyway else []
    words = {
        "PARENT": made.parent.readable.replace("%", "%%"), "DEVICE": device_unit(made.card),
        "START": command_line(start), "STOP": command_line([*me, "host", "delete", made.name, "--keep-unit"]),
    }  # fmt: skip
    return WriteUnit(name=unit_name(made.name), text=filled(template, words))
