"""guestnet host: add, list, delete."""

from typing import Annotated, Any

import typer

from guestnet import inet, report
from guestnet.cli import options
from guestnet.model import LinkName

host_app = typer.Typer(
    rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True,
    help="The host's own link beside its guests' macvtaps: without one the host and they never reach each other.",
)  # fmt: skip

_Parent = Annotated[
    str, typer.Argument(metavar="PARENT", help="The link the guests are on, or NIC.VID.", show_default=False)
]


@host_app.command()
def add(
    parent: _Parent,
    address: Annotated[
        list[Any],
        typer.Option(
            "--address", metavar="IP/LEN", parser=inet.address, help="An address for the host's link; repeatable."
        ),
    ],
    route: Annotated[
        list[Any] | None,
        typer.Option(
            "--route", metavar="IP[/LEN]", parser=inet.network, help="A guest, or a subnet of them; repeatable."
        ),
    ] = None,
    name: Annotated[
        LinkName | None,
        typer.Option("--name", metavar="NAME", parser=LinkName, help="The link's name.  [shim-PARENT]"),
    ] = None,
    mac: options.MacOption = None,
    mtu: options.MtuOption = None,
    persist: Annotated[bool, typer.Option("--persist", help="Also at each boot, by a systemd unit.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Though all guests are in mode vepa: the switch sends frames back.")
    ] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Make the host's own link on a parent, a macvlan in mode bridge, with addresses and with routes to the guests.

    Again with another --address or --route adds that. Refused where no guest could be reached by it.
    """
    from guestnet import hostshim as verb
    from guestnet.plan.shim import Wanted

    wanted = Wanted(
        parent=parent, addresses=tuple(address), routes=tuple(route or ()), name=name, mac=mac, mtu=mtu, anyway=yes
    )
    how = verb.Options(uri=options.uri(None), dry_run=dry_run, persist=persist, notice=report.note)
    with report.progress(f"making the host's own link on {parent}", json_wanted=json):
        outcome = verb.add(wanted, how)
    _show(outcome, "up", json=json)


@host_app.command("list")
def show_list(json: options.Json = False) -> None:
    """Show the links of the host's own, and which guests they reach."""
    from guestnet import hostshim as verb

    rows = verb.rows()
    if json:
        report.as_json(rows)
    elif rows:
        _table(rows)
    else:
        report.line("the host has no link of its own on any parent")


@host_app.command()
def delete(
    name: Annotated[str, typer.Argument(metavar="NAME|PARENT", help="The link, or its parent.", show_default=False)],
    keep_unit: Annotated[bool, typer.Option("--keep-unit", help="It comes back at the next boot.")] = False,
    connect: options.Connect = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Take such a link away, with its systemd unit."""
    from guestnet import hostshim as verb

    how = verb.Options(uri=options.uri(connect), dry_run=dry_run, keep_unit=keep_unit, notice=report.note)
    with report.progress(f"deleting {name}", json_wanted=json):
        outcome = verb.delete(name, how)
    _show(outcome, "deleted", json=json)


def _show(outcome: Any, word: str, *, json: bool) -> None:
    if json:
        body = report.object_of(outcome)
        body["steps"] = [str(step) for step in outcome.steps]
        report.as_json({**body, "changed": outcome.changed})
        return
    for step in outcome.steps if outcome.dry_run else ():
        report.line(f"would {step}")
    for text in outcome.notes:
        report.told(f"note: {text}")
    if not outcome.steps:
        report.told(f"{outcome.name}: {'nothing to do' if outcome.dry_run else 'unchanged'}, it is so already")
    elif not outcome.dry_run:
        report.told(f"{outcome.name}: {word} in {outcome.seconds * 1000:.0f} ms")
    if outcome.unit:
        report.told(f"  {outcome.unit} is {'gone' if word == 'deleted' else 'written, and brings it back at boot'}")
    if word != "deleted" and outcome.rows and not outcome.dry_run:
        _table(outcome.rows)


def _table(rows: Any) -> None:
    columns = ("NAME", "PARENT", "MAC", "ADDRESSES", "ROUTES", "GUESTS", "NOT REACHED", "AT BOOT", "STATE")
    report.table(
        columns,
        [
            (
                row.name, row.parent, row.mac, " ".join(row.addresses), " ".join(row.routes), " ".join(row.guests),
                " ".join(row.unreached), "yes" if row.persists else "no", row.state,
            )
            for row in rows
        ],
    )  # fmt: skip
