"""What a person or a script sees: tables, lines, JSON, errors."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from guestnet.errors import GuestnetError


def line(text: str = "") -> None:
    """One line of the answer."""
    print(_printable(text))


def note(text: str) -> None:
    """One line beside the answer, on stderr: what is going on, what was done on the way."""
    print(_printable(text), file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    """The text with all that is no character escaped: names that others chose may hold what a terminal obeys."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def object_of(value: Any) -> Any:
    """The value as JSON takes it: dataclasses as objects, enums and our str kinds as their text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: object_of(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {str(key): object_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [object_of(item) for item in value]
    return value


def as_json(value: Any) -> None:
    """The answer as one JSON document."""
    print(json.dumps(object_of(value), indent=2))


def error(problem: GuestnetError, *, json_wanted: bool) -> None:
    """An error: what, about which name, why; then what to do. With JSON the same as an object on stdout."""
    notes = getattr(problem, "__notes__", [])
    if json_wanted:
        body = {"message": problem.message, "hint": problem.hint, "code": int(problem.code), "notes": list(notes)}
        print(json.dumps({"error": body}, indent=2))
        return
    note(f"guestnet: {problem.message}")
    for text in notes:
        note(f"  {text}")
    if problem.hint:
        note(f"hint: {problem.hint}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The rows under their headings, without frame; what a terminal is too narrow for is folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for row in rows:
        shown.add_row(*(_printable(cell) or "-" for cell in row))
    width = None if sys.stdout.isatty() else 500
    Console(width=width, highlight=False, markup=False, emoji=False).print(shown)


@contextmanager
def progress(*, json_wanted: bool) -> Iterator[Callable[[float], None]]:
    """Something to call with the seconds waited so far; it shows them on a terminal once they are more than one."""
    if json_wanted or not sys.stderr.isatty():
        yield lambda _seconds: None
        return
    status: Any = None

    def show(seconds: float) -> None:
        nonlocal status
        if seconds < 1:
            return
        if status is None:
            from rich.console import Console

            status = Console(stderr=True).status("")
            status.start()
        status.update(f"waiting for the guest to let go, {seconds:.0f} s")

    try:
        yield show
    finally:
        if status is not None:
            status.stop()


def outcome(done: Any, verb: str, *, json_wanted: bool) -> None:
    """What a verb did to a guest's NICs: what changed, each NIC, what was done on the way, how long it took."""
    if json_wanted:
        body = object_of(done)
        body["steps"] = [str(step) for step in done.steps]
        body["changed"] = bool(done.steps) and not done.dry_run
        print(json.dumps(body, indent=2))
        return
    if done.dry_run:
        for step in done.steps:
            line(f"would {step}")
        if not done.steps:
            line(f"{done.guest}: nothing to do, it is so already")
        return
    for text in done.notes:
        line(f"note: {text}")
    head = verb if done.steps else "unchanged, it is so already"
    where = " and ".join(word for word, is_in in (("live", done.live), ("config", done.config)) if is_in)
    line(
        f"{done.guest}: {head}" + (f" ({where})" if done.steps and where else "") + f" in {done.seconds * 1000:.0f} ms"
    )
    for nic in done.nics:
        facts = [nic.ifname or "a macvtap of libvirt's", f"on {nic.parent}", f"mode {nic.mode}", f"MAC {nic.mac}"]
        if verb != "detached":
            facts += [f"PCI {nic.pci}"] if nic.pci else []
            facts += ["no carrier"] if nic.carrier is False else []
        line("  " + ", ".join(facts))


def document(text: str) -> None:
    """A document as it is, to be piped into a file or another command."""
    sys.stdout.write(text)


def links(rows: Sequence[Any], *, json_wanted: bool) -> None:
    """Links of the host: a table, or one JSON object a line in a list."""
    if json_wanted:
        print(_json_rows(rows))
        return
    columns = ("Name", "Parent", "Mode", "VLAN", "MAC", "MTU", "State", "Multicast", "Owner")
    table(
        columns,
        (
            (
                row.name,
                row.parent,
                row.mode + "".join(f" {mac}" for mac in row.source_macs),
                str(row.vlan or ""),
                row.mac,
                str(row.mtu),
                row.operstate if row.up else "down",
                "all" if row.allmulti else "filtered",
                f"guest {row.guest}" if row.owner == "guest" else row.owner,
            )
            for row in rows
        ),
    )


def links_outcome(done: Any, verb: str, *, json_wanted: bool) -> None:
    """What a verb did to links of the host."""
    if json_wanted:
        head = object_of(
            {
                "names": done.names, "changed": bool(done.steps) and not done.dry_run, "dry_run": done.dry_run,
                "seconds": done.seconds, "notes": done.notes, "steps": [str(step) for step in done.steps],
            }
        )  # fmt: skip
        print(json.dumps(head, indent=2)[:-2] + ',\n  "links": ' + _json_rows(done.links) + "\n}")
        return
    if done.dry_run:
        for step in done.steps:
            line(f"would {step}")
    for text in done.notes:
        line(f"note: {text}")
    if not done.steps:
        line(f"{', '.join(done.names)}: unchanged, it is so already")
    for row in done.links if done.steps else ():
        facts = [f"on {row.parent}"] if row.parent else []
        facts += [f"mode {row.mode}"] if row.mode else []
        facts += [f"VLAN {row.vlan}"] if row.vlan else []
        facts += [f"MAC {row.mac}", f"MTU {row.mtu}", "up" if row.up else "down"]
        facts += [f"in network namespace {row.netns}"] if row.netns else []
        line(f"{row.name}: {verb}" + ("" if verb == "deleted" else ", " + ", ".join(facts)))


def _json_rows(rows: Sequence[Any]) -> str:
    if not rows:
        return "[]"
    words = [item.name for item in fields(rows[0])]
    return "[\n" + ",\n".join(json.dumps({word: getattr(row, word) for word in words}) for row in rows) + "\n]"
