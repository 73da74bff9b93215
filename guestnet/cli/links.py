"""guestnet macvtap, macvlan, vlan: add, set, list, delete."""

from typing import Annotated, Any

import typer

from guestnet import report
from guestnet.cli import options
from guestnet.errors import UsageError
from guestnet.model import Kind, LinkName, Mac, Mode, VlanProtocol


def _group(about: str) -> typer.Typer:
    return typer.Typer(
        help=about, no_args_is_help=True, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False,
    )  # fmt: skip


def _link_names(texts: list[str]) -> tuple[LinkName, ...]:
    return tuple(LinkName(text) for text in texts)


macvtap_app = _group("Macvtaps: the links a guest's NIC can be.")
macvlan_app = _group("Macvlans: links of the host's own on another's wire.")
vlan_app = _group("VLANs of an interface (802.1Q, 802.1ad).")

_Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Their names.", show_default=False)]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name.", show_default=False)]
_Only = Annotated[str | None, typer.Argument(metavar="NAME", help="Only this one.", show_default=False)]
_Parent = Annotated[str, typer.Option("--parent", metavar="IFACE[.VID]", help="The link they go on.")]
_Down = Annotated[bool, typer.Option("--down", help="Leave it down.")]
_Up = Annotated[bool, typer.Option("--up", help="Bring it up.")]
_SetDown = Annotated[bool, typer.Option("--down", help="Bring it down.")]
_Into = Annotated[str | None, typer.Option("--netns", metavar="NS", help="Make it in this network namespace.")]
_MoveTo = Annotated[str | None, typer.Option("--netns", metavar="NS", help="Move it into this network namespace.")]
_At = Annotated[str | None, typer.Option("--netns", metavar="NS", help="In this network namespace.")]
_Foreign = Annotated[bool, typer.Option("--foreign", help="Even if guestnet did not make it.")]
_Force = Annotated[bool, typer.Option("--force", help="Even if a process, such as a QEMU, holds it open.")]
_MacvlanMode = Annotated[
    Mode | None,
    typer.Option(
        "--mode", metavar="MODE", parser=Mode.parse, help="bridge, vepa, private, passthru, source.  [bridge]"
    ),
]
_MacvlanModeChange = Annotated[
    Mode | None,
    typer.Option("--mode", metavar="MODE", parser=Mode.parse, help="bridge, vepa, private or source."),
]
_SourceMacs = Annotated[
    list[Mac] | None,
    typer.Option("--source-mac", metavar="MAC", parser=Mac, help="An address that mode source listens to; repeatable."),
]


@macvtap_app.command("add")
def add_macvtap(
    names: _Names,
    parent: _Parent,
    outer_protocol: options.OuterOption = None,
    mode: options.ModeOption = None,
    mac: options.MacOption = None,
    mtu: options.MtuOption = None,
    multicast: options.MulticastOption = None,
    netns: _Into = None,
    down: _Down = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Make macvtaps on a parent interface: all of them, or none.

    A missing VLAN of the parent (NIC.VID) is made. The host's IPv6 stays off them, and all multicast passes.
    """
    from guestnet.plan.hostlink import Wanted

    wanted = Wanted(
        kind=Kind.MACVTAP, names=_link_names(names), parent=parent, outer=outer_protocol, mode=mode, mac=mac, mtu=mtu,
        multicast=multicast, up=not down,
    )  # fmt: skip
    _add(wanted, netns, dry_run=dry_run, json=json)


@macvlan_app.command("add")
def add_macvlan(
    names: _Names,
    parent: _Parent,
    outer_protocol: options.OuterOption = None,
    mode: _MacvlanMode = None,
    source_mac: _SourceMacs = None,
    mac: options.MacOption = None,
    mtu: options.MtuOption = None,
    netns: _Into = None,
    down: _Down = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Make macvlans on a parent interface: all of them, or none.

    A missing VLAN of the parent (NIC.VID) is made.
    """
    from guestnet.plan.hostlink import Wanted

    wanted = Wanted(
        kind=Kind.MACVLAN, names=_link_names(names), parent=parent, outer=outer_protocol, mode=mode, mac=mac, mtu=mtu,
        source_macs=tuple(source_mac or ()), up=not down,
    )  # fmt: skip
    _add(wanted, netns, dry_run=dry_run, json=json)


@vlan_app.command("add")
def add_vlan(
    name: Annotated[
        str | None, typer.Argument(metavar="NIC.VID|NAME", help="NIC.VID, or any name.", show_default=False)
    ] = None,
    parent: Annotated[str | None, typer.Option("--parent", metavar="IFACE", help="The link it is a VLAN of.")] = None,
    vlan: options.VlanOption = None,
    protocol: options.ProtocolOption = None,
    outer_protocol: options.OuterOption = None,
    mac: options.MacOption = None,
    mtu: options.MtuOption = None,
    netns: _Into = None,
    down: _Down = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Make a VLAN: NIC.VID, or one of any name with --parent NIC --vlan VID.

    A missing VLAN of the parent (NIC.VID.VID) is made. Where NIC.VID is too long for the kernel, the VLAN gets a short
    name, and NIC.VID as another one.
    """
    from guestnet.plan.hostlink import Wanted, vlan_words

    link, nic, number = vlan_words(name, parent, vlan)
    wanted = Wanted(
        kind=Kind.VLAN, names=(link,), parent=nic, vlan=number, protocol=protocol or VlanProtocol.DOT1Q,
        outer=outer_protocol, mac=mac, mtu=mtu, up=not down,
    )  # fmt: skip
    _add(wanted, netns, dry_run=dry_run, json=json)


@macvtap_app.command("set")
def set_macvtap(
    name: _Name,
    mode: options.ModeChange = None,
    mac: options.MacOption = None,
    mtu: options.MtuOption = None,
    up: _Up = False,
    down: _SetDown = False,
    netns: _MoveTo = None,
    foreign: _Foreign = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Change a macvtap of the host, in use or not, or move it."""
    _set(Kind.MACVTAP, name, netns, foreign, dry_run, json, mode=mode, mac=mac, mtu=mtu, up=_state(up, down))


@macvlan_app.command("set")
def set_macvlan(
    name: _Name,
    mode: _MacvlanModeChange = None,
    source_mac: _SourceMacs = None,
    mac: options.MacOption = None,
    mtu: options.MtuOption = None,
    up: _Up = False,
    down: _SetDown = False,
    netns: _MoveTo = None,
    foreign: _Foreign = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Change a macvlan, in use or not, or move it."""
    sources = tuple(source_mac or ())
    _set(
        Kind.MACVLAN,
        name,
        netns,
        foreign,
        dry_run,
        json,
        mode=mode,
        mac=mac,
        mtu=mtu,
        up=_state(up, down),
        source_macs=sources,
    )


@vlan_app.command("set")
def set_vlan(
    name: _Name,
    mac: options.MacOption = None,
    mtu: options.MtuOption = None,
    up: _Up = False,
    down: _SetDown = False,
    netns: _MoveTo = None,
    foreign: _Foreign = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Change a VLAN, or move it."""
    _set(Kind.VLAN, name, netns, foreign, dry_run, json, mac=mac, mtu=mtu, up=_state(up, down))


def _list_of(kind: Kind, app: typer.Typer) -> None:
    def show(name: _Only = None, netns: _At = None, json: options.Json = False) -> None:
        from guestnet import linklist

        report.links(linklist.listed(kind, name, netns), kind, netns, json_wanted=json)

    app.command("list", help=f"Show the {kind} links there are, and whose they are.")(show)


def _delete_of(kind: Kind, app: typer.Typer) -> None:
    def delete(
        names: _Names,
        netns: _At = None,
        foreign: _Foreign = False,
        dry_run: options.DryRun = False,
        json: options.Json = False,
    ) -> None:
        _delete(kind, names, netns, dry_run=dry_run, json=json, foreign=foreign)

    app.command("delete", help=f"Delete {kind} links; one that must stay stops no other.")(delete)


_list_of(Kind.MACVTAP, macvtap_app)
_list_of(Kind.MACVLAN, macvlan_app)
_list_of(Kind.VLAN, vlan_app)
_delete_of(Kind.MACVLAN, macvlan_app)
_delete_of(Kind.VLAN, vlan_app)


@macvtap_app.command("delete")
def delete_macvtap(
    names: _Names,
    netns: _At = None,
    foreign: _Foreign = False,
    force: _Force = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Delete macvtap links; one that must stay stops no other.

    One that a process holds open stays: that would not notice, and go on writing to nobody.
    """
    _delete(Kind.MACVTAP, names, netns, dry_run=dry_run, json=json, foreign=foreign, force=force)


def _state(up: bool, down: bool) -> bool | None:
    if up and down:
        raise UsageError("--up and --down are both given", hint="give one of them")
    return True if up else False if down else None


def _add(wanted: Any, netns: str | None, *, dry_run: bool, json: bool) -> None:
    from guestnet import hostlink as verb

    report.links_outcome(verb.add(wanted, verb.Options(netns=netns, dry_run=dry_run)), "made", json_wanted=json)


def _delete(kind: Kind, names: list[str], netns: str | None, *, dry_run: bool, json: bool, **how: bool) -> None:
    from guestnet import hostlink as verb

    done = verb.delete(kind, tuple(names), verb.Options(netns=netns, dry_run=dry_run), **how)
    report.links_outcome(done, "deleted", json_wanted=json)


def _set(kind: Kind, name: str, netns: str | None, foreign: bool, dry_run: bool, json: bool, **wanted: Any) -> None:
    from guestnet import hostlink as verb
    from guestnet.plan.hostlink import Change

    change = Change(netns=netns, **wanted)
    how = verb.Options(netns=netns, dry_run=dry_run)
    report.links_outcome(verb.change(kind, name, change, how, foreign=foreign), "changed", json_wanted=json)
