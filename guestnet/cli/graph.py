"""guestnet graph: what is on this host, as a picture."""

import os
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guestnet import report
from guestnet.cli import options
from guestnet.errors import NotPermittedError

if TYPE_CHECKING:
    from guestnet.plan.drawing import Picture

graph_app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


class Format(StrEnum):
    """What a picture is made of."""

    TEXT = "text"
    SVG = "svg"
    DOT = "dot"


FormatOption = Annotated[
    Format,
    typer.Option(
        "--format", metavar="text|svg|dot", parser=options.words(Format), help="Characters, SVG, or Graphviz's words."
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", parser=options.file, help="Into this file.")
]

PathOption = Annotated[
    bool, typer.Option("--path", help="With what a guest's frames pass: device node, macvtap, VLANs, NIC.")
]


@graph_app.command()
def graph(
    form: FormatOption = Format.TEXT,
    output: OutputOption = None,
    check: Annotated[bool, typer.Option("--check", help="Let the host and its namespaces ping each other.")] = False,
    path: PathOption = False,
    connect: options.Connect = None,
) -> None:
    """Draw what is on this host: links, what stands on them, and what is amiss."""
    if os.geteuid() != 0:
        raise NotPermittedError("other network namespaces are for root to look into", hint="run this with sudo")

    from guestnet import graph as drawing

    with report.progress("looking at this host, with pings" if check else "looking at this host"):
        picture = drawing.of_host(options.uri(connect), check=check, path=path)
    if not picture.hosts[0].stems and not picture.below:
        report.note("there is no macvtap and no macvlan on this host")
    show(picture, form, output)


def show(picture: "Picture", form: Format, output: Path | None) -> None:
    """Print a picture, or write it into a file. Raises GuestnetError."""
    from guestnet import graph as drawing
    from guestnet.plan import drawing as characters

    if form is Format.SVG:
        content = drawing.svg(picture)
    elif form is Format.DOT:
        content = drawing.dot(picture).encode()
    else:
        width = shutil.get_terminal_size((characters.WIDTH, 0)).columns if output is None else characters.WIDTH
        content = characters.text(picture, max(width, 1)).encode()
    if output is None:
        report.document(content.decode())
    else:
        drawing.write(str(output), content)
