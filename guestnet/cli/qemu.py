"""guestnet qemu: run, args, helper, attach, detach, list; and guestnet exec."""

import shlex
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from guestnet import report
from guestnet.cli import options
from guestnet.errors import UsageError
from guestnet.model import LinkName, Request
from guestnet.plan.qemu import Vhost

# what click calls its UsageError, by the one way to it that Typer publishes
_ClickUsageError: Any = typer.BadParameter.__bases__[0]
_AS_IN = "{} … -- qemu-system-x86_64 …"


def _group(about: str) -> typer.Typer:
    return typer.Typer(
        help=about, no_args_is_help=True, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False,
    )  # fmt: skip


class _BeforeCommand(TyperCommand):
    """A command whose own words end at ``--``; what follows is another program's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = tuple(args[at + 1 :])
        try:
            return super().parse_args(ctx, args[:at])
        except _ClickUsageError as error:
            # a word or an option too many is the program's, where nothing says where its words begin
            if at < len(args) or type(error).__name__ not in ("NoSuchOption", "UsageError"):
                raise
            hint = f"put `--` before the command: {_AS_IN.format(ctx.command_path)}"
            raise UsageError(error.format_message(), hint=hint) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND..."]


qemu_app = _group("NICs for a QEMU without libvirt.")
exec_app = _group("")

_Vhost = Annotated[
    Vhost | None,
    typer.Option(
        "--vhost", metavar="auto|on|off", parser=options.words(Vhost),
        help="Whether the kernel moves the frames itself (vhost-net).  [auto: where it can]",
    ),
]  # fmt: skip
_Name = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="NAME", parser=options.word("the name of the guest"),
        help="The guest's name, from which its MACs are made.  [QEMU's -name]",
    ),
]  # fmt: skip
_Queues = Annotated[
    int | None,
    typer.Option("--queues", metavar="N", parser=options.number("a count of queues"), help="Queues of each.  [1]"),
]
_Socket = Annotated[
    str,
    typer.Option("--qmp", metavar="SOCKET", parser=options.word("the name of the socket"), help="QEMU's QMP socket."),
]
_Bus = Annotated[
    str | None,
    typer.Option(
        "--bus", metavar="BUS", parser=options.word("the name of the bus"),
        help="The bus to plug it into.  [a free root port]",
    ),
]  # fmt: skip


@qemu_app.command(cls=_BeforeCommand)
def run(
    ctx: typer.Context,
    parent: options.ParentsOption,
    vlan: options.VlanOption = None,
    outer_protocol: options.OuterOption = None,
    mode: options.ModeOption = None,
    mac: options.MacsOption = None,
    ifname: options.IfnamesOption = None,
    model: options.ModelOption = None,
    queues: _Queues = None,
    vhost: _Vhost = None,
    mtu: options.MtuOption = None,
    multicast: options.MulticastOption = None,
    name: _Name = None,
    dry_run: options.DryRun = False,
) -> None:
    """Run a QEMU with a NIC on each parent interface.

    The options for the NICs are put after its own. Signals reach it, its exit status is ours, and when it has ended,
    however that was, the macvtaps and the VLANs made for them are deleted.
    """
    command = _command(ctx)
    requests = _requests(parent, mac, ifname, vlan, outer_protocol, mode, model, queues, mtu, multicast)
    from guestnet.plan import qemu as plan
    from guestnet.qemu import nics
    from guestnet.qemu import run as verb

    how = nics.Options(guest=name or plan.guest_name(command), vhost=vhost or Vhost.AUTO, notice=report.note)
    if dry_run:
        wiring = nics.planned(requests, how)
        _would(wiring)
        report.line(f"would run {shlex.join(command)} with {len(wiring.nics)} more NIC{'s'[len(wiring.nics) == 1 :]}")
        return
    raise typer.Exit(verb.run(command, requests, how))


@qemu_app.command()
def args(
    parent: options.ParentsOption,
    vlan: options.VlanOption = None,
    outer_protocol: options.OuterOption = None,
    mode: options.ModeOption = None,
    mac: options.MacsOption = None,
    ifname: options.IfnamesOption = None,
    model: options.ModelOption = None,
    queues: _Queues = None,
    vhost: _Vhost = None,
    mtu: options.MtuOption = None,
    multicast: options.MulticastOption = None,
    name: _Name = None,
    first_fd: Annotated[
        int, typer.Option("--first-fd", metavar="N", parser=options.number("an fd"), help="The first fd to use.")
    ] = 3,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Make macvtaps, and print QEMU's options and the redirections that open them, for a shell script.

    They stay until they are deleted; how, is said on stderr. The same call again prints the same.
    """
    requests = _requests(parent, mac, ifname, vlan, outer_protocol, mode, model, queues, mtu, multicast)
    from guestnet.qemu import nics
    from guestnet.qemu import run as verb

    how = nics.Options(guest=name or "", vhost=vhost or Vhost.AUTO, notice=report.note)
    made = verb.arguments(requests, how, first_fd=first_fd, dry_run=dry_run)
    if json:
        body = report.object_of(made)
        body |= {"steps": [str(step) for step in made.steps], "line": made.line}
        report.as_json(body)
        return
    if dry_run:
        _would(made)
        report.line(f"would print {made.line}")
        return
    for text in made.notes:
        report.note(f"note: {text}")
    report.line(made.line)
    if made.last_fd > 9:
        report.note("note: fds above 9 are for bash; dash and other shells take one digit in a redirection")
    report.note(f"to delete it: {made.delete}")


@qemu_app.command()
def helper(
    parent: Annotated[
        str | None,
        typer.Option("--parent", metavar="IFACE[.VID]", help="The link it goes on.  [QEMU's name for the bridge]"),
    ] = None,
    vlan: options.VlanOption = None,
    outer_protocol: options.OuterOption = None,
    mode: options.ModeOption = None,
    mac: options.MacOption = None,
    ifname: options.IfnameOption = None,
    mtu: options.MtuOption = None,
    multicast: options.MulticastOption = None,
    name: _Name = None,
    bridge: Annotated[str, typer.Option("--br", metavar="NAME", help="QEMU's word: the bridge.")] = "br0",
    fd: Annotated[
        int | None,
        typer.Option("--fd", metavar="N", parser=options.number("an fd"), help="QEMU's word: the socket."),
    ] = None,
    use_vnet: Annotated[bool, typer.Option("--use-vnet", help="QEMU's word: frames have a virtio-net header.")] = False,
) -> None:
    """Give QEMU the tap of a macvtap, called by QEMU itself: -netdev tap,helper="guestnet qemu helper --parent NIC".

    The macvtap has the MAC that QEMU's command line gives the NIC, else that of the guest's first frame. When QEMU has
    ended it is deleted.
    """
    if fd is None:
        raise UsageError(
            "this is for QEMU to call, with --fd", hint='-netdev tap,id=n0,helper="guestnet qemu helper --parent NIC"'
        )
    from guestnet.qemu import helper as verb
    from guestnet.qemu import nics

    request = Request(
        parent=parent or bridge, vlan=vlan, outer=outer_protocol, mode=mode, mac=mac, ifname=ifname, mtu=mtu,
        multicast=multicast,
    )  # fmt: skip
    own = [word for word in sys.argv[1:] if word != "--use-vnet" and not word.startswith(("--fd=", "--br="))]
    how = nics.Options(guest=name or "", vnet_header=use_vnet, notice=report.note)
    verb.serve(request, fd, bridge, own, how)


@qemu_app.command()
def attach(
    qmp: _Socket,
    parent: options.ParentsOption,
    vlan: options.VlanOption = None,
    outer_protocol: options.OuterOption = None,
    mode: options.ModeOption = None,
    mac: options.MacsOption = None,
    ifname: options.IfnamesOption = None,
    model: options.ModelOption = None,
    queues: _Queues = None,
    vhost: _Vhost = None,
    mtu: options.MtuOption = None,
    multicast: options.MulticastOption = None,
    name: _Name = None,
    bus: _Bus = None,
    timeout: options.TimeoutOfUndo = 30.0,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Plug NICs into a QEMU that runs, by its QMP socket.

    Guests of libvirt are for `guestnet attach`.
    """
    requests = _requests(parent, mac, ifname, vlan, outer_protocol, mode, model, queues, mtu, multicast)
    from guestnet.qemu import hotplug as verb
    from guestnet.qemu import nics

    made = nics.Options(guest=name or "", vhost=vhost or Vhost.AUTO, notice=report.note)
    with report.progress("attaching", json_wanted=json) as waiting:
        how = verb.How(timeout=timeout, dry_run=dry_run, waiting=waiting, notice=report.note)
        outcome = verb.attach(qmp, requests, made, how, bus=bus or "")
    _outcome(outcome, "attached", json_wanted=json)


@qemu_app.command()
def detach(
    qmp: _Socket,
    nic: Annotated[
        list[str] | None, typer.Argument(metavar="NIC...", help="Its MAC or interface name.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All NICs that guestnet gave it.")] = False,
    timeout: options.Timeout = 30.0,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Take NICs from a QEMU that runs, by its QMP socket.

    Waits until the guest has let go, then deletes the macvtap, and a VLAN made for it that nobody uses.
    """
    names = tuple(nic or ())
    if names and everything:
        raise UsageError("a NIC and --all are both given", hint="name the NICs, or give --all alone")
    if not names and not everything:
        raise UsageError("say which NIC, or --all", hint=f"guestnet qemu list --qmp {qmp} shows its NICs")
    from guestnet.qemu import hotplug as verb

    with report.progress("detaching", json_wanted=json) as waiting:
        how = verb.How(timeout=timeout, dry_run=dry_run, waiting=waiting, notice=report.note)
        outcome = verb.detach(qmp, names, how, everything=everything)
    _outcome(outcome, "detached", json_wanted=json)


@qemu_app.command("list")
def show(qmp: _Socket, json: options.Json = False) -> None:
    """Show the NICs of a QEMU that runs, by its QMP socket."""
    from guestnet.qemu import hotplug as verb

    rows = verb.listed(qmp)
    if json:
        report.as_json(rows)
        return
    columns = ("INTERFACE", "PARENT", "MODE", "MAC", "MODEL", "QUEUES", "BUS", "ID", "CARRIER")
    report.table(
        columns,
        (
            (
                row.ifname, row.parent, row.mode, row.mac, row.model, str(row.queues), row.bus, row.id,
                "" if row.carrier is None else "yes" if row.carrier else "no",
            )
            for row in rows
        ),
    )  # fmt: skip


@exec_app.command(cls=_BeforeCommand)
def execute(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="IFNAME...", help="The macvtaps.", show_default=False)],
    queues: _Queues = None,
    vhost: _Vhost = None,
    no_vnet_header: Annotated[
        bool, typer.Option("--no-vnet-header", help="Frames have no virtio-net header before them.")
    ] = False,
) -> None:
    """Become another program, with the taps of macvtaps open from fd 3 on.

    In its words {fd}, {fds} (3:4), {fds,} (3,4), {vhostfd}, {vhostfds}, {ifname} and {mac} are replaced: of the first
    macvtap, or of the second as {fd2}, ... LISTEN_FDS and LISTEN_FDNAMES are set.
    """
    command = _command(ctx)
    ifnames = [LinkName(name) for name in names]
    from guestnet.qemu import run as verb

    verb.execute(
        ifnames, command, queues=1 if queues is None else queues, vnet_header=not no_vnet_header,
        vhost=vhost or Vhost.OFF,
    )  # fmt: skip


def _command(ctx: typer.Context) -> tuple[str, ...]:
    command: tuple[str, ...] = ctx.meta["command"]
    if not command or not command[0]:
        raise UsageError("say which program, after --", hint=_AS_IN.format(ctx.command_path))
    return command


def _requests(
    parents: list[str], macs: Any, ifnames: Any, vlan: Any, outer: Any, mode: Any, model: Any, queues: Any, mtu: Any,
    multicast: Any,
) -> tuple[Request, ...]:  # fmt: skip
    return options.requests(
        parents, macs, ifnames, inbound=None, outbound=None, vlan=vlan, outer=outer, mode=mode, model=model,
        queues=queues, mtu=mtu, multicast=multicast,
    )  # fmt: skip


def _would(planned: Any) -> None:
    for step in planned.steps:
        report.line(f"would {step}")
    for text in planned.notes:
        report.told(f"note: {text}")


def _outcome(done: Any, verb: str, *, json_wanted: bool) -> None:
    if json_wanted:
        report.as_json({**report.object_of(done), "changed": bool(done.steps) and not done.dry_run})
        return
    for step in done.steps if done.dry_run else ():
        report.line(f"would {step}")
    for text in done.notes:
        report.told(f"note: {text}")
    if not done.steps:
        report.told(f"{done.guest}: {'nothing to do' if done.dry_run else 'unchanged'}, it is so already")
    elif not done.dry_run:
        report.told(f"{done.guest}: {verb} in {done.seconds * 1000:.0f} ms")
    for nic in () if done.dry_run else done.nics:
        facts = [nic.ifname, f"on {nic.parent}", f"mode {nic.mode}", f"MAC {nic.mac}"]
        if verb == "attached":
            facts += [f"bus {nic.bus}"] if nic.bus else []
            facts += ["no carrier"] if nic.carrier is False else []
        report.told("  " + ", ".join(facts))
