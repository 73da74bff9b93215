"""guestnet topology: plan, up, status, down, graph, list."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from guestnet import report
from guestnet.cli import graph as pictures
from guestnet.cli import options
from guestnet.errors import ExitCode, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestnet.topology.check import Answer
    from guestnet.topology.deploy import Outcome

topology_app = typer.Typer(
    rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True,
    help="Namespaces, links of the host and guests, on one node or across several, described by a file.",
)  # fmt: skip

File = Annotated[
    str, typer.Argument(metavar="FILE|NAME", help="A YAML file, or one that came with guestnet.", show_default=False)
]
NodeOption = Annotated[
    str | None,
    typer.Option(
        "--node", metavar="NODE", help="Which of its nodes this host is.  [the one with its name, or the only one]"
    ),
]


def stand_in(text: str) -> Any:
    """NAME=LINK as a tuple of one pair, so that Typer makes no list of it."""
    name, sign, link = text.partition("=")
    if not (name and sign and link):
        raise UsageError(f"{text!r} does not say which link is which parent", hint="write NAME=LINK, as in lan=ens3")
    return ((name, link),)


def stand_ins(parents: Any) -> dict[str, str]:
    """The links that stand in for parents of a file, by the parents' names, from what `--parent` gave."""
    return dict(pair for [pair] in parents or ())


ParentOption = Annotated[
    list[Any] | None,
    typer.Option(
        "--parent", metavar="NAME=LINK", parser=stand_in, help="The link that a parent of the file is here; repeatable."
    ),
]
Check = Annotated[bool, typer.Option("--check", help="Ping from what is here to all the others.")]


Persist = Annotated[bool, typer.Option("--persist", help="Also at each boot, by a systemd unit that reads the file.")]


@topology_app.command()
def plan(
    file: File,
    node: NodeOption = None,
    parent: ParentOption = None,
    persist: Persist = False,
    connect: options.Connect = None,
    json: options.Json = False,
) -> None:
    """Show what `up` would do on this node; nothing is changed."""
    _up(file, node, parent, connect, 30.0, persist=persist, dry_run=True, hook=True, json=json)


@topology_app.command()
def up(
    file: File,
    node: NodeOption = None,
    parent: ParentOption = None,
    persist: Persist = False,
    no_hook: options.NoHook = False,
    timeout: options.TimeoutOfUndo = 30.0,
    connect: options.Connect = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Bring this node's part of it up, from whatever there is of it.

    The same call again changes nothing. What the file says no more is taken away.
    """
    _up(file, node, parent, connect, timeout, persist=persist, dry_run=dry_run, hook=not no_hook, json=json)


def _read(file: str) -> Any:
    """The topology of that file, or the one that came with guestnet under that name. What is up here by its name came
    from a file, and only that says what belongs to it: the error names the file."""
    from guestnet.topology import document, state

    if document.is_file(file) or file in document.shipped() or file not in state.names():
        return document.find(file)
    known = state.read(file)
    raise NotFoundError(
        f"{file} is up here, but only its file says what belongs to it",
        hint=f"name the file: {known.source}" if known is not None and known.source else "name the file it came from",
    )


def _up(
    file: str,
    node: str | None,
    parent: Any,
    connect: str | None,
    timeout: float,
    *,
    persist: bool,
    dry_run: bool,
    hook: bool,
    json: bool,
) -> None:
    from guestnet.topology import deploy, document

    topology = _read(file)
    with report.progress(f"bringing {topology.name} up", json_wanted=json) as waiting:
        how = _options(node, parent, connect, timeout=timeout, dry_run=dry_run, waiting=waiting)
        how.hook, how.persist = hook, persist
        outcome = deploy.up(topology, how, source=document.from_anywhere(file))
    _show(outcome, json=json)


@topology_app.command()
def status(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE|NAME]", help="Without one: what is up here.", show_default=False)
    ] = None,
    node: NodeOption = None,
    parent: ParentOption = None,
    check: Check = False,
    connect: options.Connect = None,
    json: options.Json = False,
) -> None:
    """Show what of it is up on this node, and what is amiss; exit status 1 where something is.

    With --check the endpoints here ping all others: an answer counts with the TTL that its way by the file gives it.
    """
    from guestnet.topology import check as checking
    from guestnet.topology import deploy, observe

    if file is None:
        names = observe.running()
        if json:
            report.as_json(names)
        else:
            report.table(("TOPOLOGY",), [(name,) for name in names]) if names else report.line("no topology is up here")
        return
    topology = _read(file)
    with report.progress(f"looking at {topology.name}", json_wanted=json):
        outcome = deploy.status(topology, _options(node, parent, connect))
    answers: tuple[Answer, ...] = ()
    if check:
        with report.progress("waiting for answers to pings", json_wanted=json):
            answers = checking.ping(topology, topology.node(outcome.node))
    _show_status(outcome, answers, check=check, json=json)
    if any(row.state != "up" for row in outcome.rows) or any(one.wrong for one in answers):
        raise typer.Exit(ExitCode.FAILED)


@topology_app.command()
def down(
    file: File,
    node: NodeOption = None,
    parent: ParentOption = None,
    timeout: options.Timeout = 30.0,
    connect: options.Connect = None,
    keep_unit: Annotated[bool, typer.Option("--keep-unit", help="It comes back at the next boot.")] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Take away what is here of it: links, namespaces, guests' NICs, its systemd unit; sysctls are what they were.

    A file is not needed: a topology that is up is known by its name too.
    """
    from guestnet import units
    from guestnet.topology import boot, document, observe, takedown

    topology = None
    if file in document.shipped() or document.is_file(file):
        topology = document.find(file)
    name = topology.name if topology is not None else file
    if topology is None and name not in observe.running() and not units.is_ours(boot.unit_name(name)):
        document.find(file)  # says that there is none, and the near names
    with report.progress(f"taking {name} down", json_wanted=json) as waiting:
        how = _options(node, parent, connect, timeout=timeout, dry_run=dry_run, waiting=waiting)
        how.keep_unit = keep_unit
        outcome = takedown.down(name, how, topology=topology)
    if json:
        _as_json(outcome)
        return
    _preamble(outcome)
    if not dry_run:
        done = "taken down" if outcome.steps else "unchanged, it is not up here"
        report.told(f"{name}: {done}" + (f" in {outcome.seconds * 1000:.0f} ms" if outcome.steps else ""))


@topology_app.command()
def graph(
    file: File,
    form: pictures.FormatOption = pictures.Format.TEXT,
    output: pictures.OutputOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Beside what is here: mark what is missing or down, and ping.")
    ] = False,
    path: pictures.PathOption = False,
    node: NodeOption = None,
    parent: ParentOption = None,
    connect: options.Connect = None,
) -> None:
    """Draw it, with the pairs that do not reach each other: by the file, or with --check by pings from this node."""
    from guestnet import graph as drawing

    how = _options(node, parent, connect) if check else None
    with report.progress("looking at what is here, with pings" if check else "drawing"):
        picture = drawing.of_file(_read(file), how, path=path)
    pictures.show(picture, form, output)


@topology_app.command("list")
def show_list(json: options.Json = False) -> None:
    """Show the topologies that came with guestnet."""
    from guestnet.topology import document

    found = [document.find(name) for name in document.shipped()]
    if json:
        report.as_json(
            [{"name": one.name, "about": one.about, "nodes": [node.name for node in one.nodes]} for one in found]
        )
        return
    report.table(
        ("NAME", "NODES", "WHAT"), [(one.name, " ".join(n.name for n in one.nodes), one.about) for one in found]
    )


def _options(
    node: str | None,
    parent: Any,
    connect: str | None,
    *,
    timeout: float = 30.0,
    dry_run: bool = False,
    waiting: Any = None,
) -> Any:
    from guestnet.topology import deploy

    return deploy.Options(
        uri=options.uri(connect), node=node, parents=stand_ins(parent), dry_run=dry_run,
        timeout=timeout, waiting=waiting, notice=report.note,
    )  # fmt: skip


def _as_json(outcome: "Outcome", **more: Any) -> None:
    body = report.object_of(outcome)
    body["steps"] = [str(step) for step in outcome.steps]
    body["changed"] = bool(outcome.steps) and not outcome.dry_run
    report.as_json({**body, **more})


def _preamble(outcome: "Outcome") -> None:
    for step in outcome.steps if outcome.dry_run else ():
        report.line(f"would {step}")
    for text in outcome.notes:
        report.told(f"note: {text}")


def _show(outcome: "Outcome", *, json: bool) -> None:
    if json:
        _as_json(outcome)
        return
    _preamble(outcome)
    name = f"{outcome.topology} on {outcome.node}"
    if not outcome.steps:
        report.told(f"{name}: {'nothing to do' if outcome.dry_run else 'unchanged'}, it is so already")
    elif not outcome.dry_run:
        report.told(f"{name}: up in {outcome.seconds * 1000:.0f} ms")
    if not (outcome.dry_run or report.is_quiet()):
        _rows(outcome)
        _at_boot(outcome)


def _at_boot(outcome: "Outcome") -> None:
    if outcome.persists:
        report.line("it comes up at each boot")


def _rows(outcome: "Outcome") -> None:
    columns = ("ENDPOINT", "IN", "LINK", "PARENT", "MODE", "MAC", "ADDRESSES", "STATE")
    report.table(
        columns,
        [
            (
                row.name, f"{row.kind} {row.inside}".strip(), row.link, row.parent, row.mode, row.mac,
                " ".join(row.addresses), row.state,
            )
            for row in outcome.rows
        ],
    )  # fmt: skip


def _show_status(outcome: "Outcome", answers: "tuple[Answer, ...]", *, check: bool, json: bool) -> None:
    if json:
        _as_json(outcome, **({"pings": report.object_of(answers)} if check else {}))
        return
    for text in outcome.notes:
        report.line(f"note: {text}")
    _rows(outcome)
    _at_boot(outcome)
    if check:
        report.line()
        show_pings(answers)


def show_pings(answers: "Iterable[Answer]") -> None:
    """The pings of a check as a table; what is not as the file has it is marked."""
    report.table(("FROM", "TO", "ADDRESS", "TTL", "MS", ""), [_ping_cells(one) for one in answers])


def _ping_cells(one: "Answer") -> tuple[str, ...]:
    word = one.why
    if one.wrong and one.expected is not None:
        word = (
            f"! no answer, by the file one with TTL {one.expected}"
            if one.ttl is None
            else f"! TTL {one.expected} by the file"
        )
    return (
        one.source, one.target, one.address, str(one.ttl or ""),
        f"{one.milliseconds:.2f}" if one.milliseconds is not None else "", word,
    )  # fmt: skip
