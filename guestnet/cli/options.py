"""Options and arguments that mean the same in every command."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from guestnet.errors import UsageError
from guestnet.machine import libvirt_uri
from guestnet.model import (
    Backend,
    Bandwidth,
    LinkName,
    LinkState,
    Mac,
    Mode,
    Multicast,
    Request,
    VlanProtocol,
    one_of,
    vlan_id,
)

_DIGITS = 18  # enough for a count of anything, and few enough for any integer of libvirt's


def words(kind: Any) -> Any:
    """A parser for an enumeration whose error lists its words."""

    def parse(text: str) -> Any:
        return one_of(kind, text)

    parse.__name__ = "|".join(kind)
    return parse


def number(name: str) -> Any:
    """A parser for a whole number that its error calls ``name``, article and all."""

    def parse(text: str | int) -> int:
        if not (str(text).isascii() and str(text).isdigit() and len(str(text)) <= _DIGITS):
            raise UsageError(f"{text!r} is not {name}", hint="write a whole number")
        return int(text)

    parse.__name__ = "N"
    return parse


def seconds(text: str | float) -> float:
    """A time limit in seconds, 0.1 to 3600."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.1 <= value <= 3600:
        raise UsageError(f"{text!r} is not a time limit", hint="write seconds, 0.1 to 3600, as in --timeout 30")
    return value


def word(name: str) -> Any:
    """A parser for text that must not be empty; its error calls it ``name``, article and all."""

    def parse(text: str) -> str:
        if not text:
            raise UsageError(f"{name} is empty", hint="give one, or leave the option out")
        return text

    return parse


def file(text: str | Path) -> Path:
    """A path; an empty one is refused, which would be the working directory."""
    return Path(word("the name of the file")(str(text)))


def rate(text: str) -> Any:
    """A tuple of one rate, or of None for 0, so that "no limit" differs from an option that was not given."""
    return (Bandwidth.parse(text),)


def _mode(text: str) -> Mode:
    """A mode of what a guest has, or of a macvtap."""
    return Mode.parse(text, of_guest=True)


def for_each(values: list[Any] | None, parents: list[str], option: str) -> list[Any]:
    """The values of an option that is given once for each --parent, or Nones. Raises UsageError for another count."""
    if not values:
        return [None] * len(parents)
    if len(values) != len(parents):
        raise UsageError(
            f"{option} is given {len(values)} times for {len(parents)} parents", hint=f"one {option} for each --parent"
        )
    return list(values)


def requests(
    parents: list[str],
    macs: list[Mac] | None,
    ifnames: list[LinkName] | None,
    *,
    inbound: Any,
    outbound: Any,
    **same: Any,
) -> tuple[Request, ...]:
    """One request for each parent: with a MAC and a name of its own where they are given, the rest the same for all.

    Raises UsageError where MACs or names are not as many as parents.
    """
    mac_of, name_of = for_each(macs, parents, "--mac"), for_each(ifnames, parents, "--ifname")
    rates = {"inbound": inbound[0] if inbound else None, "outbound": outbound[0] if outbound else None}
    return tuple(
        Request(parent=parent, mac=mac, ifname=ifname, **rates, **same)
        for parent, mac, ifname in zip(parents, mac_of, name_of, strict=True)
    )


uri = libvirt_uri


Guest = Annotated[str, typer.Argument(help="The libvirt domain.", metavar="GUEST", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the steps, change nothing.")]
Connect = Annotated[
    str | None,
    typer.Option("--connect", "-c", metavar="URI", help="libvirt's URI; LIBVIRT_DEFAULT_URI, else qemu:///system."),
]
NoHook = Annotated[
    bool,
    typer.Option("--no-hook", help="Do without libvirt's hook: make the link now, also where the guest does not run."),
]
Live = Annotated[bool, typer.Option("--live", help="Now, where it runs. Neither given: both.")]
Config = Annotated[bool, typer.Option("--config", help="From its next start on.")]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="SECONDS", parser=seconds, show_default=False,
        help="How long the guest gets to let go of a NIC.  [30]",
    ),
]  # fmt: skip
TimeoutOfUndo = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="SECONDS", parser=seconds, show_default=False,
        help="How long the guest gets to let go of a NIC if the work has to be undone.  [30]",
    ),
]  # fmt: skip
Netns = Annotated[str | None, typer.Option("--netns", metavar="NS", help="A network namespace of ip-netns(8).")]
ParentsOption = Annotated[
    list[str],
    typer.Option("--parent", metavar="IFACE[.VID]", help="The link it goes on; several give several NICs."),
]
ModeOption = Annotated[
    Mode | None,
    typer.Option("--mode", metavar="MODE", parser=_mode, help="bridge, vepa, private or passthru.  [bridge]"),
]
ModeChange = Annotated[
    Mode | None, typer.Option("--mode", metavar="MODE", parser=_mode, help="bridge, vepa or private.")
]
MacOption = Annotated[Mac | None, typer.Option("--mac", metavar="MAC", parser=Mac, help="The Ethernet address.")]
MacsOption = Annotated[
    list[Mac] | None, typer.Option("--mac", metavar="MAC", parser=Mac, help="The address; one for each --parent.")
]
MtuOption = Annotated[
    int | None, typer.Option("--mtu", metavar="N", parser=number("an MTU"), help="The MTU, in bytes.")
]
VlanOption = Annotated[
    int | None, typer.Option("--vlan", metavar="VID", parser=vlan_id, help="The VLAN ID on that parent, 1 to 4094.")
]
OuterOption = Annotated[
    VlanProtocol | None,
    typer.Option(
        "--outer-protocol", metavar="802.1Q|802.1ad", parser=VlanProtocol.parse,
        help="The protocol of the parent's outermost VLAN, the one on the NIC.  [802.1Q]",
    ),
]  # fmt: skip
ProtocolOption = Annotated[
    VlanProtocol | None,
    typer.Option("--protocol", metavar="802.1Q|802.1ad", parser=VlanProtocol.parse, help="Its protocol.  [802.1Q]"),
]
MulticastOption = Annotated[
    Multicast | None,
    typer.Option(
        "--multicast", metavar="all|filtered", parser=words(Multicast),
        help="Which multicast reaches it: all, or what its own filter knows.  [all]",
    ),
]  # fmt: skip
LinkOption = Annotated[
    LinkState | None,
    typer.Option("--link", metavar="up|down", parser=words(LinkState), help="The carrier the guest sees."),
]
InboundOption = Annotated[
    Any | None,
    typer.Option(
        "--inbound", metavar="RATE", parser=rate, help="To the guest: average[,peak[,burst]] in KiB/s; 0: none."
    ),
]
OutboundOption = Annotated[
    Any | None,
    typer.Option("--outbound", metavar="RATE", parser=rate, help="From the guest, in the same form."),
]
BackendOption = Annotated[
    Backend | None,
    typer.Option(
        "--backend", metavar="macvtap|direct", parser=words(Backend),
        help="Who makes the macvtap: guestnet, or libvirt (type='direct').  [macvtap]",
    ),
]  # fmt: skip
IfnameOption = Annotated[
    LinkName | None,
    typer.Option("--ifname", metavar="NAME", parser=LinkName, help="The name of the macvtap.  [from the MAC]"),
]
IfnamesOption = Annotated[
    list[LinkName] | None,
    typer.Option("--ifname", metavar="NAME", parser=LinkName, help="The macvtap's name; one for each.  [from the MAC]"),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", parser=word("the NIC model"), help="The NIC model.  [virtio]"),
]
QueuesOption = Annotated[
    int | None, typer.Option("--queues", metavar="N", parser=number("a count of queues"), help="Queues, 1 to 256.  [1]")
]
BootOrderOption = Annotated[
    int | None,
    typer.Option("--boot-order", metavar="N", parser=number("a boot order"), help="Its place in the boot order."),
]
