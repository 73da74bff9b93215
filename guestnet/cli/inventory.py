"""guestnet list, show."""

from typing import TYPE_CHECKING, Annotated

import typer

from guestnet import report
from guestnet.cli import options

if TYPE_CHECKING:
    from guestnet.inventory import Row

list_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
show_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


@list_app.command()
def list_nics(
    guest: Annotated[str | None, typer.Argument(metavar="GUEST", help="One guest only.", show_default=False)] = None,
    connect: options.Connect = None,
    json: options.Json = False,
) -> None:
    """Show the NICs of all guests, or of one, and what is out of line with them."""
    from guestnet import inventory

    with report.progress("asking libvirt", json_wanted=json):
        rows = inventory.rows(options.uri(connect), guest)
    if json:
        report.as_json(rows)
        return
    if not rows:
        report.line(f"{guest} has no NICs of guestnet's" if guest else "no guest has a NIC of guestnet's")
        return
    columns = ("GUEST", "INTERFACE", "PARENT", "VLAN", "MODE", "MAC", "MODEL", "IN", "CARRIER", "RX", "TX")
    report.table(columns, [_cells(row) for row in rows])
    for row in rows:
        for problem in row.problems:
            report.line(f"! {row.guest} {row.interface or row.mac}: {problem}")


@show_app.command()
def show(
    guest: options.Guest,
    nic: Annotated[
        str | None, typer.Argument(metavar="NIC", help="Its MAC or interface name.", show_default=False)
    ] = None,
    connect: options.Connect = None,
    json: options.Json = False,
) -> None:
    """Show one guest's NICs with all there is to know."""
    from guestnet import inventory

    with report.progress("asking libvirt", json_wanted=json):
        rows = inventory.rows(options.uri(connect), guest, nic)
    if json:
        report.as_json(rows)
        return
    if not rows:
        report.line(f"{guest} has no NICs of guestnet's")
    for row in rows:
        report.line(f"{row.guest} {row.interface or '(no link yet)'}")
        for name, value in _facts(row):
            report.line(f"  {name:<10} {value}")
        for problem in row.problems:
            report.line(f"  ! {problem}")


def _cells(row: "Row") -> tuple[str, ...]:
    counters = row.counters
    return (
        row.guest, row.interface, row.parent, str(row.vlan or ""), _mode(row), row.mac, row.model, _where(row),
        "no (set down)" if row.link == "down" else _carrier(row),
        _bytes(counters.rx_bytes) if counters else "", _bytes(counters.tx_bytes) if counters else "",
    )  # fmt: skip


def _facts(row: "Row") -> list[tuple[str, str]]:
    facts = [
        ("guest", f"{row.guest}, {row.state}"),
        ("parent", row.parent + (f", VLAN {row.vlan}" if row.vlan else "")),
        ("mode", row.mode),
        ("MAC", row.mac),
        ("model", row.model + (f", {row.queues} queues" if row.queues > 1 else "")),
        ("made by", "libvirt (type='direct')" if row.backend == "direct" else "guestnet"),
        ("in", _where(row)),
        ("PCI", row.pci),
        ("MTU", str(row.mtu or "")),
        ("multicast", row.multicast),
        ("carrier", _carrier(row) + (", shown as down to the guest" if row.link == "down" else "")),
    ]
    if row.counters is not None:
        count = row.counters
        facts += [
            ("to guest", f"{count.rx_packets} packets, {count.rx_bytes} bytes, {count.rx_dropped} dropped"),
            ("from guest", f"{count.tx_packets} packets, {count.tx_bytes} bytes, {count.tx_dropped} dropped"),
        ]
    return [(name, value) for name, value in facts if value]


def _mode(row: "Row") -> str:
    return f"{row.mode} (libvirt)" if row.backend == "direct" else row.mode


def _where(row: "Row") -> str:
    return "+".join(word for word, is_in in (("live", row.live), ("config", row.config)) if is_in)


def _carrier(row: "Row") -> str:
    return {True: "yes", False: "no", None: ""}[row.carrier]


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
