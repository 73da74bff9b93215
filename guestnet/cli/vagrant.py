"""guestnet vagrant: what goes into a Vagrantfile."""

import os
from contextlib import suppress
from dataclasses import replace
from typing import Annotated

import typer

from guestnet import report
from guestnet.cli import options
from guestnet.errors import NotPermittedError
from guestnet.model import Mode
from guestnet.plan.vagrant import Type, Wanted

vagrant_app = typer.Typer(
    rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)


@vagrant_app.callback()
def _vagrant() -> None:
    """Lines for the Vagrantfile of a machine that vagrant-libvirt runs."""


@vagrant_app.command()
def snippet(
    machine: Annotated[str, typer.Argument(metavar="MACHINE", help="The machine in the Vagrantfile.")],
    parent: Annotated[str, typer.Option("--parent", metavar="IFACE[.VID]", help="The link its NIC goes on.")],
    vlan: options.VlanOption = None,
    outer_protocol: options.OuterOption = None,
    mode: options.ModeOption = None,
    kind: Annotated[
        Type,
        typer.Option(
            "--type",
            metavar="direct|bridge",
            parser=options.words(Type),
            show_default=False,
            help="A macvtap of libvirt's, or a port of the bridge IFACE.  [direct]",
        ),
    ] = Type.DIRECT,
    mac: options.MacOption = None,
    model: options.ModelOption = None,
    trust_guest_rx_filters: Annotated[
        bool | None,
        typer.Option(
            "--trust-guest-rx-filters/--no-trust-guest-rx-filters",
            show_default=False,
            help="Let through what the guest asks for: IPv6, other multicast, another MAC.  [yes with virtio]",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print the lines by which vagrant-libvirt gives a machine a NIC on a parent of this host, without guestnet.

    Nothing is changed. A parent that no guest can be on is refused, and one that is not there yet is named.
    """  # fmt: skip
    from guestnet.kernel.link import Links
    from guestnet.machine import machine_id
    from guestnet.plan.host import Host
    from guestnet.plan.vagrant import snippet as planned

    wanted = Wanted(
        machine=machine, parent=parent, vlan=vlan, outer=outer_protocol, mode=mode, mac=mac, type=kind, model=model,
        trusted=trust_guest_rx_filters,
    )  # fmt: skip
    with Links() as links:
        there = links.all()
        host = Host(links=there)
        with suppress(NotPermittedError):  # where /sys shows another network namespace, root alone can look
            host = replace(host, wireless=links.wireless(there))
        if mode is Mode.PASSTHRU and os.geteuid() == 0:
            host = replace(host, used_elsewhere=links.used_elsewhere())
    made = planned(wanted, host, machine_id())
    if json:
        report.as_json({**report.object_of(made), "ruby": made.ruby})
        return
    report.document(made.ruby)
    report.flush()  # the lines come first, where both go to one place
    for text in made.notes:
        report.note(f"note: {text}")
    for command in made.first:
        report.note(f"first: {command}")
