"""guestnet gc, repair."""

from typing import Annotated

import typer

from guestnet import report
from guestnet.cli import options

repair_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
gc_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


@gc_app.command()
def collect(
    yes: Annotated[bool, typer.Option("--yes", help="It is right that libvirt knows none of the guests.")] = False,
    connect: options.Connect = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Delete the links that guestnet made and nobody uses any more, and say of each why it goes or stays.

    A link goes when no guest's XML names it and no process holds it open. While libvirt cannot be asked only what a
    QEMU without libvirt left goes.
    """
    from guestnet import gc as verb

    with report.progress("looking for links that nobody uses", json_wanted=json):
        outcome = verb.collect(
            verb.Options(uri=options.uri(connect), dry_run=dry_run, sure=yes, notice=report.note),
        )
    if json:
        report.as_json(
            {
                "links": [
                    {
                        "name": verdict.link.name, "kind": verdict.link.kind, "guest": verdict.link.guest_name,
                        "orphan": verdict.orphan, "why": verdict.why,
                    }
                    for verdict in outcome.verdicts
                ],
                "steps": [str(step) for step in outcome.steps],
                "changed": bool(outcome.steps) and not dry_run,
                "dry_run": dry_run,
                "seconds": outcome.seconds,
            }
        )  # fmt: skip
        return
    rows = [
        (verdict.link.readable, verdict.link.guest_name, "yes" if verdict.orphan else "no", verdict.why)
        for verdict in outcome.verdicts
    ]
    if not rows:
        report.line("there is no link of guestnet's")
        return
    report.table(("LINK", "GUEST", "ORPHAN", "WHY"), rows)
    for step in outcome.steps:
        if dry_run:
            report.line(f"would {step}")
        else:
            report.told(f"{step.name}: deleted")


@repair_app.command()
def repair(
    guest: options.Guest,
    timeout: options.Timeout = 30.0,
    connect: options.Connect = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Mend the NICs of a guest: what `list` says is not right with them.

    A NIC whose link is gone is plugged in again, with the same MAC and in the same PCI slot.
    """
    from guestnet import repair as verb
    from guestnet.attachment import Options

    with report.progress(f"mending {guest}", json_wanted=json) as waiting:
        outcome = verb.repair(
            guest,
            Options(uri=options.uri(connect), dry_run=dry_run, timeout=timeout, waiting=waiting, notice=report.note),
        )
    report.outcome(outcome, "mended", json_wanted=json)
