"""guestnet lab: hosts, a switch and guests to try things on, all in namespaces of this machine."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from guestnet import report
from guestnet.cli import options
from guestnet.cli.topology import ParentOption, show_pings, stand_ins
from guestnet.errors import ExitCode, NotPermittedError, UsageError

lab_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Which lab; several can be up side by side.")]


@lab_app.callback()
def _lab() -> None:
    """Hosts, switch and guests to try things on, all in namespaces."""
    if os.geteuid() != 0:
        raise NotPermittedError("the lab makes namespaces, that needs root", hint="run this with sudo")


@lab_app.command()
def up(
    nodes: Annotated[
        int | None, typer.Option("--nodes", metavar="N", min=1, max=16, help="How many hosts, 1 to 16.  [2]")
    ] = None,
    guests: Annotated[
        int | None, typer.Option("--guests", metavar="N", min=0, max=16, help="How many guests on each, 0 to 16.  [1]")
    ] = None,
    nics: Annotated[
        int, typer.Option("--nics", metavar="N", min=1, max=8, help="How many links to the switch on each, 1 to 8.")
    ] = 1,
    topology: Annotated[
        str | None,
        typer.Option("--topology", metavar="FILE|NAME", help="Bring this topology up on it, and ping all from all."),
    ] = None,
    parent: ParentOption = None,
    name: Name = "lab",
    json: options.Json = False,
) -> None:
    """Build a lab: hosts n1, n2, … with links nic0, … to one switch, and guests n1g1, … that have no NIC yet.

    With --topology it has as many hosts and guests as that names, and the guests get their NICs and addresses.
    """
    from guestnet.lab import Lab

    lab = Lab(name=name)
    if parent and topology is None:
        raise UsageError("--parent is for a topology's parents", hint="with --topology, or leave it out")
    if topology is None:
        lab.up(nodes=nodes or 2, guests=1 if guests is None else guests, nics=nics, progress=report.note)
        status(name=name, json=json)
        return
    _up_with(lab, topology, nodes, guests, nics, stand_ins(parent), json=json)


def _up_with(
    lab: Any, file: str, nodes: int | None, guests: int | None, nics: int, parents: Mapping[str, str], *, json: bool
) -> None:
    from guestnet.lab import topology as verbs
    from guestnet.topology import document

    topology = document.find(file)
    most = verbs.sizes(topology)
    lab.up(nodes=max(nodes or 0, most[0]), guests=max(guests or 0, most[1]), nics=nics, progress=report.note)
    try:
        verbs.up(lab, topology, file, report.note, parents=parents)
        answers = verbs.check(lab, topology, file, parents=parents)
    except BaseException:
        lab.down()
        raise
    if json:
        report.as_json({"topology": topology.name, "pings": report.object_of(answers)})
    else:
        show_pings(answers)
    if any(one.wrong for one in answers):
        raise typer.Exit(ExitCode.FAILED)


@lab_app.command()
def status(name: Name = "lab", json: options.Json = False) -> None:
    """Show what of a lab is up."""
    from guestnet.lab import Lab

    found = Lab(name=name).status()
    if json:
        report.as_json(found)
        return
    report.line(
        f"lab {found.name}: guests on Linux {found.kernel} ({found.accel}), switch {'up' if found.switch else 'gone'}"
    )
    rows = []
    for node in found.nodes:
        rows += [
            (node.name, "up" if node.up else "gone", f"pid {node.libvirtd}" if node.libvirtd else "ended", link.name,
             " ".join(link.addresses), "")
            for link in node.nics
        ]  # fmt: skip
        rows += [(node.name, "", "", "", "", f"{guest.name} {guest.state}") for guest in node.guests]
    report.table(("NODE", "STATE", "LIBVIRTD", "LINK", "ADDRESSES", "GUEST"), rows)


# here -h may be the command's own, as in `df -h`
@lab_app.command("exec", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
def run(
    where: Annotated[str, typer.Argument(metavar="NODE|GUEST", help="n1, or n1g1 for inside that guest.")],
    command: Annotated[list[str], typer.Argument(metavar="CMD...", help="The command and its words, after `--`.")],
    name: Name = "lab",
) -> None:
    """Run a command on a node, or inside a guest.

    Inside a guest it reads no input, its output comes when it has ended, and after 30 seconds it is killed.
    """
    import shlex
    import sys

    from guestnet.lab import Lab

    node_name, inside, _ = where.partition("g")
    node = Lab(name=name).node(node_name)
    if inside:
        code, output = node.guest(where).run(shlex.join(command))
        report.document(output)
        raise typer.Exit(code)
    node.must_be_up()
    # so that `guestnet` is found there, also out of a virtual environment that is not activated
    os.environ["PATH"] = os.path.dirname(sys.executable) + ":" + os.environ.get("PATH", "")
    words = node.argv(command)
    sys.stdout.flush()
    os.execvp(words[0], words)


@lab_app.command()
def down(
    name: Name = "lab", everything: Annotated[bool, typer.Option("--all", help="All labs there are.")] = False
) -> None:
    """Take a lab down, whole or half built: its guests, hosts, switch and files."""
    from guestnet.lab import Lab, labs

    known = labs()
    for one in known if everything else [name]:
        Lab(name=one).down(progress=report.note)
    if everything and not known:
        report.note("there is no lab")
    elif not everything and name not in known:
        up = f" (up: {', '.join(known)})" if known else ""
        report.note(f"there is no lab {name}{up}")


@lab_app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up to try things on.")] = False,
    name: Name = "demo",
) -> None:
    """Two hosts with a guest each: attach both guests to the network and let them ping each other."""
    from guestnet.lab import demo as show

    if len(name) > 8:
        raise UsageError(f"the lab name {name!r} is too long", hint="at most 8 characters")
    show.demo(name, report.line, keep=keep)
