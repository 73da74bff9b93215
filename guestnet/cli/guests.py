"""guestnet attach, detach, set."""

from pathlib import Path
from typing import Annotated, Any

import typer

from guestnet import report
from guestnet.cli import options
from guestnet.errors import UsageError
from guestnet.model import Backend

attach_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
detach_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
set_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


@attach_app.command()
def attach(
    guest: options.Guest,
    parent: options.ParentsOption,
    vlan: options.VlanOption = None,
    outer_protocol: options.OuterOption = None,
    mode: options.ModeOption = None,
    mac: options.MacsOption = None,
    ifname: options.IfnamesOption = None,
    model: options.ModelOption = None,
    queues: options.QueuesOption = None,
    mtu: options.MtuOption = None,
    multicast: options.MulticastOption = None,
    link: options.LinkOption = None,
    boot_order: options.BootOrderOption = None,
    inbound: options.InboundOption = None,
    outbound: options.OutboundOption = None,
    backend: options.BackendOption = None,
    template: Annotated[
        Path | None,
        typer.Option("--template", metavar="FILE", parser=options.file, help="An interface template of your own."),
    ] = None,
    live: options.Live = False,
    config: options.Config = False,
    no_hook: options.NoHook = False,
    timeout: options.TimeoutOfUndo = 30.0,
    connect: options.Connect = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Give a guest a NIC on a parent interface.

    A running guest gets it now and for good, a stopped one from its next start on. A missing VLAN of the parent
    (NIC.VID) is made. The same call again changes nothing.
    """
    if boot_order is not None and len(parent) > 1:
        raise UsageError("one boot order cannot be for several NICs", hint="attach them one by one")
    requests = options.requests(
        parent, mac, ifname, vlan=vlan, outer=outer_protocol, mode=mode, backend=backend, model=model, queues=queues,
        mtu=mtu, multicast=multicast, link=link, boot_order=boot_order, inbound=inbound, outbound=outbound,
    )  # fmt: skip
    own: dict[Backend, bytes] = {}
    if template is not None:
        from guestnet import templates

        own[backend or Backend.MACVTAP] = templates.read_own(template)

    from guestnet import attachment as verb
    from guestnet.plan.steps import Plug

    with report.progress(f"attaching {guest}", json_wanted=json) as waiting:
        how = _verb_options(verb, connect, live, config, dry_run, timeout, waiting, hook=not no_hook)
        outcome = verb.attach(guest, requests, how, own_templates=own)
    plugged = any(isinstance(step, Plug) for step in outcome.steps)
    report.outcome(outcome, "attached" if plugged else "mended", json_wanted=json)


@detach_app.command()
def detach(
    guest: options.Guest,
    nic: Annotated[
        list[str] | None, typer.Argument(metavar="NIC...", help="Its MAC or interface name.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All NICs that guestnet gave it.")] = False,
    timeout: options.Timeout = 30.0,
    live: options.Live = False,
    config: options.Config = False,
    connect: options.Connect = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Take a NIC from a guest.

    Waits until the running guest has let go, then deletes the macvtap, and a VLAN that guestnet made and nobody uses.
    """
    names = tuple(nic or ())
    if names and everything:
        raise UsageError("a NIC and --all are both given", hint="name the NICs, or give --all alone")
    if not names and not everything:
        raise UsageError("say which NIC, or --all", hint=f"guestnet list {guest} shows its NICs")

    from guestnet import attachment as verb

    with report.progress(f"detaching from {guest}", json_wanted=json) as waiting:
        outcome = verb.detach(
            guest, names, _verb_options(verb, connect, live, config, dry_run, timeout, waiting), everything=everything
        )
    report.outcome(outcome, "detached", json_wanted=json)


@set_app.command()
def change(
    guest: options.Guest,
    nic: Annotated[str, typer.Argument(metavar="NIC", help="Its MAC or interface name.", show_default=False)],
    mode: options.ModeChange = None,
    link: options.LinkOption = None,
    mtu: options.MtuOption = None,
    inbound: options.InboundOption = None,
    outbound: options.OutboundOption = None,
    live: options.Live = False,
    config: options.Config = False,
    connect: options.Connect = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Change a NIC of a guest: mode, link, MTU, bandwidth.

    The mode changes between bridge, vepa and private while the guest runs; the MTU goes only down.
    """
    from guestnet import attachment as verb
    from guestnet.plan.change import Change

    wanted = Change(mode=mode, link=link, mtu=mtu, inbound=inbound, outbound=outbound)
    with report.progress(f"changing {guest}", json_wanted=json):
        outcome = verb.change(guest, nic, wanted, _verb_options(verb, connect, live, config, dry_run, 30.0, None))
    report.outcome(outcome, "changed to " + _words(wanted), json_wanted=json)


def _words(wanted: Any) -> str:
    rates = [
        f"{name} {'without limit' if rate[0] is None else rate[0]}"
        for name, rate in (("inbound", wanted.inbound), ("outbound", wanted.outbound))
        if rate is not None
    ]
    facts = [
        f"{name} {value}"
        for name, value in (("mode", wanted.mode), ("link", wanted.link), ("MTU", wanted.mtu))
        if value is not None
    ]
    return ", ".join((*facts, *rates))


def _verb_options(
    verb: Any,
    connect: str | None,
    live: bool,
    config: bool,
    dry_run: bool,
    timeout: float,
    waiting: Any,
    *,
    hook: bool = False,
) -> Any:
    return verb.Options(
        uri=options.uri(connect), live=live, config=config, dry_run=dry_run, timeout=timeout, waiting=waiting,
        notice=report.note, hook=hook,
    )  # fmt: skip
