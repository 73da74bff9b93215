"""What a person or a script sees: tables, lines, JSON, errors."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from guestnet import trail
from guestnet.errors import GuestnetError

_quiet = False
_SILENT = 1.0  # seconds that are waited without a word


def be_quiet(wanted: bool = True) -> None:
    """Say nothing from now on but what was asked for, and errors."""
    global _quiet  # noqa: PLW0603 - there is one stdout and one stderr
    _quiet = wanted


def is_quiet() -> bool:
    """Whether nothing is to be said but what was asked for."""
    return _quiet


def be_verbose(wanted: bool = True) -> None:
    """Say each step on stderr as it is taken: what is asked of the kernel and of libvirt, and what is taken back."""
    trail.leave()
    if not wanted:
        return
    begun = time.monotonic()
    trail.follow(lambda text: _aside(f"{time.monotonic() - begun:8.3f} s  {text}"))


def line(text: str = "") -> None:
    """One line of the answer."""
    _write(_printable(text) + "\n")


def told(text: str) -> None:
    """One line that says what a command has done; who wants it quiet sees that by the exit status."""
    if not _quiet:
        line(text)


def _write(text: str) -> None:
    with _refused():
        sys.stdout.write(text)


def flush() -> None:
    """Hand the answer over: after this it is written."""
    with _refused():
        sys.stdout.flush()


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten(error.strerror or str(error)) from error


def unwritten(reason: str) -> GuestnetError:
    """The error that says that nobody got the answer."""
    return GuestnetError(f"the answer could not be written: {reason}")


def note(text: str) -> None:
    """One line beside the answer, on stderr: what is going on, what was done on the way."""
    if not _quiet:
        _aside(text)


def _aside(text: str) -> None:
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
    _write(json.dumps(object_of(value), indent=2) + "\n")


def error(problem: GuestnetError, *, json_wanted: bool) -> None:
    """An error: what, about which name, why; then what to do. With JSON the same as an object on stdout."""
    notes = getattr(problem, "__notes__", [])
    if json_wanted:
        body = {"message": problem.message, "hint": problem.hint, "code": int(problem.code), "notes": list(notes)}
        _write(json.dumps({"error": body}, indent=2) + "\n")
        return
    _aside(f"guestnet: {problem.message}")
    for text in notes:
        _aside(f"  {text}")
    if problem.hint:
        _aside(f"hint: {problem.hint}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The rows under their headings, without frame; nothing is cut, whatever a terminal is too narrow for."""
    cells = [columns, *([_printable(cell).replace("\n", "\\n") or "-" for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        line("  ".join(padded).rstrip())


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


@contextmanager
def progress(doing: str, *, json_wanted: bool = False) -> Iterator[Callable[[float], None]]:
    """Say on a terminal, in a line that goes again, what goes on and for how long, once that is more than a second.

    Gives something to call with the seconds that a guest has been waited for: while it is called, that is said.
    """
    if json_wanted or _quiet or not sys.stderr.isatty():
        yield lambda _seconds: None
        return
    begun, heard = time.monotonic(), -_SILENT
    waited = 0.0
    shown: list[Any] = []
    starting = threading.Lock()

    def text() -> str:
        now = time.monotonic()
        if now - heard < _SILENT:
            return f"waiting for the guest to let go, {waited:.0f} s"
        return f"{_printable(doing)}, {now - begun:.0f} s"

    def show() -> None:
        with starting:
            if not shown:
                shown.append(_live(text))

    def waiting(seconds: float) -> None:
        nonlocal heard, waited
        if seconds >= _SILENT:
            heard, waited = time.monotonic(), seconds
            show()

    timer = threading.Timer(_SILENT, show)
    timer.daemon = True
    timer.start()
    try:
        yield waiting
    finally:
        timer.cancel()
        timer.join()
        for live in shown:
            live.stop()


def _live(text: Callable[[], str]) -> Any:
    """A line of the terminal that has begun to show what the function says; ``stop`` wipes it away."""
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots", style="status.spinner")

    def now() -> Spinner:
        spinner.update(text=Text(text()))  # a name with brackets is no markup
        return spinner

    live = Live(
        get_renderable=now, console=Console(stderr=True), refresh_per_second=8, transient=True, redirect_stdout=False
    )
    live.start(refresh=True)
    return live


def outcome(done: Any, verb: str, *, json_wanted: bool) -> None:
    """What a verb did to a guest's NICs: what changed, each NIC, what was done on the way, how long it took."""
    if json_wanted:
        body = object_of(done)
        body["steps"] = [str(step) for step in done.steps]
        body["changed"] = bool(done.steps) and not done.dry_run
        _write(json.dumps(body, indent=2) + "\n")
        return
    _preamble(done, done.guest)
    if done.steps and not done.dry_run:
        where = " and ".join(word for word, is_in in (("live", done.live), ("config", done.config)) if is_in)
        said = f" ({where})" if where and verb != "mended" else ""
        told(f"{done.guest}: {verb}{said} in {done.seconds * 1000:.0f} ms")
    if done.dry_run:
        return
    for nic in done.nics:
        facts = [nic.ifname or "a macvtap of libvirt's", f"on {nic.parent}", f"mode {nic.mode}", f"MAC {nic.mac}"]
        if verb != "detached":
            facts += [f"PCI {nic.pci}"] if nic.pci else []
            facts += ["no carrier"] if nic.carrier is False else []
        told("  " + ", ".join(facts))


def _preamble(done: Any, what: str) -> None:
    """The steps of a dry run, the notes, and that nothing was to do."""
    for step in done.steps if done.dry_run else ():
        line(f"would {step}")
    for text in done.notes:
        told(f"note: {text}")
    if not done.steps:
        told(f"{what}: {'nothing to do' if done.dry_run else 'unchanged'}, it is so already")


def document(text: str) -> None:
    """A document as it is, to be piped into a file or another command."""
    _write(text)


def links(rows: Sequence[Any], kind: str, netns: str | None, *, json_wanted: bool) -> None:
    """Links of the host, all of one kind: a table, or one JSON object a line in a list."""
    if json_wanted:
        _write(_json_rows(rows) + "\n")
        return
    if not rows:
        line(f"there is no {kind}" + (f" in the network namespace {netns}" if netns else ""))
        return
    is_vlan = kind == "vlan"
    columns = ("NAME", "PARENT", *(("VLAN",) if is_vlan else ("MODE",)), "MAC", "MTU", "STATE")
    table((*columns, *(() if is_vlan else ("MULTICAST",)), "OWNER"), (_link_cells(row, is_vlan) for row in rows))


def _link_cells(row: Any, is_vlan: bool) -> list[str]:
    cells = [row.name, row.parent]
    cells.append(_vid(row) if is_vlan else row.mode + "".join(f" {mac}" for mac in row.source_macs))
    cells += [row.mac, str(row.mtu), row.operstate if row.up else "down"]
    cells += [] if is_vlan else ["all" if row.allmulti else "filtered"]
    return [*cells, f"guest {row.guest}" if row.owner == "guest" else row.owner]


def _vid(row: Any) -> str:
    """The VLAN ID, with the protocol where it is not the usual one."""
    return str(row.vlan) if row.vlan_protocol == "802.1Q" else f"{row.vlan} ({row.vlan_protocol})"


def links_outcome(done: Any, verb: str, *, json_wanted: bool) -> None:
    """What a verb did to links of the host."""
    if json_wanted:
        head = object_of(
            {
                "names": done.names, "changed": bool(done.steps) and not done.dry_run, "dry_run": done.dry_run,
                "seconds": done.seconds, "notes": done.notes, "steps": [str(step) for step in done.steps],
            }
        )  # fmt: skip
        _write(json.dumps(head, indent=2)[:-2] + ',\n  "links": ' + _json_rows(done.links) + "\n}\n")
        return
    _preamble(done, ", ".join(done.names))
    for row in done.links if done.steps and not done.dry_run else ():
        told(f"{row.name}: {_link_words(row, done.steps, verb)}")


def _link_words(row: Any, steps: Sequence[Any], verb: str) -> str:
    from guestnet.plan.steps import AddLink

    if verb == "deleted":
        return verb
    if verb == "changed":
        return f"changed: {', '.join(filter(None, map(_change, steps)))}"
    if row.device not in {step.new.name for step in steps if isinstance(step, AddLink)}:
        return "unchanged, it is so already"
    facts = [verb, f"on {row.parent}"]
    facts += [f"mode {row.mode}"] if row.mode else []
    facts += [f"VLAN {_vid(row)}"] if row.vlan else []
    facts += [f"MAC {row.mac}", f"MTU {row.mtu}", "up" if row.up else "down"]
    facts += [f"in network namespace {row.netns}"] if row.netns else []
    return ", ".join(facts)


def _change(step: Any) -> str:
    from guestnet.plan import steps

    match step:
        case steps.SetMode():
            return " ".join((f"mode {step.mode}", *step.source_macs))
        case steps.SetMtu():
            return f"MTU {step.mtu}"
        case steps.SetMac():
            return f"MAC {step.mac}"
        case steps.SetUp():
            return "up" if step.up else "down"
        case steps.Move():
            return f"in network namespace {step.netns}"
        case _:
            return ""  # what goes along with one of those


def _json_rows(rows: Sequence[Any]) -> str:
    if not rows:
        return "[]"
    words = [item.name for item in fields(rows[0])]
    return "[\n" + ",\n".join(json.dumps({word: getattr(row, word) for word in words}) for row in rows) + "\n]"
